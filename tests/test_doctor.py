"""Doctor: it tells what is amiss and what to do, whatever is broken, and nothing private."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from channelscope import doctor
from channelscope.cli import main
from channelscope.data.readers import TORCHVISION

pytestmark = pytest.mark.slow

Facts = dict[str, Any]


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch) -> Facts:
    """A machine on which all is well, but for what a test changes of what the packages say."""
    facts: Facts = {"gpus": [], "mps": False, "threads": 1, "failure": ""}
    facts["imported"] = set(doctor.COMPILED)
    monkeypatch.setattr(doctor, "_probe_packages", lambda: facts)
    for name in ("CHANNELSCOPE_DATA", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return facts


def problems(folder: Path = Path("data")) -> list[str]:
    return [finding.problem for finding in doctor.examine(folder) if finding.problem]


def text_of(name: str, folder: Path = Path("data")) -> str:
    return next(finding.text for finding in doctor.examine(folder) if finding.name == name)


def test_where_all_is_well_it_says_so(facts: Facts, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("problems: none\n")
    for package in ("torch", "torchvision", "numpy", "pandas", "matplotlib", "captum"):
        assert f"{package:<18} {importlib.metadata.version(package)}\n" in printed
    assert f"{'zoo':<18} 4 of 4 files intact\n" in printed


def test_the_command_says_what_to_do_and_fails_where_something_is_amiss(
    facts: Facts, capsys: pytest.CaptureFixture[str]
) -> None:
    facts["threads"] = 10**6
    assert main(["doctor"]) == 1
    assert "problems: 1\n  - torch uses more threads" in capsys.readouterr().out


def test_places_of_data_sets_are_those_that_are_read() -> None:
    places = {name: place.format(part="test") for name, (_, place) in TORCHVISION.items()}
    assert places == doctor.DATA


def test_data_sets_that_are_there_are_listed(facts: Facts, tmp_path: Path) -> None:
    assert "nothing yet" in text_of("--data-root", tmp_path)
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    assert text_of("--data-root", tmp_path) == f"{tmp_path}: mnist"
    assert not problems(tmp_path)


# ---------------------------------------------------------------- packages

FAKES = {
    "raises": ("raise ImportError('libnowhere.so: no such file')", "ImportError: libnowhere.so"),
    "exits": ("import os; os._exit(3)", "status 3"),
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "signal SIGILL"),
    "talks and lacks all": ("print('{')", "ModuleNotFoundError"),
    "hangs": ("import time; time.sleep(60)", "no answer in 5 seconds"),
}


def fake_torch(folder: Path, code: str) -> Path:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text(code, "utf-8")
    return folder


@pytest.mark.parametrize(("code", "words"), FAKES.values(), ids=FAKES)
def test_torch_that_cannot_be_imported(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(fake_torch(tmp_path, code)))
    monkeypatch.setattr(doctor, "COMPILED", ("torch", "torchvision"))
    monkeypatch.setattr(doctor, "PATIENCE", 5)
    (problem,) = (each for each in problems() if "cannot be imported" in each)
    assert problem.startswith(("torch ", "torchvision "))
    assert words in problem
    assert "pip install --force-reinstall 'torch" in problem
    assert text_of("gpu") == "unknown"


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
    assert "pandas" in done.stdout
    assert not done.stderr


def test_what_the_packages_say_is_understood() -> None:
    facts = doctor._probe_packages()
    assert facts["imported"] == set(doctor.COMPILED)
    assert facts["threads"] >= 1
    assert {"gpus", "mps"} <= set(facts)


@pytest.mark.parametrize("version", ["2.5.1", None], ids=["old", "missing"])
@pytest.mark.parametrize("package", ["torch", "wandb"])
def test_a_package_that_is_old_or_missing(
    package: str, version: str | None, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_version = importlib.metadata.version

    def fake_version(name: str) -> str:
        if name == package and version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return str(version) if name == package else real_version(name)

    monkeypatch.setattr(importlib.metadata, "version", fake_version)
    if package == "wandb":  # an extra
        wanted = "missing: " if version is None else version
        assert text_of(package).startswith(wanted)
        assert not problems()
        return
    (problem,) = problems()
    assert problem.startswith("torch 2.5.1, but >=2.6 is needed: " if version else "torch missing")
    assert problem.endswith("pip install 'torch>=2.6'.")


def test_a_package_that_is_not_installed_itself(
    facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(package: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "requires", refuse)
    (problem,) = problems()
    assert problem.endswith("for channelscope: pip install channelscope.")


# ---------------------------------------------------------------- devices, data, files


def test_gpus_are_listed(facts: Facts) -> None:
    facts["gpus"] = ["A GPU", "Another"]
    assert text_of("cuda") == "A GPU, Another"
    assert not problems()


def test_a_gpu_that_computes_nothing_is_a_problem(facts: Facts) -> None:
    del facts["gpus"]
    facts["failure"] = "RuntimeError: no kernel image"
    (problem,) = problems()
    assert problem.startswith("torch fails on its devices (RuntimeError: no kernel image): use")


def test_more_threads_than_cores_are_a_problem(facts: Facts) -> None:
    facts["threads"] = 10**6
    assert "set OMP_NUM_THREADS=" in problems()[0]


def test_a_data_folder_that_cannot_be_read(
    facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # to root, all is permitted
    assert f"{tmp_path} may not be read" in problems(tmp_path)[0]


def test_a_folder_that_the_environment_names(
    facts: Facts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CHANNELSCOPE_DATA", str(tmp_path / "gone"))
    assert "which is no folder" in problems()[0]
    monkeypatch.setenv("CHANNELSCOPE_DATA", str(tmp_path))
    assert not problems()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


ZOO = "weights/zoo/cifar10"
DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a bit": (f"{ZOO}-at.pt", flip),
    "a half": (f"{ZOO}-at.pt", lambda path: path.write_bytes(path.read_bytes()[:9999])),
    "a missing network": (f"{ZOO}-cas.pt", lambda path: path.unlink()),
    "a recipe": ("recipes/methods/at.toml", lambda path: path.write_text("[")),
    "a template": ("templates/report.css", lambda path: path.unlink()),
}


@pytest.mark.parametrize(("name", "harm"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_files_of_the_package(
    name: str,
    harm: Callable[[Path], object],
    facts: Facts,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for folder in ("weights/zoo", "recipes", "templates"):
        shutil.copytree(doctor.HERE / folder, tmp_path / folder)
    monkeypatch.setattr(doctor, "HERE", tmp_path)
    assert not problems()
    harm(tmp_path / name)
    assert problems() == [f"{name} missing or damaged: install channelscope again."]


def test_no_secrets_and_no_name_of_the_user(
    facts: Facts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home" / "jane.doe"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for name in ("WANDB_API_KEY", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("CHANNELSCOPE_DATA", str(home / "gone"))
    monkeypatch.chdir(home)
    text = doctor.format_findings(doctor.examine(home / "data"))
    assert "hunter2" not in text
    assert "jane.doe" not in text
    assert "~/data" in text
    assert "CHANNELSCOPE_DATA names ~/gone" in text
