"""Attacks by their short names, which each registers where it is written."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any, TypeVar

from channelscope.attacks.ball import Norm
from channelscope.attacks.base import Attack, AttackLike
from channelscope.errors import UserError, suggest
from channelscope.objectives import (
    Objective,
    OfHeads,
    cross_entropy,
    get_loss,
    is_head_loss,
    name_objective,
    parse_objective,
)

A = TypeVar("A", bound=type[Attack])
FIXED = "fixed"  # after a name's colon: begun at the image itself, as a field random_start says
# What follows a name's colon besides: what it is, for lists.
_SETTINGS = {
    f":{FIXED}": "begun at the image itself (attacks with a random start)",
    ":joint[BETA]": (
        "on the joint loss, with this weight of the gates' probes, 0 to inf; 2 unless given"
    ),
    ":probeNUMBER, :probe-LAYER": "on one gate's probe alone, the first, second, ... or at a layer",
    ":margin, :dlr": "on this loss, as in pgd-20:margin, which is cw-20",
}
_FIELD = re.compile("[A-Z_]+")


@dataclass(frozen=True)
class AttackName:
    """A short name, from which an attack is made and which it prints.

    Args:
        template: capitals stand for a whole number, the field of that name; what is in brackets is
            left out where its fields have their defaults; ``[-l2]`` is the norm. A template that
            begins with a colon is a change: it follows the name of the attack that it changes.
        help: one line.
        cost: attack -> forward and backward passes an image, at most (a forward pass alone: 1/3).
        kind: the class of the attack.
        preset: fields that the name stands for.
    """

    template: str
    help: str
    cost: Callable[[Any], float]
    kind: type[Attack]
    preset: Mapping[str, Any]

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The names as a regular expression, with a group for each field and for the norm."""
        pattern = _FIELD.sub(
            lambda field: f"(?P<{field[0].lower()}>[0-9]{{1,6}})", re.escape(self.template)
        )
        pattern = pattern.replace(r"\[\-l2\]", "(?P<l2>-l2)?")
        return re.compile(pattern.replace(r"\[", "(?:").replace(r"\]", ")?"))

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The fields of an attack of which the name says nothing more."""
        fields = dataclasses.fields(self.kind)
        return {field.name: field.default for field in fields} | dict(self.preset)

    @cached_property
    def example(self) -> str:
        """The name with all defaults."""
        return self._fill(SimpleNamespace(**self.defaults))

    def parse(self, name: str, **fields: Any) -> Attack | None:
        """Return the attack of a name, with further fields where it has them; None if none fits."""
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        texts = {field: text for field, text in match.groupdict().items() if text and field != "l2"}
        numbers = {field: int(text) for field, text in texts.items()}
        fields = {field: value for field, value in fields.items() if field in self.defaults}
        return self.kind(**fields | dict(self.preset) | numbers)

    def fits(self, attack: Attack) -> bool:
        """Tell whether an attack's fields are those that the name stands for.

        A name that stands for an objective fits one that takes this loss of other heads, too.
        """
        fields = {field: getattr(attack, field) for field in self.preset}
        if "objective" in fields:
            fields["objective"] = get_loss(fields["objective"])
        return fields == dict(self.preset)

    def format(self, attack: Any) -> str:
        """Return an attack's name."""
        name = self._fill(attack)
        if name.startswith(":"):
            return attack_name(attack.attack) + name
        loss, parts = get_loss(attack.objective), [name]
        if loss != self.preset.get("objective", cross_entropy):
            parts.append(name_objective(loss))
        if attack.objective != loss:
            parts.append(name_objective(attack.objective))
        if self.defaults.get("random_start") and attack.random_start is False:
            parts.append(FIXED)
        return ":".join(parts)

    def _fill(self, attack: Any) -> str:
        """Put an attack's fields into the template, from the innermost brackets outwards."""

        def fill(part: str) -> str:
            return _FIELD.sub(lambda field: str(getattr(attack, field[0].lower())), part)

        def fill_option(option: re.Match[str]) -> str:
            fields = [field.lower() for field in _FIELD.findall(option[1])]
            is_default = all(getattr(attack, field) == self.defaults[field] for field in fields)
            if option[1] == "-l2":
                is_default = attack.norm == "inf"
            # \0 marks an option that is shown, and so shows the one around it.
            return "" if is_default and "\0" not in option[1] else f"{fill(option[1])}\0"

        name = self.template
        while "[" in name:
            name = re.sub(r"\[([^\[\]]*)\]", fill_option, name)
        return fill(name).replace("\0", "")


