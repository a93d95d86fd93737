"""Samples: what is kept gives the networks' own logits, and damaged arrays are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import channelscope as cs
from channelscope.analyses.samples import check_samples
from channelscope.attacks import PGD
from helpers.networks import images, plain


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return plain()


@pytest.fixture(scope="module")
def study(net: nn.Module) -> cs.Study:
    study = cs.Study(
        {"net": net},
        images(12),
        attack="pgd-2",
        attacks="pgd-2",
        eps=0.1,
        eps_sweep=[0.05],
        progress=False,
    )
    study.run_networks()
    return study


@pytest.fixture(scope="module")
def result(study: cs.Study) -> cs.Result:
    return study.run("samples")


def test_kept_activations_give_the_networks_logits(net, study, result):
    arrays = result.arrays
    x, _ = images(12)
    z = arrays["samples/0/natural"] @ arrays["samples/0/weight"].T + arrays["samples/0/bias"]
    with torch.no_grad():
        logits = net(x[arrays["samples/0/images"]]).numpy()
    np.testing.assert_allclose(z, logits, atol=1e-5)
    attacked = arrays["samples/0/adversarial"] @ arrays["samples/0/weight"].T
    answers = (attacked + arrays["samples/0/bias"]).argmax(1)
    np.testing.assert_array_equal(answers, study.answers("net", "adversarial"))


def test_magnitudes_at_strengths_are_means_over_classes(study, result):
    assert result.arrays["magnitudes/names"].tolist() == ["eps-0.05"]
    layer = study.layers("net")[0]
    a = study.activations("net", layer, "eps-0.05")
    magnitudes = result.arrays["magnitudes/0/0"][0]
    for k in range(len(study.classes)):
        if k in study.labels:
            expected = a[study.labels == k].mean(0)
            np.testing.assert_allclose(magnitudes[k], expected, rtol=1e-5)
        else:
            assert np.isnan(magnitudes[k]).all()


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("samples/0/natural", np.zeros((12, 2), np.float32)),
        ("samples/0/images", np.full(12, 99)),
        ("samples/0/weight", np.zeros((3, 3, 3))),
        ("samples/0/bias", np.zeros(99)),
        ("samples/0/other", np.zeros(1)),
        ("magnitudes/0/0", np.zeros((2, 2), np.float32)),
        ("views/0/0/channels", np.zeros(1, np.int64)),
        ("views/pictures", np.zeros((1, 3, 4, 4))),
    ],
)
def test_damaged_arrays_are_refused(result, name, array):
    check_samples(result)
    with pytest.raises(ValueError, match=r"arrays\.npz"):
        check_samples(replace(result, arrays=result.arrays | {name: array}))


def test_a_comparison_keeps_what_channels_see(net, result):
    ball = PGD(eps=0.05, steps=2, random_start=False)
    views = cs.visualise({"net": net}, None, [1, 0], images(12), steps=2, attack=ball)
    kept = views.add_to(result)
    check_samples(kept)
    expected = (views.models["net"].noise * 255).round().byte().numpy()
    np.testing.assert_array_equal(kept.arrays["views/0/0/noise"], expected)
    damaged = kept.arrays | {"views/0/0/maps": kept.arrays["views/0/0/maps"][:, :, :1]}
    with pytest.raises(ValueError, match=r"arrays\.npz"):
        check_samples(replace(kept, arrays=damaged))
    with pytest.raises(cs.UserError, match="others than those of the comparison"):
        cs.visualise({"net": net}, None, [0], images(9), steps=1, attack=ball).add_to(result)
    with pytest.raises(cs.UserError, match="not the network"):
        cs.visualise({"other": net}, None, [0], images(12), steps=1, attack=ball).add_to(result)
