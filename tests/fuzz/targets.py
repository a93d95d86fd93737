"""What is read, and by what: for each kind of file a valid one to begin with, and its reader."""

import contextlib
import io
import json
import os
import struct
import sys
import tempfile
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tests' own networks and frames

from trees import Link, Tree

import channelscope as cs
from channelscope.analyses.base import ChannelTable
from channelscope.analyses.evaluation import robustbench_entry
from channelscope.analyses.sweeps import TABLE, VARIANTS
from channelscope.cli.commands import read_settings
from channelscope.cli.parser import make_parser
from channelscope.data import LazySplit, load
from channelscope.gallery import list_figures
from channelscope.networks import Architecture
from channelscope.reading import read_json
from channelscope.result import adversarial_name
from channelscope.study.models import Model
from channelscope.study.store import Rows, RunFolder, Spec
from channelscope.sweeps import parse_values
from channelscope.sweeps.record import Record, compute_digest
from channelscope.training import Recipe
from channelscope.training.state import State
from channelscope.weights import Checkpoint, Gate, build, zoo
from channelscope.weights.loading import read_network
from helpers.runs import digits, run, tiny_job, write_npz
from helpers.studies import make_result, synthetic_study


@dataclass(frozen=True)
class Target:
    """A kind of file, or folder.

    Args:
        trees: valid ones.
        reader: reads the folder ``in`` of a tree, and uses what it has read as far as that costs
            little.
        ours: whether such a folder is of our making, so that nothing in it leads out of it.
        never: whether nothing but what was published is read: a change of a single byte must be
            refused.
        files: whether it is files that are read, and not words of the command line that lie in one
            for these tests.
        share: of the inputs that others get: less for a reader that takes long.
    """

    trees: tuple[Tree, ...] = field(repr=False)
    reader: Callable[[Path], Any]
    ours: bool = True
    never: bool = False
    files: bool = True
    share: float = 1.0

    def read(self, folder: Path) -> None:
        """Read, and use, what lies in a folder."""
        self.reader(folder)


# ---------------------------------------------------------------- readers


def _use(checkpoint: Checkpoint) -> None:
    """Do what every command does with a network that it has read."""
    network = checkpoint.build()
    json.dumps(Model("net", network, checkpoint.method, checkpoint).description).encode()
    json.dumps(checkpoint.class_names).encode()
    if sum(parameter.numel() for parameter in network.parameters()) < 1_000_000:
        is_ours = isinstance(checkpoint.architecture, Architecture)
        image = (checkpoint.image[0], 8, 8) if is_ours else checkpoint.image
        assert network(torch.rand(1, *image)).shape == (1, checkpoint.architecture.classes)


def _checkpoint(folder: Path) -> None:
    _use(Checkpoint.read(folder / "net.pt"))


def _layers(folder: Path) -> None:
    """List a network's layers, for images of the size that its file says."""
    args = make_parser().parse_args(["layers", str(folder / "net.pt")])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        args.run(args)


def _released(folder: Path) -> None:
    _use(read_network(folder / "release.pth"))


def _state(folder: Path) -> None:
    job = tiny_job("cifs", folder / "net.pt")
    state = State.resume(job, "cpu")
    if state is not None:
        job.make_checkpoint(state.best or state.network.state_dict(), state.history)
        json.dumps(state.history).encode()


def _npz(folder: Path, image_size: int | None = None) -> None:
    _look(load(f"npz:{folder / 'data.npz'}", image_size=image_size))


def _look(dataset: cs.data.Dataset) -> None:
    for part in dataset.parts.values():
        here = replace(part, workers=0) if isinstance(part, LazySplit) else part
        x, _ = next(here.batches(4))
        assert x.isfinite().all()
        assert x.min() >= 0
        assert x.max() <= 1
    "".join(dataset.classes).encode()


def _standard(name: str) -> Callable[[Path], None]:
    return lambda folder: _look(load(name, root=folder))


def _images(stream: bool, image_size: int | None = 8) -> Callable[[Path], None]:
    return lambda folder: _look(
        load(f"imagefolder:{folder}", image_size=image_size, stream=stream).load()
    )


def _recipe(folder: Path) -> None:
    recipe = Recipe.named(str(folder / "recipe.toml"))
    assert Recipe.from_values(tomllib.loads(recipe.toml())) == recipe
    json.dumps(recipe.values()).encode()


def _settings(folder: Path) -> None:
    """Read what would stand behind ``--set`` and ``--vary``, which no NUL can be in."""
    words = os.fsdecode((folder / "words").read_bytes()).split("\0")
    recipe = Recipe.suited_to("digits", "cifs").override(**read_settings(words))
    assert Recipe.from_values(tomllib.loads(recipe.toml())) == recipe
    for word in words:
        parse_values(word.partition("=")[2])


