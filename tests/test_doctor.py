"""Doctor: it tells what is amiss and what to do, whatever is broken, and nothing that is nobody's business."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from channelscope import doctor
from channelscope.cli import main
from channelscope.data.standard import TORCHVISION
from channelscope.doctor import contents, devices, loading, storage

SECTIONS = ["versions", "extras", "devices", "threads", "data", "disks", "memory", "package"]
WELL: dict[str, Any] = {
    "failure": "",
    "threads": 1,
    "built for": "CUDA 13.0",
    "cuda": [],
    "mps": False,
    "warnings": [],
}
GIB = 2**30


def gpu(**changes: Any) -> dict[str, Any]:
    return {"name": "A GPU", "free": 3 * GIB, "total": 4 * GIB, "failure": ""} | changes


@pytest.fixture
def torch_known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine on which all is well, but for what a test changes of what torch tells."""
    known = dict(WELL)
    monkeypatch.setattr(loading, "load_apart", lambda: {"torch": known})
    monkeypatch.setattr(storage, "_free_memory", lambda: (8 * GIB, 9 * GIB))
    monkeypatch.setattr(devices, "DRIVER", Path("/nowhere"))
    monkeypatch.setattr(devices, "CGROUP", Path("/nowhere"))
    usage = shutil.disk_usage("/")._replace(free=5 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for name in ("CHANNELSCOPE_DATA", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return known


def troubles(folder: Path = Path("data")) -> list[str]:
    return doctor.examine(folder).troubles


def line(name: str) -> str:
    lines = [line for lines in doctor.examine(Path("data")).sections.values() for line in lines]
    return next(line.found for line in lines if line.name == name)


def test_where_all_is_well_it_says_so_in_a_fixed_order(
    torch_known: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert [part.splitlines()[0] for part in text.split("\n\n")] == [*SECTIONS, "nothing is amiss"]
    for package in ("torch", "torchvision", "numpy", "pandas", "matplotlib", "captum"):
        assert f"  {package:<18} {importlib.metadata.version(package)}\n" in text


def test_places_of_data_sets_are_those_that_are_read() -> None:
    assert {
        name: place.format(part="test") for name, (_, place) in TORCHVISION.items()
    } == storage.PLACES


def test_data_sets_that_are_there_are_told(torch_known: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    lines = {line.name.strip(): line for line in doctor.examine(tmp_path).sections["data"]}
    assert lines["mnist"].found == "there"
    assert lines["cifar10"].found == "not there: --download fetches it"
    assert not troubles(tmp_path)


# ---------------------------------------------------------------- packages that do not load

FAKES = {
    "raises": (
        "raise ImportError('libnowhere.so: cannot open shared object file')",
        "ImportError: libnowhere.so",
    ),
    "exits": ("import os; os._exit(3)", "ended with status 3"),
    "crashes": (
        "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
        "ended with signal SIGILL",
    ),
    "talks and lacks everything": ("print('torch\\tfunny'); print('{}')", "AttributeError"),
    "hangs": ("import time; time.sleep(60)", "no answer in 5 seconds"),
}


def fake_torch(folder: Path, code: str) -> Path:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text(code, "utf-8")
    return folder


@pytest.mark.parametrize(("code", "words"), FAKES.values(), ids=FAKES)
def test_torch_that_does_not_load_is_told(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(fake_torch(tmp_path, code)))
    monkeypatch.setattr(loading, "COMPILED", ("torch",))
    monkeypatch.setattr(loading, "PATIENCE", 5)
    (trouble,) = (trouble for trouble in troubles() if trouble.startswith("torch "))
    assert "does not load" in trouble
    assert words in trouble
    assert "pip install" in trouble
    assert line("gpu") == "not known, as torch does not load"


def test_the_command_works_without_torch(tmp_path: Path) -> None:
    path = os.pathsep.join([str(fake_torch(tmp_path, FAKES["raises"][0])), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "channelscope", "doctor"],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "libnowhere.so" in done.stdout
    assert not done.stderr
    assert "pandas" in done.stdout
    assert done.stdout.count("does not load: ") == 2  # torchvision, which needs it, does not either


def test_what_torch_tells_of_a_real_one_is_understood() -> None:
    found = loading.load_apart()
    assert set(found) == set(loading.COMPILED)
    assert {known["failure"] for known in found.values()} == {""}
    assert set(found["torch"]) == set(WELL)
    assert found["torch"]["threads"] >= 1


@pytest.mark.parametrize(
    ("version", "wanted"), [("2.5.1", ">=2.6"), (None, ">=2.6")], ids=["old", "missing"]
)
def test_a_package_that_is_too_old_or_missing(
    version: str | None, wanted: str, torch_known: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def told(package: str) -> str:
        if package == "torch" and version is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return str(version) if package == "torch" else real(package)

    monkeypatch.setattr(importlib.metadata, "version", told)
    (trouble,) = troubles()
    assert f"pip install 'torch{wanted}'" in trouble
    assert trouble.startswith("torch 2.5.1 is installed" if version else "torch is not there")


def test_an_extra_that_is_missing_is_no_trouble(
    torch_known: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def told(package: str) -> str:
        if package == "wandb":
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(importlib.metadata, "version", told)
    assert line("wandb") == "missing wandb: pip install 'channelscope[wandb]'"
    assert not troubles()


def test_a_package_that_is_not_installed_itself(
    torch_known: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(package: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "requires", told)
    assert troubles() == ["channelscope runs without being installed: pip install channelscope."]


# ---------------------------------------------------------------- devices and threads


def test_gpus_are_told_with_their_memory(torch_known: dict[str, Any]) -> None:
    torch_known["cuda"] = [gpu()]
    assert line("cuda:0") == "A GPU, 3.0 GiB of 4.0 GiB free, CUDA 13.0"
    assert not troubles()


def test_a_gpu_that_computes_nothing_is_a_trouble(torch_known: dict[str, Any]) -> None:
    torch_known["cuda"] = [gpu(), gpu(failure="no kernel image")]
    assert troubles() == [
        "cuda:1 cannot be used (no kernel image): try another torch, or --device cpu."
    ]


def test_a_driver_that_does_not_suit_is_a_trouble(torch_known: dict[str, Any]) -> None:
    torch_known["warnings"] = ["The NVIDIA driver on your system is too old (found version 11040)."]
    (trouble,) = troubles()
    assert "too old" in trouble
    assert "update the driver" in trouble


def test_a_driver_without_a_gpu_for_torch(
    torch_known: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(devices, "DRIVER", tmp_path)
    torch_known["built for"] = "the CPU alone"
    assert "built for the CPU alone" in troubles()[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not troubles()
    assert line("cuda") == "hidden by CUDA_VISIBLE_DEVICES"


def test_more_threads_than_cores_are_a_trouble(
    torch_known: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch_known["threads"] = 10**6
    assert "which is slow: set OMP_NUM_THREADS=" in troubles()[0]
    torch_known["threads"] = 2
    (tmp_path / "cpu.max").write_text("100000 100000\n")  # a container's share: one core
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    assert troubles() == ["torch uses 2 threads on 1 cores, which is slow: set OMP_NUM_THREADS=1."]


# ---------------------------------------------------------------- data, disks, memory, files


def test_folders_that_cannot_be_read_or_written_are_told(torch_known: dict[str, Any]) -> None:
    found = troubles(Path("x" * 300))
    assert len(found) == 2
    assert all("File name too long" in trouble for trouble in found)


def test_a_disk_that_is_read_only(
    torch_known: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(dir: Path) -> None:
        raise OSError(30, "Read-only file system", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    found = troubles()
    assert "give --out another place" in found[0]
    assert "TMPDIR" in " ".join(found)


def test_a_disk_that_is_full(torch_known: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=2**27)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "Only 0.1 GiB are free" in troubles()[0]


def test_too_little_memory(
    torch_known: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    free, total = storage._free_memory()
    assert 0 < free <= total
    (tmp_path / "memory.max").write_text("1073741824\n")  # a container's share
    (tmp_path / "memory.current").write_text("536870912\n")
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    monkeypatch.setattr(loading, "load_apart", lambda: {"torch": torch_known})
    assert line("memory") == "0.5 GiB of 1.0 GiB free"
    assert any(trouble.startswith("Only 0.5 GiB of memory are free") for trouble in troubles())


def test_a_folder_that_the_environment_names_and_that_is_not_there(
    torch_known: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CHANNELSCOPE_DATA", str(tmp_path / "gone"))
    assert "which is not there" in troubles()[0]
    monkeypatch.setenv("CHANNELSCOPE_DATA", str(tmp_path))
    assert not troubles()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a bit": ("zoo/cifar10-at.pt", flip),
    "a half": ("zoo/cifar10-at.pt", lambda path: path.write_bytes(path.read_bytes()[:9999])),
    "nothing left": ("zoo/cifar10-cas.pt", lambda path: path.unlink()),
    "a recipe": ("recipes/methods/at.toml", lambda path: path.write_text("[")),
    "a template": ("templates/report.css", lambda path: path.unlink()),
}


@pytest.mark.parametrize(("name", "harm"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_files_of_the_package(
    name: str,
    harm: Callable[[Path], object],
    torch_known: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for folder in ("zoo", "recipes", "templates"):
        shutil.copytree(contents.HERE / folder, tmp_path / folder)
    monkeypatch.setattr(contents, "HERE", tmp_path)
    assert not troubles()
    harm(tmp_path / name)
    assert troubles() == [f"{name} is missing or damaged: install channelscope again."]


def test_what_doctor_does_not_foresee_is_a_line_too(
    torch_known: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(storage, "_free_memory", fails)
    assert troubles() == ["Doctor met what it does not know: ZeroDivisionError: by zero."]


def test_no_secrets_and_no_name_of_the_user(
    torch_known: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home" / "jane.doe"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "hunter2")
    monkeypatch.setenv("CHANNELSCOPE_DATA", str(home / "gone"))
    monkeypatch.chdir(home)
    text = doctor.examine(home / "data").text()
    assert "hunter2" not in text
    assert "jane.doe" not in text
    assert "~/data" in text
    assert "CHANNELSCOPE_DATA names ~/gone" in text
    assert "OMP_NUM_THREADS is set to what is no number" in text
