"""The sections of a recipe: what each setting means and the values that it takes."""

import dataclasses
import math
from dataclasses import dataclass, field
from itertools import pairwise
from reprlib import repr as short
from typing import Any, Self

from channelscope.errors import UserError, suggest

_Number = tuple[float, float]  # the lowest and the highest value


def _number(low: float, high: float, **default: Any) -> Any:
    return field(metadata={"reads": _read_number, "takes": (low, high)}, **default)


def _whole(low: int, high: float, **default: Any) -> Any:
    return field(metadata={"reads": _read_whole, "takes": (low, high)}, **default)


def _word(*words: str, **default: Any) -> Any:
    return field(metadata={"reads": _read_word, "takes": words}, **default)


def _flag(**default: Any) -> Any:
    return field(metadata={"reads": _read_flag, "takes": ()}, **default)


def _listed(one: Any, **default: Any) -> Any:
    return field(metadata={"reads": _read_list, "takes": one.metadata}, **default)


class _Section:
    """A recipe's section, which checks its values."""

    @classmethod
    def of(cls, name: str, values: Any) -> Self:
        """Make the section of plain values; UserError for what is missing, unknown or does not do."""
        known = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if not isinstance(values, dict):
            raise UserError(f"A recipe's {name} is a section of settings, not {shown(values)}.")
        if unknown := values.keys() - known.keys():
            raise UserError(
                f"A recipe has no setting {name}.{min(unknown)}.{suggest(min(unknown), known)}"
            )
        needed = {
            key
            for key, item in known.items()
            if item.default is item.default_factory is dataclasses.MISSING
        }
        if missing := needed - values.keys():
            raise UserError(f"The recipe does not say {name}.{min(missing)}: add it.")
        read = {}
        for key, value in values.items():
            how = known[key].metadata
            read[key] = how["reads"](f"{name}.{key}", value, how["takes"])
        return cls(**read)


def shown(value: Any) -> str:
    """Write a value into a sentence, cut short where it is long."""
    try:
        return short(value)
    except ValueError:  # Python writes no number of so many digits
        return "a number of thousands of digits"


def _quotient(text: str) -> float:
    """Read 0.1 or 8/255; of whole numbers that floats can hold the quotient is exact to the last bit."""
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)


def _read_number(name: str, value: Any, takes: _Number) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = _quotient(value) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise UserError(
            f"A recipe's {name} is a number such as 0.1 or 8/255, not {shown(value)}."
        ) from error
    if not takes[0] <= number <= takes[1]:
        raise UserError(
            f"A recipe's {name} lies between {takes[0]:g} and {takes[1]:g}, not at {number:g}."
        )
    return number


def _read_whole(name: str, value: Any, takes: _Number) -> int:
    if type(value) is not int or not takes[0] <= value <= takes[1]:
        raise UserError(
            f"A recipe's {name} is a whole number from {takes[0]} to {takes[1]:,.0f}, not {shown(value)}."
        )
    return value


def _read_word(name: str, value: Any, takes: tuple[str, ...]) -> str:
    if not isinstance(value, str) or (takes and value not in takes):
        choice = f"one of {', '.join(takes)}" if takes else "a word"
        meant = suggest(value, takes) if isinstance(value, str) else ""
        raise UserError(f"A recipe's {name} is {choice}, not {shown(value)}.{meant}")
    return value


def _read_flag(name: str, value: Any, _takes: object) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"A recipe's {name} is true or false, not {shown(value)}.")
    return value


def _read_list(name: str, value: Any, takes: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"A recipe's {name} is a list, as in [0.5, 0.75], not {shown(value)}.")
    return tuple(takes["reads"](name, item, takes["takes"]) for item in value)


def _read_start(name: str, value: Any, takes: _Number) -> float | bool:
    return True if value is True else _read_number(name, value, takes)


