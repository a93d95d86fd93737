"""What happens within an epoch: batches, averages, early stopping, portions, precision, sharing."""

import copy
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

import channelscope as cs
import reference
from channelscope import distributed
from channelscope.attacks import PGD
from channelscope.data import Dataset, augment
from channelscope.objectives import Joint
from channelscope.training import engine
from channelscope.training.job import Job
from channelscope.training.state import State
from channelscope.weights import LOG, Checkpoint, load, log_columns
from helpers import together
from helpers.expect import contents, mistake, same_state
from helpers.runs import after_steps, digits, interrupted, run, same_run, tiny_job, write_npz

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

TESTS = Path(__file__).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
EXACT: dict[str, Any] = {"precision": "fp64"}
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


def start(method: str, folder: Path, **changes: Any) -> State:
    return State.start(tiny_job(method, folder / "net.pt", **changes), "cpu")


def train_epochs(state: State, *numbers: int) -> None:
    for epoch in numbers:
        engine.train_epoch(state, epoch, tqdm(disable=True))


def weights(network: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in network.parameters()]


def batches(state: State, epoch: int = 0) -> list[Any]:
    return list(engine._iterate_batches(state, state.job.make_generator(epoch)))


def all_images(job: Job) -> tuple[Tensor, Tensor]:
    return next(job.train.batches(len(job.train)))


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [
        (None, 20, [20, 20, 8]),
        (None, 47, [47]),
        (41, 20, [20, 20]),
        (48, 48, [48]),
        (7, 5, [5, 2]),
    ],
)
def test_an_epoch_sees_every_image_once(
    images: int | None, batch_size: int, sizes: list[int], tmp_path: Path
) -> None:
    data = digits() if images is None else digits().limited(images, 0)
    state = start("at", tmp_path, data=data, batch_size=batch_size)
    drawn = batches(state)
    assert [len(batch.x) for batch in drawn] == [batch.size for batch in drawn] == sizes
    x, y = torch.cat([batch.x for batch in drawn]), torch.cat([batch.y for batch in drawn])
    labels = {
        tuple(image.flatten().tolist()): int(label)
        for image, label in zip(*all_images(state.job), strict=True)
    }
    assert [labels.pop(tuple(image.flatten().tolist())) for image in x] == y.tolist()
    assert len(labels) == len(state.job.train) - sum(sizes), "a last image alone is left out"


