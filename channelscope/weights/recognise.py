"""Networks recognised by the names and shapes of their tensors alone.

First the networks for small images, ours and those of papers' releases, then torchvision's
classifiers, then, where it is installed, timm's, last chains of layers. ``signatures.txt`` says
which of a library's networks have which names of tensors, so that few are built to compare shapes;
building takes no memory. ``benchmarks/recognition.py`` writes it and tries all of them.
"""

import hashlib
import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from channelscope.errors import UserError, join_first
from channelscope.networks import Architecture
from channelscope.weights.architectures import External, MisfitError, Value
from channelscope.weights.chains import match_chain
from channelscope.weights.checkpoints import build
from channelscope.weights.cifar import AmbiguousError, Match, match_cifar
from channelscope.weights.files import State, Weights

_SIGNATURES = Path(__file__).parent / "signatures.txt"
_COUNTER = "num_batches_tracked"  # of BatchNorm: files of old torch lack it, and nothing needs it
_MOST_NEAREST = 6  # networks that are built to find the nearest
_LEAST_LIKENESS = 0.2  # of what is told as the nearest
_MOST_COMPARED = 8  # networks of the same tensors whose logits are compared
_HEADS = ("fc", "classifier", "head", "heads", "linear", "logits")
_BLURRED = re.compile(r"(?<=resnet)(aa|blur)")  # in timm's names: no tensor tells it
_NAMED = 3  # tensors that a sentence names


@dataclass(frozen=True)
class Difference:
    """How a file's tensors differ from a network's.

    Args:
        name: the network.
        missing: tensors of the network that the file lacks.
        extra: tensors of the file that the network lacks.
        reshaped: tensor -> the file's shape and the network's.
        common: number of tensors of the same name and shape.
    """

    name: str
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    common: int

    @property
    def is_none(self) -> bool:
        """Whether the tensors are the same."""
        return not (self.missing or self.extra or self.reshaped)

    @property
    def likeness(self) -> float:
        """The share of the tensors that are alike."""
        others = len(self.missing) + len(self.extra) + len(self.reshaped)
        return self.common / max(1, self.common + others)

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"the file lacks {join_first(self.missing, _NAMED, 'tensors')}")
        if self.extra:
            parts.append(f"has {join_first(self.extra, _NAMED, 'tensors')} besides")
        for key, (theirs, expected) in list(self.reshaped.items())[:_NAMED]:
            parts.append(f"{key} is {theirs} in the file and {expected} there")
        if len(self.reshaped) > _NAMED:
            parts.append(f"{len(self.reshaped) - _NAMED} more tensors have other shapes")
        return ", ".join(parts)


