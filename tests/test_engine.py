"""What happens within an epoch: batches, averages, early stopping, portions, precision, and sharing it by processes."""

import copy
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

import reference
import together
from channelscope import distributed, training
from channelscope.comparison import compare
from channelscope.data import Dataset, augment
from channelscope.objectives import Joint
from channelscope.training import engine
from channelscope.training.job import Job
from channelscope.training.state import State
from channelscope.weights import LOG, Checkpoint, load, log_columns
from helpers.expect import contents, mistake, same_state
from runs import digits, interrupted, run, same_run, tiny_job, write_npz

pytestmark = pytest.mark.usefixtures("unchecked")

TESTS = Path(__file__).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
EXACT: dict[str, Any] = {"precision": "fp64"}
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


def begun(method: str, folder: Path, **changes: Any) -> tuple[Job, State]:
    job = tiny_job(method, folder / "net.pt", **changes)
    return job, State.fresh(job, "cpu")


def epochs(job: Job, state: State, *numbers: int) -> None:
    for epoch in numbers:
        engine.train_epoch(job, state, epoch, tqdm(disable=True))


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def batches(job: Job, state: State, epoch: int = 0) -> list[Any]:
    return list(engine._augmented(job, state, job.generator(epoch)))


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize(("images", "size", "wanted"), [(None, 20, [20, 20, 8]), (None, 47, [47]), (41, 20, [20, 20]),
                                                        (48, 48, [48]), (7, 5, [5, 2])])  # fmt: skip
def test_an_epoch_sees_every_image_once(
    images: int | None, size: int, wanted: list[int], tmp_path: Path
) -> None:
    data = digits() if images is None else digits().limited(images, 0)
    job, state = begun("at", tmp_path, data=data, batch_size=size)
    found = batches(job, state)
    assert [len(batch.x) for batch in found] == [batch.whole for batch in found] == wanted
    x, y = torch.cat([batch.x for batch in found]), torch.cat([batch.y for batch in found])
    known = {
        tuple(image.flatten().tolist()): int(label)
        for image, label in zip(*whole(job), strict=True)
    }
    assert [known.pop(tuple(image.flatten().tolist())) for image in x] == y.tolist()
    assert len(known) == len(job.train) - sum(wanted), "a last image alone is left out"


def whole(job: Job) -> tuple[Tensor, Tensor]:
    return next(job.train.batches(len(job.train)))


