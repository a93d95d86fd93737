"""Weights in the files that people have: whatever program saved them, and however wrapped.

A network's tensors are looked for in ``.pt``, ``.pth``, ``.ckpt``, ``.bin`` and ``.safetensors``
files and in folders of Hugging Face, beside optimiser, scheduler, epoch and the like.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from channelscope.errors import UserError
from channelscope.reading import check_regular, read_json
from channelscope.weights.tensors import check_file, load_tensors

# Under which names files hold a network's tensors; of several, the first is taken.
_ENTRIES = (
    *("state_dict", "net", "model", "model_state_dict", "model_state", "network", "weights"),
    *("net_state_dict", "params", "ema", "model_ema", "state_dict_ema", "ema_state_dict"),
)
_DEEPEST_ENTRY = 4
_MOST_WRAPPERS = 8  # around a network
# What wrappers put before each name: DataParallel, torch.compile, Lightning and other programs,
# and Sequential(normalise, network).
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "1.")
_AVERAGED = "n_averaged"  # beside the network of torch's AveragedModel: how many it averages
_STATISTICS = re.compile(r"(?P<owner>(?:.*\.)?)_?(?P<kind>mean|mu|std|sigma)")
_MOST_CHANNELS = 64  # of an image
_LARGEST_HEADER = 100 * 2**20  # bytes, as safetensors itself has it
_MOST_TENSORS = 20_000  # of a network
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class State:
    """The tensors of a network, and the normalisation that stood around it.

    Args:
        tensors: by name, in single precision or better.
        mean, std: of each input channel, or one for all; None where the file has none.
    """

    tensors: Mapping[str, Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Weights:
    """What a file or folder holds of a network.

    Args:
        path: the file or folder.
        states: the network's tensors, first as the file names them, then without the wrappers'
            prefixes and normalisation, one by one; the last has none.
        entry: where in the file they lay, such as ``ema.model``; empty for the file as such.
        arch: the architecture that the folder's settings name, such as ``timm:resnet18``, or None.
        written_as: the class of transformers that the folder's settings name, or None.
        mean, std: the normalisation that the folder's settings state, or None.
    """

    path: Path
    states: tuple[State, ...]
    entry: str = ""
    arch: str | None = None
    written_as: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read_weights(path: Path | str) -> Weights:
    """Read the tensors of a network from any program's file or folder; nothing in it is run.

    Args:
        path: a file that torch wrote, of any age; a ``.safetensors`` file; or a folder of Hugging
            Face.

    Raises:
        UserError: one sentence on a file that is missing, damaged, or holds no plain weights.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    content = read_content(path)
    state, entry = find_state(content, path)
    return Weights(path, unwrap(state, path), entry)


def read_content(path: Path) -> Any:
    """Read a file's plain values and tensors; raises UserError."""
    check_file(path)
    return _read_safetensors(path) if _is_safetensors(path) else load_tensors(path, foreign=True)


def find_state(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """Return a network's tensors, and where among a file's values they are.

    Raises:
        UserError: where there are none, or several networks of which none has a usual name.
    """
    if (place := _search(content, path, "", _DEEPEST_ENTRY)) is not None:
        return place
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds a {type(content).__name__}, not a network's weights: save "
            "network.state_dict()."
        )
    others = {str(key): value for key, value in content.items() if _is_state(value)}
    if len(others) == 1:
        name, state = others.popitem()
        return dict(state), name
    if others:
        raise UserError(
            f"{path} holds several networks ({', '.join(others)}): save the state_dict of one in a "
            "file of its own."
        )
    keys = ", ".join(map(str, list(content)[:6])) or "nothing"
    raise UserError(
        f"{path} holds no weights of a network, a dict of tensors, but {keys}: save "
        "network.state_dict()."
    )


