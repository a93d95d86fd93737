"""Measures of the networks of a training, epoch by epoch."""

from dataclasses import replace

import numpy as np
import pytest

from channelscope.analyses.frames import MEASURES, get_measure, measure_cross_class
from helpers.films import CLASSES, make_film, run_film
from reference import cross_class


def test_cross_class_features_are_what_the_formula_says() -> None:
    study = make_film({"at": 1}, epochs=(1, 2), shared=lambda _: 0.5)
    label = study.models[0]
    values = measure_cross_class(study, label, study.weights)
    activations = study.activations(label, "layer4", "adversarial")
    weight = study.relevance(label, "layer4")[:: len(study.labels) // len(CLASSES)]
    assert values[0] == pytest.approx(cross_class(activations, weight, study.labels))
    rows = np.repeat(np.arange(len(study.labels)), study.weights[:, 5].astype(int))
    drawn = cross_class(activations[rows], weight, study.labels[rows])
    assert values[5] == pytest.approx(drawn)


def test_every_measure_of_a_film_has_words_and_a_least_change() -> None:
    result = run_film(make_film({"cifs": 1}, gates=("layer4.0",), epochs=(1, 2)))
    names = set(result.film["measure"])
    assert {name.rpartition(".")[2] if "layer4.0" in name else name for name in names} == {
        *MEASURES
    }
    assert all(get_measure(name).least > 0 for name in names)
    assert replace(get_measure("layer4.0.mask_natural"), least=1).words == "mask, natural"
