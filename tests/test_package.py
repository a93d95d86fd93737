"""The package as such: its public face, and that importing it or asking for help is instant."""

import runpy
import subprocess
import sys
from importlib.metadata import entry_points, requires, version
from pathlib import Path
from types import ModuleType

import pytest

import channelscope

pytestmark = pytest.mark.slow

HEAVY = {
    "torch",
    "numpy",
    "pandas",
    "matplotlib",
    "scipy",
    "seaborn",
    "sklearn",
    "torchvision",
    "captum",
    "PIL",
    "tqdm",
}


def loaded(code: str) -> set[str]:
    """Run code in a fresh interpreter; give the names of the packages that it has loaded."""
    names = "print(*{name.split('.')[0] for name in __import__('sys').modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{names}"], check=True, capture_output=True, text=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded("import channelscope; channelscope.__version__; dir(channelscope)") & HEAVY


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["compare", "--help"], ["train", "--method", "none"]],
    ids=" ".join,
)
def test_asking_for_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "from channelscope.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass"
    )
    assert not loaded(code) & HEAVY


@pytest.mark.parametrize("name", ["result", "gallery", "report", "explorer", "figures"])
def test_what_shows_saved_tables_needs_no_torch(name: str) -> None:
    assert "torch" not in loaded(f"import channelscope.{name}")


@pytest.mark.parametrize("name", channelscope.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(channelscope, name)
    assert not isinstance(found, ModuleType)
    assert found.__doc__
    assert name in dir(channelscope)


@pytest.mark.parametrize("code", [
    "import channelscope.layers.features, channelscope as cs; assert callable(cs.capture)",
    "import channelscope.scorers, channelscope as cs; assert callable(cs.relevance)",
    (
        "from channelscope import capture; "
        "from channelscope.layers.features import capture as same; assert capture is same"
    ),
])  # fmt: skip
def test_names_are_functions_whatever_was_imported_before(code: str) -> None:
    loaded(code)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = channelscope.nothing


def test_the_version_is_the_installed_one() -> None:
    assert channelscope.__version__ == version("channelscope")


def test_the_command_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="channelscope")
    assert script.value == "channelscope.cli:main"


def test_recipes_templates_and_types_come_along() -> None:
    from importlib.resources import files

    package = files("channelscope")
    recipes = ("settings/cifar10-resnet18", "methods/cifs", "fast", "sweeps")
    for name in (
        "py.typed",
        "templates/report.html.j2",
        "templates/report.js",
        *(f"recipes/{recipe}.toml" for recipe in recipes),
    ):
        assert package.joinpath(name).is_file()


ROOT = Path(__file__).parent.parent


def test_all_that_users_install_has_a_lower_bound_that_is_tried() -> None:
    """By ``make test-oldest``; what setup.cfg asks for is what is installed."""
    constraints = runpy.run_path(str(ROOT / ".ci" / "lower_bounds.py"))["constraints"]
    found = list(constraints((ROOT / "setup.cfg").read_text("utf-8")))
    needed = [line for line in requires("channelscope") or () if "extra ==" not in line]
    assert found[: len(needed)] == [line.replace(">=", "==") for line in needed]
    assert "pyautoattack==0.2" in found
    with pytest.raises(SystemExit, match="'numpy' has no lower bound"):
        list(constraints((ROOT / "setup.cfg").read_text("utf-8").replace("numpy>=1.26.4", "numpy")))