def _load(folder: Path, kind: str) -> cs.Result:
    """Read a result, and use it as its figures, its page and its printed form do."""
    result = cs.Result.load(folder, kind)
    for name, picture in list_figures(result).items():
        json.dumps(picture.describe(name)).encode()
    json.dumps(result.meta, ensure_ascii=False).encode()
    assert repr(result).count("\n") < 10
    assert result._repr_html_()
    for table in result.tables:
        assert len(getattr(result, table)) == len(result.tables[table])
    result.report(folder)
    return result


def _comparison(folder: Path) -> None:
    result = _load(folder, "comparison")
    cs.explore(result)


def _figures(folder: Path) -> None:
    """Draw a figure, and find what lies beside the folder as it was."""
    outside = folder.parent / "outside"
    before = _list_contents(outside)
    try:
        result = cs.Result.load(folder)
        result.draw(folder, only=["relevance"], formats=["png"], progress=False)
    finally:
        assert _list_contents(outside) == before


def _list_contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


def _evaluation(folder: Path) -> None:
    result = _load(folder, "evaluation")
    for model in result.meta["models"]:
        json.dumps(robustbench_entry(result, model)).encode()
        result.open_adversarial(folder, model, "fgsm")


def _run_folder(folder: Path) -> None:
    """Open rows as they were left: those that count as written are what was written."""
    rows = _open_rows(folder)
    done = np.flatnonzero(rows.done)
    for name, values in _ROWS.items():
        assert (rows.array(name)[done] == values[done]).all()
    assert set(rows.notes) <= {_NOTE}
    assert _NOTE in rows.notes or not len(done)
    missing = np.flatnonzero(~rows.done)
    rows.note(_NOTE)
    rows.write(missing, {name: values[missing] for name, values in _ROWS.items()})
    assert _open_rows(folder).done.all()


def _sweep(folder: Path) -> None:
    """Read a record as it is; if that is refused, with the digest that a forger would give it."""
    file = folder / "sweep.json"
    try:
        Record.open(folder, _SWEPT, [])
    except cs.UserError:
        try:
            meta = read_json(file, within=folder)
            meta.pop("digest", None)
            forged = json.dumps(meta | {"digest": compute_digest(meta)})
        except (OSError, ValueError, TypeError, AttributeError):
            forged = ""
        if not forged:
            raise
        file.write_text(forged, "utf-8")
        Record.open(folder, _SWEPT, [])


def _results(folder: Path) -> None:
    zoo.RESULTS = folder / "results.csv"
    for row in zoo.zoo().to_dict("records"):
        float(row["accuracy"]), float(row["low"]), float(row["high"]), row["model"], row["attack"]


# ---------------------------------------------------------------- valid files

_ROWS: dict[str, np.ndarray] = {
    "withstood": np.array([1, 0, 1, 1, 0], np.uint8),
    "activations/layer4": np.linspace(0, 1, 15, dtype=np.float32).reshape(5, 3),
}
_NOTE = "pgd-20: a sentence"
_SWEPT: dict[str, Any] = {
    "recipe": {"method": "at"},
    "vary": {"lr": [0.1, 0.2]},
    "data": {"name": "x"},
    "eps": 0.1,
}


def _saved(content: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def _contents(folder: Path) -> Tree:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return Tree({f"in/{path.relative_to(folder)}": path.read_bytes() for path in files})


def _network(*gates: Gate, classes: int = 3) -> Checkpoint:
    architecture = Architecture(arch="resnet10", width=1, classes=classes, mean=(0.5,), std=(0.25,))
    network = build(architecture, gates)
    names = tuple(f"class {index}" for index in range(classes))
    meta = {
        "history": [],
        "settings": {
            "recipe": {"method": "at", "optimizer": {"lr": 0.1}},
            "data": {"name": "digits"},
        },
    }
    image = (1, 8, 8)
    return Checkpoint(
        architecture=architecture,
        gates=gates,
        state=network.state_dict(),
        image=image,
        class_names=names,
        meta=meta,
    )


def _checkpoints() -> tuple[Tree, ...]:
    plain, gated = _network().content(), _network(Gate(layer="layer4", channels=8)).content()
    written = (_saved(plain), _saved(gated), _saved(plain, _use_new_zipfile_serialization=False))
    return tuple(Tree({"in/net.pt": content}) for content in written)


def _releases() -> tuple[Tree, ...]:
    state = build(Architecture(arch="resnet10", width=1, classes=3), ()).state_dict()
    plain = {
        f"module.{name}": tensor
        for name, tensor in state.items()
        if not name.startswith("normalise")
    }
    probe = {
        "module.layer4.0.Probe.Probe.0.fc.weight": torch.ones(4, 8),
        "module.layer4.0.Probe.Probe.0.fc.bias": torch.ones(4),
    }
    probe |= {
        "module.layer4.0.Probe.Probe.1.weight": torch.ones(3, 4),
        "module.layer4.0.Probe.Probe.1.bias": torch.ones(3),
    }
    outside = {"0.mean": torch.ones(3), "0.std": torch.ones(3)}
    inside = {f"1.{name.removeprefix('module.')}": tensor for name, tensor in plain.items()}
    chain = torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten()),
        torch.nn.Linear(2 * 225, 3),
    )
    written = (
        _saved({"state_dict": plain | probe, "epoch": 3}),
        _saved(plain),
        _saved({"net": outside | inside, "steps": Counter([2, 4])}),
        _saved({"ema": {"model": chain.state_dict()}}),
        _saved({"state_dict": plain}, _use_new_zipfile_serialization=False),
    )
    return tuple(Tree({"in/release.pth": content}) for content in written)


