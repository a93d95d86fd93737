"""The sections of a recipe: what each setting means and the values it takes."""

import dataclasses
import math
from dataclasses import dataclass, field
from itertools import pairwise
from reprlib import repr as shorten_repr
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from channelscope.errors import UserError, suggest

# Numbers, annotated with their lowest and highest value.
Share = Annotated[float, (0, 1)]
Weight = Annotated[float, (0, 1e6)]
Changes = dict[str, dict[str, Any]]  # plain values of some settings, by section


class Section:
    """Settings, each with a type that says what values it takes; some are sections themselves."""

    @classmethod
    def from_values(cls, values: Any, name: str = "") -> Self:
        """Make the section of plain values by name.

        Raises:
            UserError: for a setting that is missing, unknown, of another type or out of range.
        """
        if not isinstance(values, dict):
            raise UserError(
                f"A recipe's {name} is a section of settings, not {shorten(values)}: write "
                f"[{name}] and the settings below it."
            )
        prefix = f"{name}." if name else ""
        fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := values.keys() - fields.keys():
            setting = min(unknown)
            raise UserError(f"A recipe has no setting {prefix}{setting}.{suggest(setting, fields)}")
        for key, item in fields.items():
            required = item.default is item.default_factory is dataclasses.MISSING
            if required and key not in values:
                raise UserError(
                    f"The recipe does not set {prefix}{key}: add it, or extend a recipe with it."
                )
        checked = {
            key: _read_value(f"{prefix}{key}", value, fields[key].type)
            for key, value in values.items()
        }
        return cls(**checked)


@dataclass(frozen=True, kw_only=True)
class Model(Section):
    """The network: see ``networks.Architecture``."""

    arch: str
    width: Annotated[int, (1, 1024)] | None = None
    # "data": by the training images' mean and standard deviation, the network's first layer (so by
    # default); "none": the network takes the raw images in [0, 1].
    normalise: Literal["data", "none"] | None = None


@dataclass(frozen=True, kw_only=True)
class Init(Section):
    """The weights that training begins with."""

    file: str  # of a network of the same architecture, as --models takes it
    with_gates: bool = False  # false: the gates begin with random weights


@dataclass(frozen=True, kw_only=True)
class Optimizer(Section):
    """SGD, as ``torch.optim.SGD`` has it."""

    batch_size: Annotated[int, (2, 1e6)]
    lr: Annotated[float, (1e-12, 1e6)]  # the highest learning rate
    momentum: Share
    weight_decay: Share
    nesterov: bool = False
    # Portions of a step, computed one after the other to save memory.
    accumulate: Annotated[int, (1, 1e4)] = 1


@dataclass(frozen=True, kw_only=True)
class Schedule(Section):
    """How long the training lasts, and how the learning rate changes."""

    # "steps": divided by 10 at each milestone; "one-cycle": linearly up from 0 in the first 40 % of
    # the epochs, then down to 0; "cosine": half a cosine down to 0.
    shape: Literal["steps", "one-cycle", "cosine", "flat"]
    epochs: Annotated[int, (1, 1e6)]
    milestones: tuple[Share, ...] = ()  # shares of the epochs
    # Stop after so many epochs without a better one on the validation images; 0: never.
    patience: Annotated[int, (0, 1e6)] = 0
    # Which epoch's weights are saved: the "best" on the validation images (so by default), "last".
    keep: Literal["best", "last"] | None = None

    def factor(self, epoch: float) -> float:
        """Return the factor of the learning rate at a moment, in epochs from 0."""
        done = min(epoch / self.epochs, 1.0)
        match self.shape:
            case "steps":
                return 0.1 ** sum(epoch >= round(share * self.epochs) for share in self.milestones)
            case "one-cycle":
                return min(done / 0.4, (1 - done) / 0.6)
            case "cosine":
                return (1 + math.cos(math.pi * done)) / 2
            case _:
                return 1.0


@dataclass(frozen=True, kw_only=True)
class Augmentation(Section):
    """The training images and their augmentation."""

    crop: Annotated[int, (0, 1e4)]  # padding of the random crop, in pixels
    flip: bool  # mirror every other image, by chance
    # "hold-out": validation images choose the epoch (so by default); "none": they are trained on,
    # too, and the last epoch's weights are saved.
    validation: Literal["hold-out", "none"] | None = None


@dataclass(frozen=True, kw_only=True)
class Attack(Section):
    """The attack of training and validation: PGD in the L-inf ball, in [0, 1] image units."""

    eps: Share
    steps: Annotated[int, (1, 1e5)]
    step: Share  # length of a step
    # True: uniform in the ball; a number: normal noise of that standard deviation, in training.
    start: Share | bool = True
    # FAT's early stopping, in training: the number of further steps on an image that is
    # misclassified. Each milestone, a share of the epochs, goes on to the next number.
    tau: tuple[Annotated[int, (0, 1e5)], ...] = ()
    tau_milestones: tuple[Share, ...] = ()
    beta_atk: Weight = 2.0  # weight of the probes in the attacked loss

    def __post_init__(self) -> None:
        if self.tau and len(self.tau) != len(self.tau_milestones) + 1:
            raise UserError(
                f"attack.tau needs one number more than attack.tau_milestones, and they have "
                f"{len(self.tau)} and {len(self.tau_milestones)}."
            )
        if any(later < earlier for earlier, later in pairwise(self.tau_milestones)):
            raise UserError("The numbers of attack.tau_milestones must grow.")

    def tau_at(self, epoch: int, epochs: int) -> int | None:
        """Return FAT's tau in an epoch, counted from 0; None without early stopping."""
        if not self.tau:
            return None
        return self.tau[sum(epoch >= round(share * epochs) for share in self.tau_milestones)]