def test_epochs_and_seeds_have_orders_of_their_own(tmp_path: Path) -> None:
    state, other = start("at", tmp_path), start("at", tmp_path, seed=1)
    orders = [
        torch.cat([batch.y for batch in batches(*arguments)])
        for arguments in ((state, 0), (state, 1), (other, 0), (state, 0))
    ]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert torch.equal(orders[0], orders[3])


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_share_every_batch(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also its augmentation, and a last batch of fewer images than processes."""
    data = digits().limited(38, 0)
    state = start("at", tmp_path, data=data, batch_size=36, crop=2, flip=True)
    expected = batches(state)
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    shares = []
    for number in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        shares.append(batches(state))
    assert [len(share) for share in shares] == [2] * processes
    for batch, *parts in zip(expected, *shares, strict=True):
        assert torch.equal(torch.cat([part.x for part in parts]), batch.x)
        assert torch.equal(torch.cat([part.y for part in parts]), batch.y)
        sizes = [len(part.x) for part in parts]
        assert [part.first for part in parts] == [
            sum(sizes[:number]) for number in range(processes)
        ]
        assert {part.size for part in parts} == {batch.size}
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
    monkeypatch.setattr("channelscope.training.job.world_size", lambda: processes)
    with mistake(*words):
        run("at", tmp_path / "net.pt", **changes)
    assert not contents(tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_an_epochs_row_is_of_all_its_images(precision: str, tmp_path: Path) -> None:
    """The means are over the images, as the network was when it was trained on them."""
    state = start(
        "standard", tmp_path, batch_size=20, lr=0.05, schedule_shape="flat", precision=precision
    )
    network = copy.deepcopy(state.network).train()
    sgd = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    losses, correct = [], []
    for batch in batches(state):
        logits = network(batch.x)
        losses.append(F.cross_entropy(logits, batch.y, reduction="none"))
        correct.append(logits.argmax(1) == batch.y)
        sgd.zero_grad()
        losses[-1].mean().backward()
        sgd.step()
    row = engine.train_epoch(state, 0, tqdm(disable=True))
    assert row["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert row["accuracy"] == pytest.approx(torch.cat(correct).double().mean().item())
    assert row["lr"] == pytest.approx(0.05)
    assert len(losses[-1]) == 8, "the last batch is smaller"


def test_validation_follows_each_gate(tmp_path: Path) -> None:
    """Per gate: the probe's accuracy, the effective share of the mask, and how far it turns."""
    state = start("cifs", tmp_path, arch="resnet18", **EXACT)
    train_epochs(state, 0)
    row = engine.validate(state)
    job = state.job
    x, y = next(job.val.batches(len(job.val)))
    x, network = x.double(), state.candidate.eval()
    x_adv = job.validation_attack(network, x, y, job.make_generator(-1))
    with torch.no_grad():  # one image at a time
        answers = [
            (network.probed(natural[None]), network.probed(adversarial[None]))
            for natural, adversarial in zip(x, x_adv, strict=True)
        ]
    expected: dict[str, float] = {}
    for data, name in enumerate(("val_natural", "val_robust")):
        guesses = [answer[data].logits.argmax().item() for answer in answers]
        expected[name] = sum(map(int.__eq__, guesses, y.tolist()))
    for layer in ("layer4.0", "layer4.1"):
        for data, (probe, mask) in enumerate((("natural", "natural"), ("robust", "adversarial"))):
            guesses = [answer[data].probes[layer].argmax().item() for answer in answers]
            expected[f"{layer}.probe_{probe}"] = sum(map(int.__eq__, guesses, y.tolist()))
            shares = [reference.mask_share(answer[data].masks[layer][0]) for answer in answers]
            expected[f"{layer}.mask_{mask}"] = sum(shares)
        pairs = [[part.masks[layer][0].tolist() for part in answer] for answer in answers]
        expected[f"{layer}.mask_cosine"] = sum(reference.cosine(*pair) for pair in pairs)
    assert row == pytest.approx(
        {name: value / len(y) for name, value in expected.items()}, rel=1e-6
    )
    assert list(row) == ["val_natural", "val_robust", *log_columns(job.gates)[len(LOG) :]]
    assert row["layer4.0.mask_cosine"] < 1 - 1e-9, "the attack moves the mask"


@pytest.mark.parametrize("method", ["at", "fsr", "eas", "kap"])
def test_validation_of_other_networks_has_no_gates(method: str, tmp_path: Path) -> None:
    assert list(engine.validate(start(method, tmp_path))) == ["val_natural", "val_robust"]


def test_processes_draw_noise_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates draw noise: each process for its own images; an epoch always draws the same."""
    state, before = start("fsr", tmp_path), torch.get_rng_state()
    draws = []
    for number, epoch in ((0, 0), (1, 0), (0, 1), (0, 0)):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        with engine._seed_global_generators(state, epoch):
            draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- averages


@pytest.fixture
def steps() -> Iterator[list[list[Tensor]]]:
    """Note the weights after every step."""
    noted: list[list[Tensor]] = []

    def note(optimizer: torch.optim.SGD) -> None:
        (group,) = optimizer.param_groups
        noted.append([value.detach().clone() for value in group["params"]])

    with after_steps(note):
        yield noted


def assert_close(a: list[Tensor], b: list[Tensor]) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize(("begin", "first"), [(0.0, 0), (0.25, 2), (0.5, 3), (0.9, 6), (1.0, 6)])
def test_a_moving_average_follows_every_step(
    begin: float, first: int, tmp_path: Path, steps: list[list[Tensor]]
) -> None:
    """Of two epochs of three steps; share 0.25 is half an epoch, in the second step."""
    averaging = {"averaging.kind": "ema", "averaging.decay": 0.7, "averaging.start": begin}
    state = start("standard", tmp_path, **EXACT, **averaging)
    train_epochs(state, 0, 1)
    assert len(steps) == 6
    if first == 6:
        assert state.candidate is state.network
        return
    naive = steps[first]
    for later in steps[first + 1 :]:
        naive = [0.7 * mean + 0.3 * new for mean, new in zip(naive, later, strict=True)]
    assert_close(weights(state.candidate), naive)
    last = zip(weights(state.network), naive, strict=True)
    assert max((value - mean).abs().max() for value, mean in last) > 1e-3


@pytest.mark.parametrize(("begin", "first"), [(0.0, 0), (0.5, 1), (0.6, 2), (1.0, 3)])
def test_a_plain_average_is_the_mean_of_the_epochs_weights(
    begin: float, first: int, tmp_path: Path, steps: list[list[Tensor]]
) -> None:
    """Of the weights at the end of each of four epochs, from a share of the epochs on."""
    averaging = {"averaging.kind": "swa", "averaging.start": begin}
    state = start("standard", tmp_path, epochs=4, **EXACT, **averaging)
    train_epochs(state, 0, 1, 2, 3)
    ends = steps[2::3][first:]
    naive = [torch.stack(values).mean(0) for values in zip(*ends, strict=True)]
    assert_close(weights(state.candidate), naive)


def naive_statistics(state: State, epoch: int) -> dict[str, Tensor]:
    """Compute each BatchNorm's mean and unbiased variance, as the plain mean over the batches."""
    job, network = state.job, copy.deepcopy(state.candidate).train()
    inputs: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Callable[..., None]:
        def note(_: nn.Module, arguments: tuple[Tensor]) -> None:
            inputs.setdefault(name, []).append(arguments[0].transpose(0, 1).flatten(1))

        return note

    for name, part in network.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_pre_hook(watch(name))
    images, size = all_images(job)[0], job.recipe.optimizer.batch_size
    generator = torch.Generator().manual_seed(job.seed * 1_000_003 + epoch)
    order = torch.randperm(len(images), generator=generator)
    for first in range(0, len(order) - 1, size):
        x = images[order[first : first + size]].double()
        network(augment(x, generator, job.recipe.data.crop, job.recipe.data.flip))
    statistics = {}
    for name, values in inputs.items():
        means = torch.stack([value.mean(1) for value in values])
        variances = torch.stack([value.var(1) for value in values])
        statistics[f"{name}.running_mean"] = means.mean(0)
        statistics[f"{name}.running_var"] = variances.mean(0)
    return statistics


@pytest.mark.parametrize("method", ["standard", "at", "cifs"])
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_an_averages_batchnorm_statistics_are_those_of_the_training_images(
    kind: str, method: str, tmp_path: Path
) -> None:
    averaging = {"averaging.kind": kind, "averaging.decay": 0.5, "averaging.start": 0.0}
    state = start(method, tmp_path, batch_size=20, crop=1, flip=True, **EXACT, **averaging)
    train_epochs(state, 0, 1)
    naive = naive_statistics(state, 1)
    assert len(naive) >= 20
    average, last = state.candidate.state_dict(), state.network.state_dict()
    assert_close([average[name] for name in naive], list(naive.values()))
    norms = [part for part in state.candidate.modules() if isinstance(part, nn.BatchNorm2d)]
    assert {part.momentum for part in norms} == {0.1}
    assert any(not torch.allclose(last[name], value, rtol=0.01) for name, value in naive.items())


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_the_average_is_what_is_validated_and_kept(kind: str, tmp_path: Path) -> None:
    """From the second of three epochs on."""
    state = start(
        "standard", tmp_path, epochs=3, **{"averaging.kind": kind, "averaging.start": 0.5}
    )
    candidates: list[dict[str, Tensor]] = []
    for epoch in range(3):
        train_epochs(state, epoch)
        network = state.average.module if epoch else state.network
        assert state.candidate is network
        row = engine.validate(state)
        x, y = next(state.job.val.batches(len(state.job.val)))
        natural = (network.eval()(x).argmax(1) == y).float().mean().item()
        assert row["val_natural"] == pytest.approx(natural)
        candidates.append({name: value.clone() for name, value in network.state_dict().items()})
        state.record(row | {"epoch": epoch + 1})
    best = [row["best"] for row in state.history].index(True)
    assert same_state(state.best, candidates[best])


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_an_average_goes_on_after_ctrl_c(kind: str, tmp_path: Path) -> None:
    changes = {"averaging.kind": kind, "averaging.start": 0.3, "averaging.decay": 0.8, "epochs": 3}
    run("cifs", tmp_path / "whole.pt", **changes)
    interrupted("cifs", tmp_path / "net.pt", 8, **changes)
    run("cifs", tmp_path / "net.pt", resume=True, **changes)
    assert same_run(tmp_path / "net.pt", tmp_path / "whole.pt")
    run("cifs", tmp_path / "plain.pt", epochs=3)
    states = [Checkpoint.read(tmp_path / f"{name}.pt").state for name in ("plain", "whole")]
    assert not same_state(*states)


# ---------------------------------------------------------------- early stopping, and FAT's tau


@pytest.mark.parametrize(("patience", "epochs"), [(0, 7), (1, 3), (2, 6), (3, 7), (4, 7)])
def test_a_run_waits_for_a_better_epoch_with_patience(
    patience: int, epochs: int, tmp_path: Path
) -> None:
    state = start("at", tmp_path, data=digits(2), epochs=7, patience=patience)
    for robust in (0.1, 0.3, 0.3, 0.4, 0.2, 0.4, 0.5):
        if not state.is_out_of_patience():
            row = {"epoch": len(state.history) + 1, "val_natural": 0.5, "val_robust": robust}
            state.record(row)
    assert len(state.history) == epochs


def test_a_run_that_stopped_early_has_reached_its_end(tmp_path: Path) -> None:
    """At a learning rate of nearly nothing, no epoch is better than the first for long."""
    changes = {"epochs": 50, "attack_steps": 1, "patience": 2, "lr": 1e-12}
    out = tmp_path / "net.pt"
    run("standard", out, data=digits(2), **changes)
    meta = Checkpoint.read(out).meta
    assert len(meta["history"]) == meta["metrics"]["epoch"] + 2 < 50
    assert sorted(contents(tmp_path)) == ["net.pt", "net.pt.csv"]
    before = contents(tmp_path)
    run("standard", out, data=digits(2), resume=True, **changes)
    assert contents(tmp_path) == before


def test_a_run_that_has_waited_enough_ends_when_it_is_resumed(tmp_path: Path) -> None:
    """Killed after its state was written, and before its checkpoint was."""
    state = start("at", tmp_path, data=digits(2), epochs=50, patience=2)
    for epoch, robust in enumerate((0.3, 0.2, 0.2), 1):
        row = dict.fromkeys(LOG, 0.5) | {"epoch": epoch, "val_robust": robust}
        state.record(row)
    state.save()
    run("at", tmp_path / "net.pt", data=digits(2), epochs=50, patience=2, resume=True)
    assert len(Checkpoint.read(tmp_path / "net.pt").meta["history"]) == 3


def test_fats_patience_grows_with_the_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int | None] = []
    attack = PGD.__call__

    def watched(self: PGD, *arguments: Any) -> Tensor:
        used.append(self.early_stop)
        return attack(self, *arguments)

    monkeypatch.setattr(PGD, "__call__", watched)
    tau = {"tau": [0, 1, 3], "tau_milestones": [0.5, 0.75]}
    run("fat-cas", tmp_path / "net.pt", epochs=4, batch_size=48, **tau)
    validation = None
    assert used == [0, validation, 0, validation, 1, validation, 3, validation]


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
    results = []
    for accumulate in (1, 3, 100):
        state = start(method, tmp_path, batch_size=20, accumulate=accumulate, **EXACT)
        train_epochs(state, 0)
        results.append(weights(state.network))
    for other in results[1:]:
        assert_close(results[0], other)