def compare_tensors(
    name: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> Difference:
    """Compare the names and shapes of a file's tensors with those of a network."""
    theirs = {key: tuple(item.shape) for key, item in state.items() if not key.endswith(_COUNTER)}
    shapes = {
        key: tuple(item.shape) for key, item in expected.items() if not key.endswith(_COUNTER)
    }
    both = theirs.keys() & shapes.keys()
    return Difference(
        name,
        missing=tuple(key for key in shapes if key not in theirs),
        extra=tuple(key for key in theirs if key not in shapes),
        reshaped={
            key: (theirs[key], shapes[key])
            for key in shapes
            if key in both
            if theirs[key] != shapes[key]
        },
        common=sum(theirs[key] == shapes[key] for key in both),
    )


def recognise(weights: Weights) -> Match:
    """Recognise a network by its tensors.

    Raises:
        UserError: where several fit, which are listed; or where none does, with the nearest and
            what differs.
    """
    differences: list[Difference] = []
    for state in reversed(weights.states):
        try:
            matches = _list_matches(state.tensors, differences)
        except AmbiguousError as error:
            raise UserError(f"{weights.path} is not recognised: {error}") from error
        if len(matches) > 1:
            names = ", ".join(str(one.architecture.arch) for one in matches)
            raise UserError(
                f"{weights.path} holds the tensors of several networks ({names}), which compute "
                "different logits: name the right one with --arch."
            )
        if matches:
            return add_normalisation(matches[0], *_choose_statistics(weights, state))
    raise _explain(weights, differences)


def _list_matches(state: Mapping[str, Tensor], differences: list[Difference]) -> list[Match]:
    match = _check_cifar(state, differences)
    if match is not None:
        return [match]
    if matches := _match_libraries(state):
        return matches
    chain = match_chain(state)
    return [chain] if chain is not None else []


def match_named(weights: Weights, arch: str, args: Mapping[str, Value]) -> Match:
    """Match a file's tensors with a network that is named.

    Args:
        weights: of the file.
        arch: as for ``architectures.External``, or a name of ``networks.Architecture``.
        args: arguments of the builder.

    Raises:
        UserError: where the network's tensors are others; the sentence says what differs.
    """
    differences = []
    for state in weights.states:
        for classes in _guess_classes(state.tensors):
            external = External(arch=arch, classes=classes, args=args)
            expected = external.build_shapes()
            difference = compare_tensors(arch, state.tensors, expected)
            if difference.is_none:
                if external.is_code:  # which is not told of classes, and has tensors in its order
                    external = replace(external, classes=_guess_classes(expected)[0])
                match = Match(arch, external, complete_state(state.tensors, expected))
                return add_normalisation(match, *_choose_statistics(weights, state))
            differences.append(difference)
            if external.is_code:
                break
    nearest = max(differences, key=lambda one: one.likeness)
    raise MisfitError(
        f"arch: {arch} does not fit {weights.path}: {nearest}. Name another architecture, or its "
        "arguments with --arch-args NAME=VALUE."
    )


def complete_state(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Add BatchNorm's counters where an old file lacks them, and drop those of no use."""
    return {
        key: state[key] if key in state else torch.zeros_like(item, device="cpu")
        for key, item in expected.items()
    }


def add_normalisation(
    match: Match, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Match:
    """Put a normalisation before a network that was recognised; None leaves it as it is.

    Raises:
        UserError: for statistics of another number of channels.
    """
    if mean is None or std is None:
        return match
    if isinstance(match.architecture, External):
        return replace(match, architecture=replace(match.architecture, mean=mean, std=std))
    channels = len(match.architecture.mean)
    if len(mean) not in (1, channels):
        raise UserError(
            f"normalise: {len(mean)} numbers for a network of {channels} input channels: name one "
            "for each."
        )
    mean, std = (values * (channels // len(values)) for values in (mean, std))
    state = dict(match.state)
    for name, values in (("mean", mean), ("std", std)):
        key = f"{'cnn.' if match.gates else ''}normalise.{name}"
        state[key] = torch.tensor(values, dtype=state[key].dtype, device="cpu").view(-1, 1, 1)
    architecture = replace(match.architecture, mean=mean, std=std)
    return replace(match, architecture=architecture, state=state)


def _choose_statistics(
    weights: Weights, state: State
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if state.mean is not None:
        return state.mean, state.std
    return weights.mean, weights.std


def _check_cifar(state: Mapping[str, Tensor], differences: list[Difference]) -> Match | None:
    """Match the networks for small images; note what differs where the match is not whole."""
    match = match_cifar(state)
    if match is None:
        return None
    try:
        if isinstance(match.architecture, Architecture):
            with torch.device("meta"):
                expected = build(match.architecture, match.gates).state_dict()
        else:
            expected = match.architecture.build_shapes()
    except (UserError, RuntimeError):  # numbers out of range, or a gate where there is no layer
        return None
    difference = compare_tensors(match.name, match.state, expected)
    if difference.is_none:
        return replace(match, state=complete_state(match.state, expected))
    differences.append(difference)
    return None


# ---------------------------------------------------------------- libraries


def sign(keys: Iterable[str]) -> str:
    """Return the signature of a network: a digest of the names of its tensors."""
    names = sorted(key for key in keys if not key.endswith(_COUNTER))
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()[:10]


@cache
def read_signatures() -> dict[str, tuple[int, list[str]]]:
    """Read the table of signatures: signature -> number of tensors, and networks that have it."""
    table = {}
    for line in _SIGNATURES.read_text("utf-8").splitlines():
        signature, count, *names = line.split()
        table[signature] = int(count), names
    return table


def _match_libraries(state: Mapping[str, Tensor]) -> list[Match]:
    """List the networks of torchvision, else those of timm, whose tensors are the same."""
    names = read_signatures().get(sign(state), (0, []))[1]
    for library in ("torchvision", "timm"):
        if importlib.util.find_spec(library) is None:
            continue
        wanted = [name for name in names if name.startswith(f"{library}:")]
        matches = [match for name in wanted if (match := _match_library(name, state))]
        if matches:
            return [_tell_blurred(match, names) for match in _drop_same(matches)]
    return []


def _tell_blurred(match: Match, names: Sequence[str]) -> Match:
    """Tell which networks of the same tensors blur before they stride, and so are not meant."""
    kind = str(match.architecture.arch).partition(":")[2]
    blurred = [
        name
        for name in names
        if name.startswith("timm:") and _BLURRED.sub("", name) == f"timm:{kind}" != name
    ]
    if not blurred:
        return match
    return replace(
        match, assumed=f"strides without blur; for {' or '.join(blurred)}, name it with --arch"
    )


def _match_library(name: str, state: Mapping[str, Tensor]) -> Match | None:
    """Match a library's network, of the classes that the last layers may have."""
    for external in _list_variants(name, state):
        try:
            expected = external.build_shapes()
        except UserError:  # no network of the installed version
            continue
        if compare_tensors(name, state, expected).is_none:
            title = name.replace(":", " ")
            return Match(title, external, complete_state(state, expected))
    return None


def _list_variants(name: str, state: Mapping[str, Tensor]) -> list[External]:
    """List the ways to build a library's network that the tensors leave open."""
    args: dict[str, Value] = {}
    stem = next((item for item in state.values() if item.ndim == 4), None)
    if name.startswith("timm:") and stem is not None and stem.shape[1] != 3:
        args["in_chans"] = stem.shape[1]
    if name in ("torchvision:googlenet", "torchvision:inception_v3"):
        args["aux_logits"] = any(key.startswith(("aux1.", "AuxLogits.")) for key in state)
    return [External(arch=name, classes=classes, args=args) for classes in _guess_classes(state)]


def _guess_classes(state: Mapping[str, Tensor]) -> list[int]:
    """List the numbers of classes that a network may have, the likeliest first."""
    items = [(key, item) for key, item in state.items() if item.ndim]
    heads = [item.shape[0] for key, item in items if set(key.split(".")) & set(_HEADS)]
    numbers = [items[-1][1].shape[0], *reversed(heads)] if items else [0]
    return list(dict.fromkeys(numbers))[:_NAMED]


def _drop_same(matches: list[Match]) -> list[Match]:
    """Drop networks that compute the same logits as an earlier one."""
    if not 1 < len(matches) <= _MOST_COMPARED:
        return matches
    different: list[Match] = []
    outputs: list[Tensor] = []
    for match in matches:
        output = _compute_logits(match)
        if output is None:
            return matches
        if not any(torch.equal(output, other) for other in outputs):
            different.append(match)
            outputs.append(output)
    return different


def _compute_logits(match: Match) -> Tensor | None:
    """Compute a network's logits of a random image; None where it takes no such image."""
    if not isinstance(match.architecture, External):
        return None
    network = match.architecture.build_with(match.state)
    channels = int(match.architecture.args.get("in_chans", 3))  # type: ignore[arg-type]
    side = get_image_side(match.architecture.arch)
    image = torch.rand(
        1, channels, side, side, generator=torch.Generator("cpu").manual_seed(0), device="cpu"
    )
    try:
        with torch.no_grad():
            output = network(image)
    except Exception:  # whatever a network does with an image of a size that it does not take
        return None
    return output if isinstance(output, Tensor) else None


def get_image_side(arch: str) -> int:
    """Return the height and width of the images that a library's network is made for."""
    library, _, name = arch.partition(":")
    if library == "timm":
        import timm

        settings = timm.get_pretrained_cfg(name)
        return int(settings.input_size[1]) if settings else 224
    return 224 if library == "torchvision" else 32


# ---------------------------------------------------------------- none


def _explain(weights: Weights, differences: list[Difference]) -> UserError:
    """Return the sentence on a network that is not recognised: the nearest, and what differs."""
    if weights.written_as is not None:
        return UserError(
            f"{weights.path} holds a {weights.written_as} of transformers, whose networks are not "
            "recognised: name code of your own that builds it, --arch FILE.py:NAME, such as a "
            "function that returns transformers.AutoModelForImageClassification.from_config("
            f"transformers.AutoConfig.from_pretrained({str(weights.path)!r}))."
        )
    state = weights.states[-1].tensors
    candidates = [*differences, *_find_nearest(state)]
    advice = (
        "name its architecture with --arch, such as torchvision:resnet50 or, for code of your own, "
        "FILE.py:NAME"
    )
    nearest = max(candidates, key=lambda one: one.likeness, default=None)
    if nearest is None or nearest.likeness < _LEAST_LIKENESS:
        names = [key for key in state if not key.endswith(_COUNTER)]
        return UserError(
            f"{weights.path} holds a network that is not recognised, with the tensors "
            f"{join_first(names, _NAMED, 'tensors')}: {advice}."
        )
    return UserError(
        f"{weights.path} holds a network that is not recognised; the nearest is {nearest.name}, "
        f"but {nearest}: {advice}."
    )


def _find_nearest(state: Mapping[str, Tensor]) -> list[Difference]:
    """Compare with that network of torchvision which is nearest, of about as many tensors."""
    count = sum(not key.endswith(_COUNTER) for key in state)
    exact = read_signatures().get(sign(state), (0, []))[1]
    near = sorted(read_signatures().values(), key=lambda entry: abs(entry[0] - count))
    names = [*exact, *(name for _, names in near for name in names)]
    chosen = [name for name in dict.fromkeys(names) if name.startswith("torchvision:")]
    differences = [
        compare_tensors(name, state, shapes)
        for name in chosen[:_MOST_NEAREST]
        if (shapes := _build_shapes(name))
    ]
    nearest = max(differences, key=lambda one: one.likeness, default=None)
    if nearest is None or nearest.likeness < _LEAST_LIKENESS:
        return []
    external = External(arch=nearest.name, classes=max(1, _guess_classes(state)[0]))
    return [compare_tensors(nearest.name, state, external.build_shapes())]


@cache
def _build_shapes(name: str) -> dict[str, Tensor]:
    """Build the tensors of a library's network of 1,000 classes; none where it cannot be built."""
    try:
        return External(arch=name, classes=1000).build_shapes()
    except UserError:  # no network of the installed version
        return {}