ATTACKS: dict[str, AttackName] = {}  # by template


def register(
    template: str, help: str, *, cost: Callable[[Any], float] | float, **preset: Any
) -> Callable[[A], A]:
    """Enter a class of attacks under a name; see ``AttackName``.

    Of several names an attack prints the first that fits.

    Raises:
        ValueError: for a name that stands for no fields of the class, or is another attack's.
    """

    def enter(kind: A) -> A:
        count = cost if callable(cost) else lambda _: cost
        entry = AttackName(template, help, count, kind, preset)
        _check_name(entry)
        ATTACKS[template] = entry
        # Of several decorators the last is applied first. A subclass has names of its own.
        kind.names = (entry, *vars(kind).get("names", ()))
        return kind

    return enter


def _check_name(entry: AttackName) -> None:
    """Raise a ValueError for a name that would not be parsed, or not as this attack."""
    start, names = f"The attack's name {entry.template!r}", {*entry.preset}
    names |= {field.lower() for field in _FIELD.findall(entry.template)}
    if unknown := names - {field.name for field in dataclasses.fields(entry.kind)}:
        raise ValueError(
            f"{start} needs a field {min(unknown)!r}, which {entry.kind.__name__} does not have: "
            "capitals stand for fields, and @register stands above @dataclass."
        )
    try:
        is_parsed = entry.pattern.fullmatch(entry.example) and ":" not in entry.template[1:]
    except re.error as error:
        raise ValueError(f"{start} is no template ({error}).") from error
    if not is_parsed:
        raise ValueError(
            f"{start} is not parsed with its defaults, {entry.example!r}: a field outside brackets "
            "has a whole number as its default, and only a change begins with a colon."
        )
    for other in ATTACKS.values():
        if other.pattern.fullmatch(entry.example) or entry.pattern.fullmatch(other.example):
            raise ValueError(f"{start} is that of another attack, {other.template!r}: rename it.")


def attack_name(attack: AttackLike | str) -> str:
    """Return an attack's short name or, without one, that of its class or function."""
    if isinstance(attack, str):
        return attack
    kind = type(attack)
    has_text = kind.__str__ is not object.__str__ or kind.__repr__ is not object.__repr__
    if hasattr(attack, "__name__") or not has_text:
        return str(getattr(attack, "__name__", kind.__name__))
    return str(attack)