def list_twins(content: Any, state: Mapping[str, Tensor], entry: str, path: Path) -> list[str]:
    """Return the other usual entries of a file that hold a network of these shapes, as an average.

    Args:
        content: of the file.
        state, entry: what ``find_state`` found in it.
        path: of the file.
    """
    twins: list[str] = []
    first, shapes = re.split(r"[.\[]", entry)[0], _count_shapes(state)
    for name in _ENTRIES if isinstance(content, Mapping) and entry else ():
        if name == first or name not in content:
            continue
        try:
            found = _search(content[name], path, name, _DEEPEST_ENTRY - 1)
        except UserError:
            continue
        if found is not None and _count_shapes(found[0]) == shapes:
            twins.append(found[1])
    return twins


def _count_shapes(state: Mapping[str, Tensor]) -> Counter[torch.Size]:
    """Count the shapes of tensors; averages have numbers, of steps, that networks lack."""
    return Counter(tensor.shape for tensor in state.values() if tensor.ndim)


def _search(
    content: Any, path: Path, entry: str, depth: int
) -> tuple[dict[str, Tensor], str] | None:
    """Look for a state under the usual names, in each other; raises UserError for several."""
    if _is_state(content):
        return {key: value for key, value in content.items() if isinstance(value, Tensor)}, entry
    if isinstance(content, list | tuple):  # of networks that answer one after the other
        states = [item for item in content if _is_state(item)]
        if len(states) == len(content) == 1:
            return _search(content[0], path, f"{entry}[0]", depth)
        if states:
            where = f" under {entry}" if entry else ""
            raise UserError(
                f"{path} holds a list of {len(content)} values{where}, of which {len(states)} are "
                "networks: save the state_dict of one in a file of its own."
            )
    if not isinstance(content, Mapping) or depth == 0:
        return None
    for name in _ENTRIES:
        inner = f"{entry}.{name}".lstrip(".")
        if name in content and (place := _search(content[name], path, inner, depth - 1)):
            return place
    return None


def _is_state(value: Any) -> bool:
    """Return whether a value is a dict of tensors, by names, perhaps with a few plain values."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    named = [key for key, item in value.items() if isinstance(item, Tensor)]
    return bool(named) and (len(named) == len(value) or any("." in key for key in named))


def unwrap(state: Mapping[str, Tensor], path: Path) -> tuple[State, ...]:
    """List a network's tensors as named, and then without each of the wrappers around it.

    Args:
        state: the tensors by name; half precision becomes single precision.
        path: for the error.

    Raises:
        UserError: for numbers that are not finite.
    """
    tensors = {key: _to_single(tensor) for key, tensor in state.items()}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise UserError(
            f"{path} holds weights that are not finite numbers: save the network again, or train "
            "it again."
        )
    states = [State(tensors)]
    while len(states) <= _MOST_WRAPPERS and (inner := _take_wrapper(states[-1])) is not None:
        states.append(inner)
    return tuple(states)


def _take_wrapper(state: State) -> State | None:
    """Take off one prefix or the normalisation; None where there is neither."""
    if (inner := _take_normalisation(state.tensors)) is not None:
        return inner if state.mean is None else _join_normalisations(state, inner)
    inside = {key: item for key, item in state.tensors.items() if key != _AVERAGED}
    for prefix in _PREFIXES:
        if inside and all(key.startswith(prefix) for key in inside):
            tensors = {key.removeprefix(prefix): item for key, item in inside.items()}
            return State(tensors, state.mean, state.std)
    return None


def _take_normalisation(tensors: Mapping[str, Tensor]) -> State | None:
    """Take the buffers of a module that normalises images from among a network's tensors."""
    owners: dict[str, dict[str, str]] = {}
    for key in tensors:
        if match := _STATISTICS.fullmatch(key):
            kind = "mean" if match["kind"] in ("mean", "mu") else "std"
            owners.setdefault(match["owner"], {})[kind] = key
    for keys in owners.values():
        if keys.keys() != {"mean", "std"}:
            continue
        mean, std = (tensors[keys[kind]].double().flatten() for kind in ("mean", "std"))
        rest = {key: item for key, item in tensors.items() if key not in keys.values()}
        if rest and len(mean) == len(std) <= _MOST_CHANNELS and bool((std > 0).all()):
            scale = 255 if float(mean.max()) > 1 else 1  # of statistics in units of bytes
            numbers = [tuple((values.float() / scale).tolist()) for values in (mean, std)]
            return State(rest, *numbers)
    return None


