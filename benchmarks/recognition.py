"""Try to recognise every classifier of torchvision and timm from a bare state dict; print a table.

    python -m benchmarks.recognition torchvision               # or timm, or both
    python -m benchmarks.recognition timm 'resnet*' 'vit_*'    # those whose names match
    python -m benchmarks.recognition --write                   # anew: weights/signatures.txt

Networks are built without memory for their weights, with 10 classes, so the table says whether
names and shapes alone tell the network. A network whose names and shapes another one has too is
told apart by its logits when its weights are at hand, or else listed with the other.
"""

import argparse
import importlib
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import channelscope
from channelscope.errors import UserError
from channelscope.weights.architectures import LIBRARIES, External
from channelscope.weights.recognise import compare_tensors, read_signatures, sign

CLASSES = 10
TABLE = Path(channelscope.__file__).parent / "weights" / "signatures.txt"
AUXILIARY = ("torchvision:googlenet", "torchvision:inception_v3")


def list_names(library: str) -> list[str]:
    """List a library's classifiers."""
    if library == "torchvision":
        from torchvision import models

        names = models.list_models(models)
    else:
        names = importlib.import_module("timm").list_models()
    return [f"{library}:{name}" for name in names]


def list_variants(name: str) -> Iterator[External]:
    """List the ways to build a network that change the names of its tensors."""
    yield External(arch=name, classes=CLASSES)
    if name in AUXILIARY:
        yield External(arch=name, classes=CLASSES, args={"aux_logits": False})


def write_table(names: list[str]) -> None:
    """Write the signatures of all networks."""
    rows: dict[str, tuple[int, list[str]]] = {}
    for name in names:
        for external in list_variants(name):
            try:
                shapes = external.build_shapes()
            except UserError as error:
                print(f"{name}: {error}", flush=True)
                continue
            count = sum(not key.endswith("num_batches_tracked") for key in shapes)
            rows.setdefault(sign(shapes), (count, []))[1].append(name)
    lines = [f"{key} {count} {' '.join(group)}\n" for key, (count, group) in rows.items()]
    TABLE.write_text("".join(lines), "utf-8")


def try_network(name: str) -> tuple[str, float]:
    """Recognise one network by its names and shapes; return the answer and the seconds it took."""
    state = External(arch=name, classes=CLASSES).build_shapes()
    start = time.perf_counter()
    fitting = []
    for other in read_signatures().get(sign(state), (0, []))[1]:
        if fitting and fitting[0].startswith("torchvision:") and other.startswith("timm:"):
            break
        shapes = External(arch=other, classes=CLASSES).build_shapes()
        if compare_tensors(other, state, shapes).is_none:
            fitting.append(other)
    seconds = time.perf_counter() - start
    if fitting == [name]:
        return "recognised", seconds
    if name in fitting:
        return f"one of {len(fitting)}: {' '.join(fitting)}", seconds
    return " ".join(fitting) or "not recognised", seconds


def main() -> None:
    """Try the networks that are named, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="torchvision, timm, patterns of names")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    libraries = [word for word in args.words if word in LIBRARIES] or list(LIBRARIES)
    patterns = [word for word in args.words if word not in LIBRARIES] or ["*"]
    names = [
        name
        for library in libraries
        for name in list_names(library)
        if any(fnmatchcase(name.partition(":")[2], pattern) for pattern in patterns)
    ]
    if args.write:
        write_table(names)
        return
    answers = []
    for name in names:
        answer, seconds = try_network(name)
        answers.append(answer)
        print(f"{name:<60} {seconds:6.2f} s  {answer}", flush=True)
    clear = sum(answer == "recognised" for answer in answers)
    shared = sum(answer.startswith("one of") for answer in answers)
    print(f"{clear} of {len(answers)} recognised alone, {shared} among others of the same tensors")


if __name__ == "__main__":
    main()
