"""A comparison of which every name and sentence is hostile at once, and its harmless twin."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from channelscope.comparison.frames import Comparison
from comparisons import synthetic

# Ways out of text, attributes, comments, styles, scripts and templates; and addresses to be asked for.
EVIL = (
    "</td></title></style></script>--><script>window.taken = 1; document.title = 'taken'</script>"
    "\"'><img src=x onerror='window.taken = 1'><svg/onload=window.taken=1>"
    "<iframe srcdoc='<script>top.taken=1</script>'></iframe>"
    "<base href=https://example.org/><meta http-equiv=refresh content='0;url=https://example.org/'>"
    "<link rel=stylesheet href=https://example.org/x.css><a href=javascript:taken=1>x</a>"
    "{{ 7*7 }}{% raw %}<!--]]>url(https://example.org/x.png)&lt;b&gt;$\\frac{x}$ \\write18{x} _^#%~`*![a](https://example.org)|"
)
HARMLESS = "word"


def comparison(words: str) -> Comparison:
    """Put the words, numbered, wherever a comparison has a text: all names, verdicts, settings and descriptions."""
    models, classes, layers = (
        [f"{kind}{i}{words}" for i in range(2)] for kind in ("model", "class", "layer")
    )
    found = synthetic(
        tuple(models),
        tuple(classes),
        tuple(layers),
        channels=3,
        epochs=2,
        count=4,
        gates=tuple(layers),
        whole=True,
        swept=True,
    )
    verdicts = found.verdicts.assign(statement=words, models=words, layer=layers[0])
    verdicts = pd.concat(
        [verdicts, verdicts.iloc[:1].assign(claim=f"C9{words}", verdict=words)], ignore_index=True
    )
    attack = f"attack{words}"
    robustness = found.robustness.replace({"attack": {"pgd-20": attack}})
    images = [
        (model, layer, data, channel, 1, number, 0.5)
        for model in models
        for layer in layers
        for channel in range(3)
        for number, data in enumerate(("natural", "adversarial"))
    ]
    columns = ["model", "layer", "data", "channel", "rank", "image", "activation"]
    pictures = {
        "thumbnails/natural": [0],
        "thumbnails/adversarial/0": [1],
        "thumbnails/adversarial/1": [1],
    }
    arrays: dict[str, Any] = {
        f"{name}/images": np.array(numbers) for name, numbers in pictures.items()
    }
    arrays |= {name: np.zeros((1, 3, 4, 4), np.uint8) for name in pictures}
    found = replace(
        found,
        verdicts=verdicts,
        robustness=robustness,
        excitation=pd.DataFrame(images, columns=columns),
        arrays=found.arrays | arrays,
    )
    found.meta.update(
        {"attack": attack, "command": words, "created": words, words: {words: [words]}}
    )
    found.meta.update({"versions": {words: words}, "hardware": {words: words}})
    found.meta["data"].update({"name": words, "fingerprint": words})
    for known in found.meta["models"].values():
        known.update({"method": words, "arch": words, "versions": {words: words}, words: words})
    return found


def captions(words: str) -> list[dict[str, Any]]:
    """Say of a figure what a folder of somebody else's may say."""
    said = {"caption": words, "alt_text": words, "claims": [words, "c1"]}
    return [
        {"name": name, "section": "claims", "main": name != "later", **said}
        for name in ("relevance", "later")
    ]
