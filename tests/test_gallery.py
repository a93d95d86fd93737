"""The galleries' pages: every main figure in its section, beside its data."""

import re

from figures.make import HEADS, WORDS, format_page

FIGURES = [
    {
        "name": "training",
        "caption": "Loss.",
        "alt_text": 'at: "ends" <here>',
        "section": "training",
        "main": True,
    },
    {
        "name": "magnitude-cat",
        "caption": "Of cat.",
        "alt_text": "one",
        "section": "claims",
        "main": True,
    },
    {
        "name": "relevance",
        "caption": "Of all.",
        "alt_text": "two",
        "section": "claims",
        "main": True,
    },
]


def test_figures_are_in_their_sections_with_caption_data_and_alt_text() -> None:
    text = format_page(HEADS["digits"], FIGURES)
    assert text.startswith(HEADS["digits"])
    assert WORDS.strip() in text
    titles = re.findall(r"^##+ (.*)$", text, re.MULTILINE)
    assert titles == [
        "More evidence",
        "magnitude-cat",
        "relevance",
        "Training",
        "training",
    ]
    assert "- More evidence: [magnitude-cat](#magnitude-cat), [relevance](#relevance)" in text
    assert '<img src="training.png" width="480" alt="at: &quot;ends&quot; &lt;here&gt;">' in text
    assert "Loss. [Data](training.csv), [PDF](training.pdf)." in text