@dataclass(frozen=True, kw_only=True)
class Loss(Section):
    """The loss that is minimised: see ``objectives``."""

    # "natural", "adversarial": the cross-entropy of natural or of adversarial images.
    kind: Literal["natural", "adversarial", "trades", "mart"]
    trade_off: Weight = 6.0  # weight of the robust term of TRADES and MART
    smoothing: Share = 0.0  # label smoothing of the cross-entropy
    # WAT: how fast the weights of the classes follow their losses on the validation images, see
    # ``State.class_weights``; left out, all classes weigh the same.
    eta: Weight | None = None


@dataclass(frozen=True, kw_only=True)
class Hbar(Section):
    """The penalty of HBaR, on top of any loss: see ``training.hbar``."""

    features: tuple[str, ...]  # of these layers: names or patterns, as of gated ones
    of_images: Weight = 0.0005  # weight of what they share with the images
    of_labels: Weight = 0.005  # weight of what they share with the labels
    sigma: Annotated[float, (1e-6, 1e6)] = 5.0  # width of the kernels


@dataclass(frozen=True, kw_only=True)
class Gates(Section):
    """The gates, if any."""

    kind: str = "none"  # or one of ``gates.KINDS``
    # Names or patterns (``layer4.*``, ``conv1:input`` for what a layer reads), with alternatives
    # separated by ``|``; empty: where the authors have them, ``Architecture.gate_layers``.
    layers: tuple[str, ...] = ()
    # Of CIFS and CAS: the probe of each layer, the last for the last; the first is repeated.
    probes: tuple[Literal["linear", "two-layer"], ...] = ()
    beta: Weight = 2.0  # weight of the probes in the joint loss
    scaled: bool = True  # multiply the joint loss by 3 / (beta + 1), as CIFS does
    # Of the gate: k, imgf, detach, ...; a list has a value for each layer, as probes have.
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Averaging(Section):
    """Which weights are validated and saved."""

    # "none": those of the last step; "ema": their exponential moving average; "swa": the mean of
    # those at the end of each epoch. An average's BatchNorm statistics are recomputed.
    kind: Literal["none", "ema", "swa"] = "none"
    decay: Share = 0.999  # of the moving average, per step
    start: Share = 0.5  # share of the epochs after which averaging begins


@dataclass(frozen=True, kw_only=True)
class Engine(Section):
    """How the training is computed."""

    # "bf16", "fp16": mixed precision, with a scaled loss for fp16; "fp64": for checks, as rounding
    # errors of 32 bits grow until runs that only share the work differently differ; "auto": fp32 or
    # bf16, whichever is faster on the machine where the run begins.
    precision: Literal["fp32", "bf16", "fp16", "fp64", "auto"] = "fp32"


def shorten(value: Any) -> str:
    """Write a value for an error message, cut short where it is long."""
    try:
        return shorten_repr(value)
    except ValueError:  # Python refuses to print integers of so many digits
        return "a number of thousands of digits"


def _read_value(name: str, value: Any, kind: Any) -> Any:
    """Check a plain value against a setting's type; return it as that type."""
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Section):
        return kind.from_values(value, name)
    if origin in (Union, UnionType):  # a number or true; a value or left out
        return True if value is True and bool in args else _read_value(name, value, args[0])
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_read_value(name, item, args[0]) for item in value)
    if origin is Annotated and args[0] is float:
        return _read_number(name, value, *args[1])
    if origin is dict and get_origin(args[1]) is dict:
        if not isinstance(value, dict):
            raise UserError(f"{name} must be sections of settings, not {shorten(value)}.")
        sections = value.items()
        return {key: _read_value(f"{name}.{key}", item, args[1]) for key, item in sections}
    if wanted := _find_misfit(value, kind):
        hint = suggest(value, args) if origin is Literal and isinstance(value, str) else ""
        raise UserError(f"{name} must be {wanted}, not {shorten(value)}.{hint}")
    if origin is dict:
        return {key: list(item) if isinstance(item, tuple) else item for key, item in value.items()}
    return value


def _find_misfit(value: Any, kind: Any) -> str:
    """Say what values a setting takes if it does not take this one, else return ""."""
    origin, args = get_origin(kind), get_args(kind)
    is_word = isinstance(value, str)
    if origin is Annotated:
        low, high = args[1]
        fits = type(value) is int and low <= value <= high
        return "" if fits else f"a whole number from {low} to {high:,.0f}"
    if origin is Literal:
        return "" if is_word and value in args else f"one of {', '.join(args)}"
    if origin is tuple:
        return "a list, as in [0.5, 0.75]"
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    if kind is str:
        return "" if is_word else "a word"
    # The options of a gate, which checks them itself.
    fits = isinstance(value, dict) and all(map(_is_option, value.values()))
    return "" if fits else "numbers, words, true or false by name, or lists of these"


def _is_option(value: Any) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(item, bool | int | float | str) for item in items)


def _read_number(name: str, value: Any, low: float, high: float) -> float:
    """Read a number, or a fraction such as 8/255, which is rounded once."""
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, str):
            above, _, below = value.partition("/")
            number = float(above) / float(below or 1)
        else:
            number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise UserError(
            f"{name} must be a number such as 0.1 or 8/255, not {shorten(value)}."
        ) from error
    if not low <= number <= high:
        raise UserError(f"{name} must be between {low:g} and {high:g}, not {number:g}.")
    return number