def _join_normalisations(outer: State, inner: State) -> State:
    """Join two normalisations, one after the other, ((x - m) / s - n) / t, to one."""
    (m, s), (n, t) = (
        (
            torch.tensor(state.mean, device="cpu").double(),
            torch.tensor(state.std, device="cpu").double(),
        )
        for state in (outer, inner)
    )
    mean, std = (tuple(values.float().tolist()) for values in (m + s * n, s * t))
    return State(inner.tensors, mean, std)


def _to_single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor


# ---------------------------------------------------------------- safetensors, Hugging Face


def _is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors do: the length of a header, and the header."""
    with path.open("rb") as file:
        size, brace = int.from_bytes(file.read(8), "little"), file.read(1)
    return path.suffix == ".safetensors" or (brace == b"{" and size <= _LARGEST_HEADER)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            if len(file.keys()) > _MOST_TENSORS:
                raise ValueError("more tensors than any network has")
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read as a safetensors file: it is damaged, or of another kind. Get "
            "it again."
        ) from error


def _read_folder(folder: Path) -> Weights:
    """Read a folder of Hugging Face: weights, in one file or several, and settings."""
    names = [name for name in _FOLDER_FILES if (folder / name).is_file()]
    indices = [name for name in _FOLDER_FILES if (folder / f"{name}.index.json").is_file()]
    if names:
        state, entry = find_state(read_content(folder / names[0]), folder / names[0])
    elif indices:
        state, entry = _read_shards(folder, f"{indices[0]}.index.json"), ""
    else:
        raise UserError(f"{folder} is a folder: name the network file in it.")
    config = _read_config(folder / "config.json")
    preprocessor = _read_config(folder / "preprocessor_config.json")
    pretrained = config.get("pretrained_cfg")
    stated = pretrained if isinstance(pretrained, dict) else config
    name = config.get("architecture")
    classes = config.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else None
    return Weights(
        folder,
        unwrap(state, folder),
        entry,
        arch=f"timm:{name}" if isinstance(name, str) else None,
        written_as=first if isinstance(first, str) and first.isidentifier() else None,
        mean=_read_numbers(stated.get("mean", preprocessor.get("image_mean"))),
        std=_read_numbers(stated.get("std", preprocessor.get("image_std"))),
    )


def _read_shards(folder: Path, index: str) -> dict[str, Tensor]:
    """Read weights that lie in several files, whose index names the file of each tensor."""
    places = _read_config(folder / index).get("weight_map")
    names = sorted(set(places.values())) if isinstance(places, dict) and places else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise UserError(f"{folder / index} names no files of the folder: get the folder again.")
    state: dict[str, Tensor] = {}
    for name in names:
        state |= find_state(read_content(folder / name), folder / name)[0]
    return state


def _read_config(path: Path) -> dict[str, Any]:
    """Read a folder's settings; empty where there are none."""
    if not path.exists():
        return {}
    try:
        config = read_json(check_regular(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): get the folder again.") from error
    return config if isinstance(config, dict) else {}


def _read_numbers(values: Any) -> tuple[float, ...] | None:
    """Return a few finite numbers; None for anything else."""
    if not isinstance(values, list) or not 1 <= len(values) <= _MOST_CHANNELS:
        return None
    if not all(type(value) in (int, float) for value in values):
        return None
    return (
        tuple(map(float, values))
        if bool(torch.tensor(values, device="cpu").isfinite().all())
        else None
    )