def _states(place: Path) -> tuple[Tree, ...]:
    job = tiny_job("cifs", place / "net.pt")
    state = State.start(job, "cpu")
    state.save()
    return (Tree({"in/net.pt.partial": job.partial.read_bytes()}),)


def _npzs(place: Path) -> tuple[Tree, ...]:
    write_npz(place)
    plain = (place / "digits.npz").read_bytes()
    packed = io.BytesIO()
    images = np.random.default_rng(0).random((9, 4, 4, 3), np.float32)
    np.savez_compressed(
        packed, test_images=images, test_labels=np.arange(9) % 2, classes=np.array(["cat", "dog"])
    )
    return tuple(Tree({"in/data.npz": content}) for content in (plain, packed.getvalue()))


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">i{array.ndim}i", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def _mnist() -> tuple[Tree, ...]:
    images, labels = np.zeros((20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 10
    files = {"images-idx3-ubyte": _idx(images), "labels-idx1-ubyte": _idx(labels)}
    return (
        Tree(
            {
                f"in/MNIST/raw/{part}-{name}": file
                for part in ("train", "t10k")
                for name, file in files.items()
            }
        ),
    )


def _cifar() -> tuple[Tree, ...]:
    import pickle

    batch = pickle.dumps({"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))}, 2)
    names = [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]
    meta = pickle.dumps({"label_names": list("abcdefghij")}, 2)
    return (
        Tree(
            {f"in/cifar-10-batches-py/{name}": batch for name in names}
            | {"in/cifar-10-batches-py/batches.meta": meta}
        ),
    )


def _svhn() -> tuple[Tree, ...]:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((4, 1), np.uint8)})
    return (Tree({f"in/{part}_32x32.mat": buffer.getvalue() for part in ("train", "test")}),)


def _picture(
    kind: str, mode: str = "RGB", seed: int = 0, size: tuple[int, int] = (12, 10)
) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def _folders() -> tuple[Tree, ...]:
    kinds = {
        "png": "PNG",
        "jpg": "JPEG",
        "gif": "GIF",
        "bmp": "BMP",
        "tif": "TIFF",
        "webp": "WEBP",
        "ppm": "PPM",
    }
    mixed = {
        f"in/{name}/{index}.{ending}": _picture(kind, seed=index)
        for name in ("cat", "dog")
        for index, (ending, kind) in enumerate(kinds.items())
    }
    parts = {
        f"in/{part}/{name}/{index}.png": _picture("PNG", "L", index)
        for part in ("train", "test")
        for name in ("cat", "dog")
        for index in range(3)
    }
    tiny = {
        f"in/train/{name}/images/{name}_{index}.png": _picture("PNG", seed=index)
        for name in ("n01443537", "n01629819")
        for index in range(2)
    }
    boxes = "val_0.png\tn01443537\t0\t32\t44\t62\nval_1.png\tn01629819\t52\t55\t57\t59\n"
    tiny |= {f"in/val/images/val_{index}.png": _picture("PNG", seed=index) for index in range(2)}
    tiny["in/val/val_annotations.txt"] = boxes.encode()
    return Tree(mixed), Tree(parts), Tree(tiny)


def _recipes() -> tuple[Tree, ...]:
    whole = Recipe.suited_to("digits", "cifs").toml().encode()
    short = b'extends = ["cifar10-resnet18-at"]\n[optimizer]\nlr = 0.05\n[schedule]\nepochs = 2\n'
    return Tree({"in/recipe.toml": whole}), Tree({"in/recipe.toml": short})


def _words() -> tuple[Tree, ...]:
    words = (
        "optimizer.lr=0.1",
        "gates.options.imgf=softmax",
        "schedule.epochs=3",
        'gates.layers=["layer4.0"]',
        "eps=8/255",
    )
    return Tree({"in/words": "\0".join(words).encode()}), Tree(
        {"in/words": b"schedule.milestones=[0.5, 0.75]"}
    )


def _saved_result(result: cs.Result, place: Path) -> tuple[Tree, ...]:
    """Write a result without figures, and without digests, which refuse any change.

    Tables of single channels are read from arrays.npz: what is wrong in their CSV harms nobody.
    """
    result.write_tables(place)
    for name, table in result.tables.items():
        if isinstance(table, ChannelTable):
            (place / f"{name}.csv").unlink()
    return (_contents(place),)


def _comparisons(place: Path) -> tuple[Tree, ...]:
    small: dict[str, Any] = {"channels": 3, "epochs": 2, "count": 4, "replicates": 20}
    study = synthetic_study(("at", "cifs"), ("cat", "dog"), gates=("layer4",), swept=True, **small)
    pictures = np.zeros((8, 1, 4, 4), np.uint8)
    study.arrays |= {"pictures/natural": pictures, "pictures/adversarial": pictures}
    (place / "figures").mkdir()
    shown = [
        {
            "name": "flow",
            "caption": "A.",
            "alt_text": "B.",
            "section": "claims",
            "claims": ["c1"],
            "main": True,
        }
    ]
    (place / "figures" / "captions.json").write_text(json.dumps(shown))
    (place / "figures" / "flow.png").write_bytes(_picture("PNG"))
    return _saved_result(make_result(study), place)


def _drawn(place: Path) -> tuple[Tree, ...]:
    """Make results with figures, and with links where these lie and would be written."""
    (tree,) = _comparisons(place)
    files = {name: entry for name, entry in tree.entries.items() if "/figures/" not in name}
    mine = {f"outside/{name}": b"mine" for name in ("relevance.csv", "relevance.png", "x.html")}
    linked = {
        "in/figures": "../outside",
        "in/report.html": "../outside/x.html",
        "in/figures/relevance.png": "../../outside/relevance.png",
        "in/figures/relevance.csv": "../../outside/new.csv",
        "in/figures/captions.json": "../../outside/x.html",
    }
    links = [Tree({**files, **mine, name: Link(to)}) for name, to in linked.items()]
    return (tree, *links)


def _evaluations(place: Path) -> tuple[Tree, ...]:
    (place / "adversarial").mkdir()
    images = np.zeros((4, 1, 8, 8), np.float32)
    np.save(place / "adversarial" / adversarial_name(0, "fgsm"), images)
    options: dict[str, Any] = {"attacks": ["fgsm"], "checks": 0, "eps_sweep": (0.05,)}
    return _saved_result(_ask(cs.evaluate, eps=0.1, images=4, **options), place)


def _interventions(place: Path) -> tuple[Tree, ...]:
    options: dict[str, Any] = {"attack": "pgd-1", "eps": 0.1, "random": 2}
    return _saved_result(_ask(cs.intervene, images=8, **options), place)


def _damages(place: Path) -> tuple[Tree, ...]:
    network = run("standard", place.with_name("net.pt"), epochs=20)
    options: dict[str, Any] = {"attack": "pgd-10", "eps": 0.9, "fractions": (0.5,), "edges": 2}
    found = cs.damage({"net": network}, digits(), replicates=30, progress=False, **options)
    return _saved_result(found, place)


def _relevances(place: Path) -> tuple[Tree, ...]:
    return _saved_result(_ask(cs.relevance, images=8, scorers=["weights", "gradient"]), place)


def _sweep_results(place: Path) -> tuple[Tree, ...]:
    numbers = dict.fromkeys(TABLE.numbers, 0.5) | {"seed": 0, "best_epoch": 1, "trained_epochs": 2}
    rows = [
        {"variant": f"lr {lr}", "trouble": "", "file": f"lr-{lr}.pt", "lr": lr, **numbers}
        for lr in (0.1, 0.2)
    ]
    settings = _SWEPT | {"level": 0.95, "attack": "pgd-20"}
    meta = {
        "models": {row["variant"]: {} for row in rows},
        "data": {"name": "digits", "images": 20, "classes": ["0", "1"]},
        "settings": settings,
        "title": "at on digits, by lr",
        "images": {"test": 20},
    }
    means = dict.fromkeys(VARIANTS.numbers, 0.5) | {"seeds": 1}
    tables = {
        "sweep": pd.DataFrame(rows),
        "variants": pd.DataFrame([{"variant": row["variant"], **means} for row in rows]),
    }
    result = cs.Result("sweep", tables, {}, meta)
    return _saved_result(result, place)


def _ask(question: Any, **options: Any) -> cs.Result:
    models = {"net": _network(classes=4).build()}
    result: cs.Result = question(models, digits(), replicates=30, progress=False, **options)
    return result


def _open_rows(folder: Path) -> Rows:
    spec: Spec = {name: (values.shape[1:], values.dtype.str) for name, values in _ROWS.items()}
    return RunFolder(folder).rows(5, spec, "net", "pgd-20")


def _run_folders(place: Path) -> tuple[Tree, ...]:
    rows = _open_rows(place)
    rows.note(_NOTE)
    some = np.array([0, 1, 3])
    rows.write(some, {name: values[some] for name, values in _ROWS.items()})
    return (_contents(place),)


def _sweeps() -> tuple[Tree, ...]:
    row = {"natural": 0.5, "natural_low": 0.4, "natural_high": 0.6, "seconds": 1.0}
    results = {"lr-0.1-s0.pt": row, "lr-0.2-s0.pt": {"trouble": "No."}}
    meta = {"settings": _SWEPT, "results": results, "title": "x", "command": None}
    written = meta | {"digest": compute_digest(meta)}
    return (Tree({"in/sweep.json": json.dumps(written, indent=1).encode()}),)


def all_targets() -> dict[str, Target]:
    """Make all targets, with their valid files; what reading these imports is imported then."""
    warnings.simplefilter("ignore")  # torch's, of the kinds of tensors that are to be tried
    torch.set_num_threads(1)
    targets = _targets()
    with tempfile.TemporaryDirectory(prefix="channelscope-fuzz-") as name:
        for target in targets.values():
            for tree in target.trees:
                tree.write(Path(name) / "work")
                # What has not the published bytes, or has links, is refused.
                linked = any(isinstance(entry, Link) for entry in tree.entries.values())
                with contextlib.suppress(*[cs.UserError] * (target.never or linked)):
                    target.read(Path(name) / "work" / "in")
    return targets


def _targets() -> dict[str, Target]:
    with tempfile.TemporaryDirectory(prefix="channelscope-fuzz-") as name:

        def fresh(kind: str) -> Path:
            (place := Path(name) / kind).mkdir()
            return place

        return {
            "checkpoint": Target(_checkpoints(), _checkpoint, ours=False),
            "layers": Target(_checkpoints(), _layers, ours=False),
            "release": Target(_releases(), _released, ours=False),
            "state": Target(_states(fresh("state")), _state),
            "npz": Target(_npzs(fresh("npz")), _npz, ours=False),
            "scaled npz": Target(
                _npzs(fresh("scaled npz")), partial(_npz, image_size=224), ours=False
            ),
            "mnist": Target(_mnist(), _standard("mnist"), ours=False),
            "cifar10": Target(_cifar(), _standard("cifar10"), ours=False, never=True),
            "svhn": Target(_svhn(), _standard("svhn"), ours=False, never=True),
            "image folder": Target(_folders(), _images(stream=False), ours=False),
            "streamed folder": Target(_folders(), _images(stream=True), ours=False),
            "folder as stored": Target(
                _folders(), _images(stream=False, image_size=None), ours=False
            ),
            "enlarged folder": Target(
                _folders(), _images(stream=False, image_size=224), ours=False
            ),
            "recipe": Target(_recipes(), _recipe, ours=False),
            "settings": Target(_words(), _settings, ours=False, files=False),
            "comparison": Target(_comparisons(fresh("comparison")), _comparison),
            "figures": Target(_drawn(fresh("figures")), _figures, ours=False, share=0.1),
            "evaluation": Target(_evaluations(fresh("evaluation")), _evaluation),
            "intervention": Target(
                _interventions(fresh("intervention")), partial(_load, kind="intervention")
            ),
            "damage": Target(_damages(fresh("damage")), partial(_load, kind="damage")),
            "relevance": Target(_relevances(fresh("relevance")), partial(_load, kind="relevance")),
            "sweep": Target(_sweep_results(fresh("sweep")), partial(_load, kind="sweep")),
            "record of a sweep": Target(_sweeps(), _sweep),
            "run folder": Target(_run_folders(fresh("run")), _run_folder, ours=False),
            "zoo results": Target((Tree({"in/results.csv": zoo.RESULTS.read_bytes()}),), _results),
        }