def test_each_portion_is_normalised_by_itself(tmp_path: Path) -> None:
    """The step follows the sum of the portions' gradients, of losses over the batch's size."""
    state = start("standard-cifs", tmp_path, accumulate=3, **EXACT)
    network = copy.deepcopy(state.network).train()
    sgd = copy.deepcopy(state.optimizer)
    sgd.param_groups[0]["params"] = list(network.parameters())
    batch = batches(state)[0]
    for part in (slice(0, 6), slice(6, 11), slice(11, 16)):
        (Joint()(network, batch.x[part], batch.y[part]).sum() / 16).backward()
    sgd.step()
    sums = engine._step(state, batch, state.job.attack_at(0), state.job.make_generator(0))
    assert_close(weights(state.network), weights(network))
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
    state = Checkpoint.read(tmp_path / "net.pt").state
    expected = torch.float64 if precision == "fp64" else torch.float32
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {expected}
    assert all(value.isfinite().all() for value in state.values())
    assert network(torch.rand(2, 1, 8, 8)).isfinite().all()
    options = {"attack": "pgd-1", "attacks": (), "replicates": 20, "progress": False}
    cs.compare([tmp_path / "net.pt"], digits(), **options)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_mixed_precision_uses_the_weights_of_the_step_before(
    precision: str, tmp_path: Path, steps: list[list[Tensor]]
) -> None:
    """As torch's own recipe has it: autocast around each forward pass, the loss scaled for fp16."""
    state = start("standard", tmp_path, lr=0.1, schedule_shape="flat", precision=precision)
    network = copy.deepcopy(state.network).train()
    sgd = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    images = batches(state)
    train_epochs(state, 0)
    for batch, after in zip(images, steps[:], strict=True):
        with torch.autocast("cpu", dtype, enabled=precision != "fp32"):
            loss = F.cross_entropy(network(batch.x), batch.y)
        scaler.scale(loss).backward()
        scaler.step(sgd)
        scaler.update()
        sgd.zero_grad()
        for value, naive in zip(after, weights(network), strict=True):
            torch.testing.assert_close(value, naive, rtol=1e-4, atol=1e-5)


