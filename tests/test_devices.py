"""The device is chosen, and processes do not share one; more is in tests/device."""

import ast
from pathlib import Path

import pytest
import torch

import channelscope
from channelscope.devices import (
    fork_rng,
    get_local_device,
    is_accelerator,
    list_seeded,
    resolve_device,
    synchronise,
    wide_dtype,
    widen,
)
from channelscope.errors import UserError

# What makes tensors on torch's default device, unless it is told another one.
FACTORIES = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint"}
FACTORIES |= {"randn", "randperm", "tensor", "zeros"}


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Be the second of two processes of the second of two machines, which has four GPUs."""
    settings = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (settings | {"MASTER_ADDR": "127.0.0.1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    return monkeypatch


@pytest.mark.usefixtures("torchrun")
def test_of_several_processes_each_has_its_own_gpu() -> None:
    assert get_local_device("cuda") == "cuda:1"
    assert get_local_device("cpu") == "cpu"


def test_processes_of_a_machine_cannot_share_a_gpu(torchrun: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'cuda:1'"):
        get_local_device("cuda:1")
    torchrun.setenv("LOCAL_WORLD_SIZE", "5")
    with pytest.raises(UserError, match="4 GPUs"):
        get_local_device("cuda")


def test_a_machines_only_process_may_name_its_gpu(torchrun: pytest.MonkeyPatch) -> None:
    torchrun.setenv("LOCAL_WORLD_SIZE", "1")
    assert get_local_device("cuda:3") == "cuda:3"


@pytest.mark.usefixtures("torchrun")
def test_several_processes_need_cuda_or_the_cpu() -> None:
    with pytest.raises(UserError, match="several processes"):
        resolve_device("mps")


@pytest.mark.parametrize("device", ["meta", "nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UserError, match=device):
        resolve_device(device)


def test_the_accelerator_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch, "zeros", lambda n, device: zeros(n, device="cpu"))
    assert resolve_device() == "mps"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert resolve_device() == "cpu"


def test_the_cpu_is_wide_and_needs_no_waiting() -> None:
    assert wide_dtype("cpu") == torch.float64
    assert widen(torch.ones(2)).dtype == torch.float64
    assert not is_accelerator("cpu")
    assert is_accelerator("cuda:1")
    synchronise("cpu")


def test_random_state_is_seeded_and_restored() -> None:
    before = torch.get_rng_state()
    with fork_rng("cpu", seed=3):
        first = torch.rand(2)
        torch.manual_seed(3)
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(is_accelerator(device) for device in list_seeded())


def test_every_tensor_that_the_package_makes_is_put_on_a_device() -> None:
    """Else ``torch.set_default_device`` would put it elsewhere.

    Networks are built where their builder says so, buffers and all.
    """
    nowhere, root = [], Path(channelscope.__file__).parent
    for path in set(root.rglob("*.py")) - {root / "networks.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(ast.Attribute(ast.Name("torch"), name), _, keywords):
                    is_placed = "device" in [keyword.arg for keyword in keywords]
                    if name in FACTORIES and not is_placed:
                        nowhere.append(f"{path}:{node.lineno}")
    assert not nowhere