def _read_options(name: str, value: Any, _takes: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(
        isinstance(item, bool | int | float | str) for item in value.values()
    ):
        raise UserError(
            f"A recipe's {name} are numbers, words, true or false by name, not {shown(value)}."
        )
    return dict(value)


@dataclass(frozen=True, kw_only=True)
class Model(_Section):
    """Which network: see ``models.Architecture``."""

    arch: str = _word()
    width: int | None = _whole(1, 1024, default=None)


@dataclass(frozen=True, kw_only=True)
class Optimizer(_Section):
    """SGD: the images of a step, in ``accumulate`` portions one after the other where memory is short."""

    batch_size: int = _whole(2, 1e6)
    lr: float = _number(1e-12, 1e6)
    momentum: float = _number(0, 1)
    weight_decay: float = _number(0, 1)
    nesterov: bool = _flag(default=False)
    accumulate: int = _whole(1, 1e4, default=1)


@dataclass(frozen=True, kw_only=True)
class Schedule(_Section):
    """How long, and how the learning rate changes.

    Args:
        shape: "steps": a tenth from each of ``milestones`` on, shares of the epochs; "one-cycle": up on a straight line
            from 0 in the first 40 % of the epochs, and down to 0; "cosine": half a cosine down to 0; "flat".
        epochs: at most.
        milestones: see shape.
        patience: stop early after so many epochs without a better one on the validation part; 0 for never.
    """

    shape: str = _word("steps", "one-cycle", "cosine", "flat")
    epochs: int = _whole(1, 1e6)
    milestones: tuple[float, ...] = _listed(_number(0, 1), default=())
    patience: int = _whole(0, 1e6, default=0)

    def factor(self, epoch: float) -> float:
        """Give the share of the learning rate at a moment, in epochs from 0."""
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
class Augmentation(_Section):
    """Of the training images: padding of the random crop in pixels, and mirroring."""

    crop: int = _whole(0, 1e4)
    flip: bool = _flag()


@dataclass(frozen=True, kw_only=True)
class Attack(_Section):
    """The attack of training and validation: PGD within the L-inf ball.

    Args:
        eps, step: radius and length of a step, in [0, 1] image units.
        steps: how many.
        start: true: anywhere in the ball; a number: normal noise of that standard deviation (in training).
        tau: of FAT's early stopping, in training: the steps that an image is attacked on once it is misclassified; the
            numbers follow each other at ``tau_milestones``, shares of the epochs. None: no early stopping.
        beta_atk: weight of the probes in the loss that is attacked.
    """

    eps: float = _number(0, 1)
    steps: int = _whole(1, 1e5)
    step: float = _number(0, 1)
    start: float | bool = field(default=True, metadata={"reads": _read_start, "takes": (0, 1)})
    tau: tuple[int, ...] = _listed(_whole(0, 1e5), default=())
    tau_milestones: tuple[float, ...] = _listed(_number(0, 1), default=())
    beta_atk: float = _number(0, 1e6, default=2.0)

    def __post_init__(self) -> None:
        if self.tau and len(self.tau) != len(self.tau_milestones) + 1:
            raise UserError("A recipe's attack.tau has one number more than attack.tau_milestones.")
        if any(later < earlier for earlier, later in pairwise(self.tau_milestones)):
            raise UserError("A recipe's attack.tau_milestones grow.")

    def tau_at(self, epoch: int, epochs: int) -> int | None:
        """Give FAT's tau in an epoch, counted from 0; None without early stopping."""
        return (
            self.tau[sum(epoch >= round(share * epochs) for share in self.tau_milestones)]
            if self.tau
            else None
        )


@dataclass(frozen=True, kw_only=True)
class Loss(_Section):
    """What is minimised: see ``objectives``.

    Args:
        kind: "natural" or "adversarial": cross-entropy of natural or of adversarial images; "trades"; "mart".
        trade_off: weight of the robust term of TRADES and MART.
        smoothing: of the labels, in the cross-entropy.
    """

    kind: str = _word("natural", "adversarial", "trades", "mart")
    trade_off: float = _number(0, 1e6, default=6.0)
    smoothing: float = _number(0, 1, default=0.0)


@dataclass(frozen=True, kw_only=True)
class Gates(_Section):
    """The gates, if any.

    Args:
        kind: "none" or one of ``selection.KINDS``.
        layers: the gated layers, by name or pattern (``layer4.*``), alternatives divided by ``|``; none given: the
            blocks of the last stage, at most the last two.
        probes: of CIFS and CAS: "linear" or "two-layer" for each layer, the last for the last; the first is repeated.
        beta: weight of the probes in the joint loss.
        scaled: multiply the joint loss by 3 / (beta + 1), as CIFS does.
        options: what the gate takes beside: k, imgf, detach, ...
    """

    kind: str = _word(default="none")
    layers: tuple[str, ...] = _listed(_word(), default=())
    probes: tuple[str, ...] = _listed(_word("linear", "two-layer"), default=())
    beta: float = _number(0, 1e6, default=2.0)
    scaled: bool = _flag(default=True)
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"reads": _read_options, "takes": ()}
    )


@dataclass(frozen=True, kw_only=True)
class Averaging(_Section):
    """Which weights are validated and kept.

    Args:
        kind: "none": those of the last step; "ema": their exponential moving average; "swa": the plain mean of those at
            the end of each epoch. An average's BatchNorm statistics are computed anew.
        decay: of the moving average, for each step.
        start: share of the epochs after which averaging begins.
    """

    kind: str = _word("none", "ema", "swa", default="none")
    decay: float = _number(0, 1, default=0.999)
    start: float = _number(0, 1, default=0.5)


@dataclass(frozen=True, kw_only=True)
class Engine(_Section):
    """How it is computed.

    Args:
        precision: "fp32"; "bf16" or "fp16": mixed precision, of which fp16 scales the loss; "fp64": for checks, as
            rounding in 32 bits grows from step to step until runs that only divide the work otherwise differ.
    """

    precision: str = _word("fp32", "bf16", "fp16", "fp64", default="fp32")
