"""The verdict on a premise of CIFS: the damage is done by NR channels that rise.

CIFS suppresses negatively relevant (NR) channels because an attack raises them (Yan et al., ICML
2021, arXiv 2102.05311). The damage account says how much of what lowers the margin they do:

    value = (damage of NR channels that rise) / (damage of all that lowers the margin)  -  1/2

summed over the broken images, at the penultimate layer, or else the deepest measured. The claim is
that it is above 0: more than half. PR channels that fall are the other way to lose a margin, and a
network whose relevance tells nothing is where the attack is as likely to use either.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from channelscope.analyses.base import Analysis, Study, Verdict, get_primary_layer, register
from channelscope.analyses.claims import Question, find_obstacle, judge_questions
from channelscope.analyses.damage import find_accounted, measure_kinds, share_replicates
from channelscope.analyses.methods import Method, list_methods
from channelscope.statistics.effects import estimate_effect

CLAIM = "NR damage"
_KIND = "NR rises"
_FEWEST = 20  # broken images whose account adds up
_MOST_REFUSED = 0.5  # of the broken images
_TRIFLE = 0.005  # a kind of less is not told of


def judge_nr_damage(study: Study) -> Iterator[Verdict]:
    """Judge on every method whether the damage is done by NR channels that rise."""
    questions = [_ask(study, method) for method in list_methods(study)]
    yield from judge_questions(questions, study.settings["level"])


def _ask(study: Study, method: Method) -> Question:
    """Measure the share of what lowers the margin that NR channels that rise do."""
    layer = get_primary_layer(study, method.models[0])
    lacks = (_find_lack(study, model) for model in method.models)
    if blocked := find_obstacle(study, method) or next(filter(None, lacks), ""):
        return Question(CLAIM, method.label, layer, "", blocked=blocked)
    kinds = [_measure_shares(study, model) for model in method.models]
    share = np.array([shares[_KIND] for shares in kinds])
    effect = estimate_effect([share - 0.5], (1,), study.settings["level"], (-0.5, 0.5))
    parts = {kind: np.mean([shares[kind][0] for shares in kinds]) for kind in kinds[0]}
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    others = ", ".join(f"{part:.0%} {kind}" for kind, part in ordered if part >= _TRIFLE)
    ends = " to ".join(f"{100 * (0.5 + end):.1f}" for end in (effect.low, effect.high))
    statement = (
        f"Of what lowers the margin of {method.label} at {layer}, {100 * share[:, 0].mean():.1f} % "
        f"({100 * study.settings['level']:g} % CI {ends}) is done by negatively relevant channels "
        f"that rise; more than half is claimed. All of it: {others}."
    )
    images = min(_count_images(study, model) for model in method.models)
    return Question(CLAIM, method.label, layer, statement, effect, n=images)


def _count_images(study: Study, model: str) -> int:
    account = study.damage(model).layers[get_primary_layer(study, model)].main
    return int(find_accounted(study, model, account).sum())


def _find_lack(study: Study, model: str) -> str:
    """Say why there is too little to judge by; nothing where there is enough."""
    broken, images = int(study.damage(model).broken.sum()), _count_images(study, model)
    if images < _FEWEST:
        return f"{model}: it takes {_FEWEST} broken images whose account adds up, of {images}."
    if images < (1 - _MOST_REFUSED) * broken:
        return f"{model}: the account of {broken - images} of {broken} images does not add up."
    return ""


def _measure_shares(study: Study, model: str) -> dict[str, Float[ndarray, " r"]]:
    """Return the share of each kind in what lowers the margin, replicate by replicate."""
    layer = get_primary_layer(study, model)
    account = study.damage(model).layers[layer].main
    rows = find_accounted(study, model, account)
    kinds = measure_kinds(study, model, layer, account, rows)
    harms = {kind: np.maximum(values, 0) for kind, values in kinds.items() if kind != "counter"}
    whole = np.sum(list(harms.values()), axis=0)
    shares = {
        kind: share_replicates(values, whole, study.weights[rows]) for kind, values in harms.items()
    }
    return {kind: share for kind, share in shares.items() if kind == _KIND or share[0] > 0}


register(
    Analysis(
        name="nr-damage",
        help="the verdict whether the damage is done by NR channels that rise",
        kinds=("damage",),
        judge=judge_nr_damage,
    )
)
