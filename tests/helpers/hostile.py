"""A comparison of which every name and sentence is hostile at once, and its harmless twin."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from channelscope.result import Result
from helpers.studies import make_result, synthetic_study

# Ways out of text, attributes, comments, styles, scripts and templates; and addresses to ask for.
EVIL = (
    "</td></title></style></script>-->"
    "<script>window.taken = 1; document.title = 'taken'</script>"
    "\"'><img src=x onerror='window.taken = 1'><svg/onload=window.taken=1>"
    "<iframe srcdoc='<script>top.taken=1</script>'></iframe>"
    "<base href=https://example.org/>"
    "<meta http-equiv=refresh content='0;url=https://example.org/'>"
    "<link rel=stylesheet href=https://example.org/x.css><a href=javascript:taken=1>x</a>"
    "{{ 7*7 }}{% raw %}<!--]]>url(https://example.org/x.png)&lt;b&gt;$\\frac{x}$ \\write18{x} "
    "_^#%~`*![a](https://example.org)|"
)
HARMLESS = "word"


def make_hostile(words: str) -> Result:
    """Put the words, numbered, wherever a comparison has a text."""
    models, classes, layers = (
        [f"{kind}{number}{words}" for number in range(2)] for kind in ("model", "class", "layer")
    )
    study = synthetic_study(
        models, classes, layers, channels=3, epochs=2, count=4, gates=layers, swept=True
    )
    result = make_result(study)
    attack = f"attack{words}"
    verdicts = pd.concat([result.verdicts] * 2).iloc[:4]
    verdicts = verdicts.assign(statement=words, models=words, layer=layers[0])
    verdicts["claim"] = ["C1", "C2", "C3", f"C9{words}"]
    verdicts["verdict"] = ["supported", "not supported", "inconclusive", words]
    images = [
        (model, layer, data, channel, 1, number, 0.5)
        for model in models
        for layer in layers
        for channel in range(3)
        for number, data in enumerate(("natural", "adversarial"))
    ]
    columns = ["model", "layer", "data", "channel", "rank", "image", "activation"]
    tables = {
        "verdicts": verdicts,
        "robustness": result.robustness.replace({"attack": {"pgd-20": attack}}),
        "excitation": pd.DataFrame(images, columns=columns),
    }
    arrays: dict[str, Any] = {}
    for name, number in (("natural", 0), ("adversarial/0", 1), ("adversarial/1", 1)):
        arrays[f"thumbnails/{name}"] = np.zeros((1, 3, 4, 4), np.uint8)
        arrays[f"thumbnails/{name}/images"] = np.array([number])
    known = {"method": words, "arch": words, "versions": {words: words}, words: words}
    meta = result.meta | {
        "models": {model: found | known for model, found in result.meta["models"].items()},
        "data": result.meta["data"] | {"name": words, "fingerprint": words},
        "attack": attack,
        "command": words,
        "created": words,
        "versions": {words: words},
        "hardware": {words: words},
        words: {words: [words]},
    }
    return replace(
        result, tables={**result.tables, **tables}, arrays={**result.arrays, **arrays}, meta=meta
    )


def list_captions(words: str) -> list[dict[str, Any]]:
    """Return what a folder of somebody else's may say of figures."""
    texts = {"caption": words, "alt_text": words, "claims": [words, "c1"]}
    return [
        {"name": name, "section": "claims", "main": name != "later", **texts}
        for name in ("relevance", "later")
    ]