def test_a_step_whose_scaled_gradients_overflow_is_left_out(tmp_path: Path) -> None:
    state = start("at", tmp_path, precision="fp16")
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = weights(state.network)
    with engine._autocast(state):
        attack, generator = state.job.attack_at(0), state.job.make_generator(0)
        engine._step(state, batches(state)[0], attack, generator)
    assert all(map(torch.equal, weights(state.network), before))
    assert state.scaler.get_scale() == 2.0**126
    train_epochs(state, 0)
    assert all(value.isfinite().all() for value in weights(state.network))


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
    """Let two processes, and three, train; return their folder."""
    folder = tmp_path_factory.mktemp("shared")
    together.stopped(folder / "chain.pt", 4)
    ports = [free_port(), free_port()]
    command = [sys.executable, "-m", "helpers.together", str(folder)]
    started = [
        subprocess.Popen(
            [*command, str(number), *ports],
            cwd=TESTS,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
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
    checkpoints = [Checkpoint.read(path) for path in (one, other)]
    logs = [pd.DataFrame(checkpoint.meta["history"]) for checkpoint in checkpoints]
    pd.testing.assert_frame_equal(
        *(log.drop(columns="seconds") for log in logs), rtol=1e-9, atol=1e-11
    )
    states = [dict(checkpoint.state) for checkpoint in checkpoints]
    assert states[0].keys() == states[1].keys()
    assert_close(*(list(state.values()) for state in states))
    assert any(value.dtype == torch.float64 for value in states[0].values())


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
    names = [name for name in contents(shared) if not name.startswith("chain")]
    cases = sorted([*together.CASES, "few"])
    assert names == [f"{case}.pt{end}" for case in cases for end in ("", ".csv")]


def test_when_one_process_is_killed_the_other_says_so_and_the_best_network_is_kept(
    tmp_path: Path,
) -> None:
    data, out = write_npz(tmp_path), tmp_path / "net.pt"
    words = f"train --method cifs --data {data} --out {out} --arch resnet10 --width 2".split()
    words += ["--batch-size", "8", "--epochs", "9999", "--set", "attack.steps=1", "--device", "cpu"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    started = subprocess.Popen(
        [sys.executable, *torchrun, "-m", "helpers.processes", str(tmp_path), *words],
        cwd=TESTS, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        log = tmp_path / "net.pt.csv"
        # Until an epoch is complete.
        while not log.exists() or len(log.read_text().splitlines()) < 2:
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
    assert "Another process of this run has ended, or torchrun was stopped." in said
    assert f"{out}.partial" in said
    assert "--resume" in said
    assert errors.count("Traceback (most recent call last)") <= 1, "but for torchrun's own"
    partial = out.with_name("net.pt.partial")
    assert load(partial)(torch.rand(2, 1, 8, 8)).shape == (2, 2)
    test = Dataset(f"npz:{tmp_path / 'digits.npz'}", ("0", "1"), digits(2).test)
    options = {"attack": "pgd-1", "attacks": (), "replicates": 20, "progress": False}
    log_rows = cs.compare([partial], test, **options).training
    assert len(log_rows) == len(Checkpoint.read(partial).meta["history"]) >= 1
    assert not out.exists()