def test_epochs_and_seeds_have_orders_of_their_own(tmp_path: Path) -> None:
    job, state = begun("at", tmp_path)
    other = tiny_job("at", tmp_path / "net.pt", seed=1)
    orders = [
        torch.cat([batch.y for batch in batches(*each)])
        for each in ((job, state, 0), (job, state, 1), (other, state))
    ]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert torch.equal(orders[0], torch.cat([batch.y for batch in batches(job, state, 0)]))


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_share_every_batch(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also its augmentation, and a last batch of fewer images than processes."""
    data = digits().limited(38, 0)
    job, state = begun("at", tmp_path, data=data, batch_size=36, crop=2, flip=True)
    wanted = batches(job, state)
    monkeypatch.setattr(distributed, "size", lambda: processes)
    shares = []
    for number in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        shares.append(batches(job, state))
    assert [len(share) for share in shares] == [2] * processes
    for batch, *parts in zip(wanted, *shares, strict=True):
        assert torch.equal(torch.cat([part.x for part in parts]), batch.x)
        assert torch.equal(torch.cat([part.y for part in parts]), batch.y)
        sizes = [len(part.x) for part in parts]
        assert [part.first for part in parts] == [
            sum(sizes[:number]) for number in range(processes)
        ]
        assert {part.whole for part in parts} == {batch.whole}
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("processes", "changes", "words"),
    [
        (3, {}, ["16 images", "3 processes", "multiple"]),
        (32, {"batch_size": 32}, ["24 validation", "32 processes"]),
    ],
)
def test_what_processes_cannot_share(
    processes: int,
    changes: dict[str, Any],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("channelscope.training.job.size", lambda: processes)
    with mistake(*words):
        run("at", tmp_path / "net.pt", **changes)
    assert not contents(tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_an_epochs_row_is_of_all_its_images(precision: str, tmp_path: Path) -> None:
    """The means are those of the images, as they were when the network was trained on them, not of the batches."""
    job, state = begun("standard", tmp_path, batch_size=20, lr=0.05, precision=precision)
    network = copy.deepcopy(state.network).train()
    sgd = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    losses, hits = [], []
    for batch in batches(job, state):
        logits = network(batch.x)
        losses.append(F.cross_entropy(logits, batch.y, reduction="none"))
        hits.append(logits.argmax(1) == batch.y)
        sgd.zero_grad()
        losses[-1].mean().backward()
        sgd.step()
    row = engine.train_epoch(job, state, 0, tqdm(disable=True))
    assert row["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert row["accuracy"] == pytest.approx(torch.cat(hits).double().mean().item())
    assert row["lr"] == pytest.approx(0.05)
    assert len(losses[-1]) == 8, "the last batch is smaller"


def test_validation_follows_each_gate(tmp_path: Path) -> None:
    """Per gate and image, one at a time: is the probe right, how much of the mask is in effect, and does it turn."""
    job, state = begun("cifs", tmp_path, arch="resnet18", **EXACT)
    epochs(job, state, 0)
    found = engine.validate(job, state)
    x, y = next(job.val.batches(len(job.val)))
    x, network = x.double(), state.chosen.eval()
    x_adv = job.validation_attack(network, x, y, job.generator(-1))
    with torch.no_grad():
        answers = [
            (network.probed(a[None]), network.probed(b[None]))
            for a, b in zip(x, x_adv, strict=True)
        ]
    expected = {
        name: sum(
            answer[data].logits.argmax().item() == label
            for answer, label in zip(answers, y, strict=True)
        )
        for data, name in enumerate(("val_natural", "val_robust"))
    }
    for layer in ("layer4.0", "layer4.1"):
        for data, (probe, mask) in enumerate((("natural", "natural"), ("robust", "adversarial"))):
            guesses = [answer[data].probes[layer].argmax().item() for answer in answers]
            expected[f"{layer}.probe_{probe}"] = sum(map(int.__eq__, guesses, y.tolist()))
            shares = [reference.mask_share(answer[data].masks[layer][0]) for answer in answers]
            expected[f"{layer}.mask_{mask}"] = sum(shares)
        pairs = [[answer[data].masks[layer][0].tolist() for data in (0, 1)] for answer in answers]
        expected[f"{layer}.mask_cosine"] = sum(reference.cosine(*pair) for pair in pairs)
    assert found == pytest.approx(
        {name: float(value) / len(y) for name, value in expected.items()}, rel=1e-6
    )
    assert (
        list(found)
        == log_columns(job.gates)[len(LOG) - 4 : len(LOG) - 2] + log_columns(job.gates)[len(LOG) :]
    )
    assert found["layer4.0.mask_cosine"] < 1 - 1e-9, "the attack moves the mask"


@pytest.mark.parametrize("method", ["at", "fsr", "eas", "kap"])
def test_validation_of_other_networks_has_no_gates(method: str, tmp_path: Path) -> None:
    assert list(engine.validate(*begun(method, tmp_path))) == ["val_natural", "val_robust"]


def test_processes_draw_noise_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the noise in a gate, for images that are not the same; an epoch's is the same whenever it is trained."""
    job, before = tiny_job("fsr", tmp_path / "net.pt"), torch.get_rng_state()
    draws = []
    for number, epoch in ((0, 0), (1, 0), (0, 1), (0, 0)):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        with engine._chance(job, epoch, "cpu"):
            draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- averages


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Note the weights after every step."""
    noted: list[dict[str, Tensor]] = []
    step = engine._step

    def watched(job: Job, state: State, *rest: Any) -> Tensor:
        sums = step(job, state, *rest)
        noted.append(weights(state.network))
        return sums

    monkeypatch.setattr(engine, "_step", watched)
    return noted


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(
            value, b[name], **CLOSE, msg=lambda said, name=name: f"{name}: {said}"
        )


@pytest.mark.parametrize(("start", "first"), [(0.0, 0), (0.25, 2), (0.5, 3), (0.9, 6), (1.0, 6)])
def test_a_moving_average_follows_every_step(
    start: float, first: int, tmp_path: Path, steps: list[dict[str, Tensor]]
) -> None:
    """Of two epochs of three steps; share 0.25 is half an epoch, after the second step has begun."""
    averaging = {"averaging.kind": "ema", "averaging.decay": 0.7, "averaging.start": start}
    job, state = begun("standard", tmp_path, **EXACT, **averaging)
    epochs(job, state, 0, 1)
    assert len(steps) == 6
    if first == 6:
        assert state.chosen is state.network
        return
    naive = steps[first]
    for later in steps[first + 1 :]:
        naive = {name: 0.7 * mean + 0.3 * later[name] for name, mean in naive.items()}
    close(weights(state.chosen), naive)
    assert (
        max((value - naive[name]).abs().max() for name, value in weights(state.network).items())
        > 1e-3
    )


@pytest.mark.parametrize(("start", "first"), [(0.0, 0), (0.5, 1), (0.6, 2), (1.0, 3)])
def test_a_plain_average_is_the_mean_of_the_epochs_weights(
    start: float, first: int, tmp_path: Path, steps: list[dict[str, Tensor]]
) -> None:
    """Of the weights at the end of each of four epochs, from the share of the epochs on that is given."""
    job, state = begun(
        "standard",
        tmp_path,
        epochs=4,
        **EXACT,
        **{"averaging.kind": "swa", "averaging.start": start},
    )
    epochs(job, state, 0, 1, 2, 3)
    ends = steps[2::3][first:]
    naive = {name: torch.stack([each[name] for each in ends]).mean(0) for name in ends[0]}
    close(weights(state.chosen), naive)


def naive_statistics(job: Job, state: State, epoch: int) -> dict[str, Tensor]:
    """Give the plain mean over the batches of each BatchNorm's mean and unbiased variance of its input."""
    network, generator = (
        copy.deepcopy(state.chosen).train(),
        torch.Generator().manual_seed(job.seed * 1_000_003 + epoch),
    )
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def watch(name: str) -> Callable[..., None]:
        def note(_: nn.Module, inputs: tuple[Tensor]) -> None:
            values = inputs[0].transpose(0, 1).flatten(1)
            seen.setdefault(name, []).append((values.mean(1), values.var(1)))

        return note

    for name, part in network.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_pre_hook(watch(name))
    images, size = whole(job)[0], job.recipe.optimizer.batch_size
    order = torch.randperm(len(images), generator=generator)
    for start in range(0, len(order) - 1, size):
        x = images[order[start : start + size]].double()
        network(augment(x, generator, job.recipe.data.crop, job.recipe.data.flip))
    means = {
        name: [torch.stack(values).mean(0) for values in zip(*pairs, strict=True)]
        for name, pairs in seen.items()
    }
    return {
        f"{name}.{what}": value
        for name, values in means.items()
        for what, value in zip(("running_mean", "running_var"), values, strict=True)
    }


@pytest.mark.parametrize("method", ["standard", "at", "cifs"])
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_an_averages_batchnorm_statistics_are_those_of_the_training_images(
    kind: str, method: str, tmp_path: Path
) -> None:
    averaging = {"averaging.kind": kind, "averaging.decay": 0.5, "averaging.start": 0.0}
    job, state = begun(method, tmp_path, batch_size=20, crop=1, flip=True, **EXACT, **averaging)
    epochs(job, state, 0, 1)
    found, naive = state.chosen.state_dict(), naive_statistics(job, state, 1)
    assert len(naive) >= 20
    close({name: found[name] for name in naive}, naive)
    momenta = {part.momentum for part in state.chosen.modules() if isinstance(part, nn.BatchNorm2d)}
    assert momenta == {0.1}
    own = state.network.state_dict()
    assert any(not torch.allclose(own[name], value, rtol=0.01) for name, value in naive.items())


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_the_average_is_what_is_validated_and_kept(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[dict[str, Tensor]] = []
    validate = training.validate

    def watched(job: Job, state: State) -> dict[str, float]:
        chosen = (
            state.network if not kept else state.average.module
        )  # averaging begins with the second epoch
        kept.append({name: value.clone() for name, value in chosen.state_dict().items()})
        found = validate(job, state)
        x, y = next(job.val.batches(len(job.val)))
        chosen.eval()
        assert found["val_natural"] == pytest.approx(
            (chosen(x).argmax(1) == y).float().mean().item()
        )
        return found

    monkeypatch.setattr(training, "validate", watched)
    averaging = {"averaging.kind": kind, "averaging.start": 0.5 if kind == "ema" else 0.6}
    run("standard", tmp_path / "net.pt", epochs=2 if kind == "ema" else 3, **averaging)
    found = Checkpoint.read(tmp_path / "net.pt")
    assert same_state(dict(found.state), kept[found.meta["metrics"]["epoch"] - 1])


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_an_average_goes_on_after_ctrl_c(kind: str, tmp_path: Path) -> None:
    changes = {"averaging.kind": kind, "averaging.start": 0.3, "averaging.decay": 0.8, "epochs": 3}
    run("cifs", tmp_path / "whole.pt", **changes)
    interrupted("cifs", tmp_path / "net.pt", 8, **changes)
    run("cifs", tmp_path / "net.pt", resume=True, **changes)
    assert same_run(tmp_path / "net.pt", tmp_path / "whole.pt")
    run("cifs", tmp_path / "plain.pt", epochs=3)
    plain, averaged = (
        dict(Checkpoint.read(tmp_path / f"{name}.pt").state) for name in ("plain", "whole")
    )
    assert not same_state(plain, averaged)


# ---------------------------------------------------------------- early stopping, and FAT's tau


class Scripted:
    """Stand in for the validation: robust accuracies, epoch by epoch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *robust: float) -> None:
        self.robust = robust
        monkeypatch.setattr(training, "validate", self)

    def __call__(self, _job: Job, state: State) -> dict[str, float]:
        return {"val_natural": 0.5, "val_robust": self.robust[len(state.history)]}


@pytest.mark.parametrize(
    ("patience", "trained", "best"), [(0, 7, 7), (1, 3, 2), (2, 6, 4), (3, 7, 7), (4, 7, 7)]
)
def test_a_run_waits_for_a_better_epoch_with_patience(
    patience: int, trained: int, best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Scripted(monkeypatch, 0.1, 0.3, 0.3, 0.4, 0.2, 0.4, 0.5)
    changes = {"data": digits(2), "epochs": 7, "attack_steps": 1, "patience": patience}
    run("at", tmp_path / "net.pt", **changes)
    found = Checkpoint.read(tmp_path / "net.pt").meta
    assert len(found["history"]) == trained
    assert found["metrics"]["epoch"] == best
    assert sorted(contents(tmp_path)) == ["net.pt", "net.pt.csv"]
    before = contents(tmp_path)
    run("at", tmp_path / "net.pt", resume=True, **changes)
    assert contents(tmp_path) == before, "a run that stopped early has reached its end"


def test_a_run_that_has_waited_enough_ends_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Scripted(monkeypatch, 0.3, 0.2, 0.2, 0.4)
    changes = {"data": digits(2), "epochs": 4, "attack_steps": 1, "patience": 2}

    def stopped(_self: Checkpoint, _path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            run("at", tmp_path / "net.pt", **changes)
    run("at", tmp_path / "net.pt", resume=True, **changes)
    assert len(Checkpoint.read(tmp_path / "net.pt").meta["history"]) == 3


def test_fats_patience_grows_with_the_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int | None] = []
    step = engine._step

    def watched(job: Job, state: State, batch: Any, attack: Any, *rest: Any) -> Tensor:
        used.append(attack.early_stop)
        return step(job, state, batch, attack, *rest)

    monkeypatch.setattr(engine, "_step", watched)
    run(
        "fat-cas",
        tmp_path / "net.pt",
        epochs=4,
        batch_size=48,
        tau=[0, 1, 3],
        tau_milestones=[0.5, 0.75],
    )
    assert used == [0, 0, 1, 3]


# ---------------------------------------------------------------- portions of a batch


@pytest.fixture
def uncoupled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every BatchNorm use fixed statistics, in training too: no image knows of another."""

    def forward(self: nn.BatchNorm2d, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)

    monkeypatch.setattr(nn.BatchNorm2d, "forward", forward)


@pytest.mark.parametrize("method", ["at", "trades", "mart-cifs", "fat-cas"])
def test_portions_change_nothing_where_images_are_on_their_own(
    method: str, uncoupled: None, tmp_path: Path
) -> None:
    found = []
    for accumulate in (1, 3, 100):
        job, state = begun(method, tmp_path, batch_size=20, accumulate=accumulate, **EXACT)
        epochs(job, state, 0)
        found.append(weights(state.network))
    for other in found[1:]:
        close(found[0], other)


def test_each_portion_is_normalised_by_itself(tmp_path: Path) -> None:
    """The step is that of the sum of the portions' gradients, of losses divided by the whole batch's size."""
    job, state = begun("standard-cifs", tmp_path, accumulate=3, **EXACT)
    network = copy.deepcopy(state.network).train()
    sgd = copy.deepcopy(state.optimizer)
    sgd.param_groups[0]["params"] = list(network.parameters())
    batch = batches(job, state)[0]
    for part in (slice(0, 6), slice(6, 11), slice(11, 16)):
        (Joint()(network, batch.x[part], batch.y[part]).sum() / 16).backward()
    sgd.step()
    sums = engine._step(job, state, batch, job.attack_at(0), job.generator(0))
    close(weights(state.network), weights(network))
    assert sums[2] == 16
    for name, value in network.named_buffers():
        torch.testing.assert_close(state.network.get_buffer(name), value, **CLOSE)
    assert all(parameter.grad is None for parameter in state.network.parameters())


@pytest.mark.parametrize("accumulate", [4, 100])
def test_a_batch_too_small_for_so_many_portions_has_fewer(accumulate: int, tmp_path: Path) -> None:
    """The last batch has two images, and a portion of one could not be normalised."""
    run("at", tmp_path / "net.pt", batch_size=23, accumulate=accumulate, epochs=1)
    assert len(digits().train) % 23 == 2
    assert Checkpoint.read(tmp_path / "net.pt").meta["metrics"]["epoch"] == 1


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("method", ["cifs", "fsr", "trades"])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp64"])
def test_every_precision_trains_to_a_checkpoint(
    precision: str, method: str, tmp_path: Path
) -> None:
    network = run(method, tmp_path / "net.pt", precision=precision, crop=1)
    found = Checkpoint.read(tmp_path / "net.pt")
    wanted = torch.float64 if precision == "fp64" else torch.float32
    assert {value.dtype for value in found.state.values() if value.is_floating_point()} == {wanted}
    assert all(value.isfinite().all() for value in found.state.values())
    assert network(torch.rand(2, 1, 8, 8)).isfinite().all()
    compare(
        [tmp_path / "net.pt"], digits(), attack="pgd-1", attacks=(), replicates=20, progress=False
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_mixed_precision_uses_the_weights_of_the_step_before(
    precision: str, tmp_path: Path, steps: list[dict[str, Tensor]]
) -> None:
    """As torch's own recipe has it: autocast around each forward pass, and the loss scaled for fp16."""
    job, state = begun("standard", tmp_path, precision=precision)
    network = copy.deepcopy(state.network).train()
    sgd = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    images = batches(job, state)
    epochs(job, state, 0)
    for batch, after in zip(images, steps, strict=True):
        with torch.autocast("cpu", dtype, enabled=precision != "fp32"):
            loss = F.cross_entropy(network(batch.x), batch.y)
        scaler.scale(loss).backward()
        scaler.step(sgd)
        scaler.update()
        sgd.zero_grad()
        for name, value in weights(network).items():
            torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-5)


def test_a_step_whose_scaled_gradients_overflow_is_left_out(tmp_path: Path) -> None:
    job, state = begun("at", tmp_path, precision="fp16")
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = weights(state.network)
    with engine._computing(job, "cpu"):
        engine._step(job, state, batches(job, state)[0], job.attack_at(0), job.generator(0))
    assert all(torch.equal(value, before[name]) for name, value in weights(state.network).items())
    assert state.scaler.get_scale() == 2.0**126
    epochs(job, state, 0)
    assert all(value.isfinite().all() for value in weights(state.network).values())


def test_a_run_of_half_precision_goes_on_after_ctrl_c(tmp_path: Path) -> None:
    run("cifs", tmp_path / "whole.pt", precision="fp16")
    interrupted("cifs", tmp_path / "net.pt", 5, precision="fp16")
    run("cifs", tmp_path / "net.pt", precision="fp16", resume=True)
    assert same_run(tmp_path / "net.pt", tmp_path / "whole.pt")


# ---------------------------------------------------------------- several processes


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let two processes, and three, train; give their folder."""
    folder = tmp_path_factory.mktemp("shared")
    together.stopped(folder / "chain.pt", 4)
    ports = [free_port(), free_port()]
    command = [sys.executable, str(TESTS / "together.py"), str(folder)]
    started = [
        subprocess.Popen(
            [*command, str(number), *ports], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        for number in range(3)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0, 0], errors
    return folder


def agree(one: Path, other: Path) -> None:
    """Assert that two runs have the same log and the same weights."""
    logs = [
        pd.DataFrame(Checkpoint.read(path).meta["history"]).drop(columns="seconds")
        for path in (one, other)
    ]
    pd.testing.assert_frame_equal(*logs, rtol=1e-9, atol=1e-11)
    states = [dict(Checkpoint.read(path).state) for path in (one, other)]
    close(*states)
    assert (
        states[0]["cnn.conv1.weight" if "cnn.conv1.weight" in states[0] else "conv1.weight"].dtype
        == torch.float64
    )


@pytest.mark.parametrize("case", [*together.CASES, "few"])
def test_processes_train_as_one_does(case: str, shared: Path, tmp_path: Path) -> None:
    agree(shared / f"{case}.pt", together.trained(tmp_path, case))


def test_a_run_goes_on_with_another_number_of_processes(shared: Path, tmp_path: Path) -> None:
    """The first epoch was one process's, the second two's, and the third is one's again."""
    kept = Checkpoint.read(shared / "chain.pt.partial")
    assert len(kept.meta["history"]) == 2
    method, changes = together.CHAIN
    run(method, shared / "chain.pt", **changes, resume=True)
    agree(shared / "chain.pt", together.trained(tmp_path, "chain"))


def test_processes_leave_nothing_behind(shared: Path) -> None:
    found = [name for name in contents(shared) if not name.startswith("chain")]
    assert found == [
        f"{case}.pt{end}" for case in sorted([*together.CASES, "few"]) for end in ("", ".csv")
    ]


def test_when_one_process_is_killed_the_other_says_so_and_the_best_network_is_kept(
    tmp_path: Path,
) -> None:
    data, out = write_npz(tmp_path), tmp_path / "net.pt"
    words = [
        "train",
        "--method",
        "cifs",
        "--data",
        data,
        "--out",
        str(out),
        "--arch",
        "resnet10",
        "--width",
        "2",
    ]
    words += ["--batch-size", "8", "--epochs", "9999", "--set", "attack.steps=1", "--device", "cpu"]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    started = subprocess.Popen(
        [*torchrun, str(TESTS / "lost.py"), str(tmp_path), "command", *words],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        log = tmp_path / "net.pt.csv"
        while (
            not log.exists() or len(log.read_text().splitlines()) < 2
        ):  # until an epoch is complete
            assert started.poll() is None, started.communicate()
            time.sleep(0.05)
        os.kill(int((tmp_path / "1").read_text()), signal.SIGKILL)
        printed, errors = started.communicate(timeout=120)
    finally:
        started.kill()
    assert started.returncode != 0
    assert printed == ""
    (said,) = [
        line
        for line in errors.replace("\r", "\n").splitlines()
        if line.startswith("channelscope: ")
    ]
    assert said == (
        "channelscope: Another process of this run has ended, or torchrun was stopped. The epochs that are complete "
        f"are kept in {out}.partial, a checkpoint of the best network so far: go on with --resume."
    )
    assert errors.count("Traceback (most recent call last)") <= 1, "but for torchrun's own"
    partial = out.with_name("net.pt.partial")
    assert load(partial)(torch.rand(2, 1, 8, 8)).shape == (2, 2)
    test = Dataset(f"npz:{tmp_path / 'digits.npz'}", ("0", "1"), digits(2).test)
    found = compare([partial], test, attack="pgd-1", attacks=(), replicates=20, progress=False)
    assert len(found.training) == len(Checkpoint.read(partial).meta["history"]) >= 1
    assert not out.exists()