def parse_attack(
    name: str,
    *,
    eps: float = 8 / 255,
    norm: Norm = "inf",
    objective: Objective = cross_entropy,
    suites: Iterable[str] = (),
) -> Attack:
    """Return the attack of a short name, such as an attack prints.

    Names are the templates of ``ATTACKS``. A colon is followed by the objective (``pgd-20:joint``),
    by ``fixed`` for a start at the image itself, or by what changes the attack
    (``pgd-20:joint-sweep:detached``); such a change alone is one of PGD-20 (``joint-sweep``). The
    joint loss and a probe's are of what the attack maximises: cross-entropy, or in ``cw-30:joint``
    the margin.

    >>> str(parse_attack("pgd-100x5-l2"))
    'pgd-100x5-l2'
    >>> str(parse_attack("cw-30:fixed:joint0.1"))
    'cw-30:joint0.1:fixed'

    Args:
        name: the short name.
        eps: radius of the ball in image units.
        norm: of a name without ``-l2``.
        objective: what is maximised where the name does not say it.
        suites: further names to suggest for one that is unknown.

    Raises:
        UserError: for any other name.
    """
    head, *changes = name.split(":")
    change, l2, _ = head.partition("-l2")
    if any(entry.pattern.fullmatch(f":{change}") for entry in ATTACKS.values()):
        head, changes = f"pgd-20{l2}", [change, *changes]
    fields = {"eps": eps, "norm": "2" if l2 else norm, "objective": objective}
    attack, examples = _parse(head, **fields), [entry.example for entry in ATTACKS.values()]
    if attack is None and l2 and _parse(change):
        raise _unknown(name, f": {change} has no -l2 in its name, use --norm 2 (norm='2').")
    if attack is None:
        raise _unknown(name, f".{suggest(head, [*examples, *suites])}")
    for change in changes:
        changed = _parse(f":{change}", attack=attack)
        if change == FIXED and (changed := _fix_start(attack)) is None:
            raise _unknown(name, f": {attack} has no random start to leave out, or several.")
        loss = None if changed else parse_objective(change, eps)
        if loss is not None:
            changed = _set_objective(attack, loss)
            if changed is None:
                raise _unknown(name, f": {attack} takes no objective {change}.")
        if changed is None:
            raise _unknown(name, f".{suggest(f':{change}', examples)}")
        attack = changed
    return attack


def _fix_start(attack: Any) -> Any:
    """Return an attack, or the change of one, begun at the image; None where it cannot be.

    Restarts would all be alike.
    """
    if hasattr(attack, "attack"):
        inner = _fix_start(attack.attack)
        return inner and dataclasses.replace(attack, attack=inner)
    if getattr(attack, "restarts", 1) > 1 or not hasattr(attack, "random_start"):
        return None
    return dataclasses.replace(attack, random_start=False) if attack.random_start else attack


def _set_objective(attack: Any, objective: Objective) -> Any:
    """Return an attack with another objective; None where it cannot have it.

    An objective of other heads takes of them the loss that the attack has.
    """
    if "objective" not in vars(attack):
        return None
    if isinstance(objective, OfHeads):
        loss = get_loss(attack.objective)
        if not is_head_loss(loss):
            return None
        objective = dataclasses.replace(objective, loss=loss)
    return dataclasses.replace(attack, objective=objective)


def _parse(name: str, **fields: Any) -> Attack | None:
    attacks = (entry.parse(name, **fields) for entry in ATTACKS.values())
    return next((attack for attack in attacks if attack), None)


def _unknown(name: str, reason: str) -> UserError:
    names = sorted(entry.example for entry in ATTACKS.values() if "/" not in entry.template)
    return UserError(
        f"There is no attack {name!r}{reason} The names are {', '.join(names)}, with other "
        "numbers too, as in pgd-100x5 (5 restarts), and -l2 at the end for the L2 norm; those that "
        "begin with a colon follow another, as in pgd-20:detached, and so do objectives (:joint2, "
        ":probe1, :margin) and :fixed, which leaves out the random start."
    )


def estimate_cost(attack: AttackLike) -> float | None:
    """Return how many forward and backward passes an image takes at most; None if unknown."""
    names = (name for name in getattr(attack, "names", ()) if name.fits(attack))
    return next((name.cost(attack) for name in names), None)


def describe_attacks() -> str:
    """Return two lines for each name: its template, and what it is with the cost of its example."""
    lines = [line for name, what in _SETTINGS.items() for line in (f"  {name}", f"      {what}")]
    for template, entry in sorted(ATTACKS.items()):
        change = template.startswith(":")
        fields = entry.defaults | ({"attack": parse_attack("pgd-20")} if change else {})
        cost = entry.cost(SimpleNamespace(**fields))
        lines += [f"  {template}", f"      {entry.help} ({entry.example}: {cost:.0f} passes)"]
    return "\n".join(lines)
