"""What surrounds the package: workflows, the citation, the changelog and the release's checks."""

import re
import runpy
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

import channelscope

ROOT = Path(__file__).parent.parent
RELEASE = runpy.run_path(str(ROOT / ".ci" / "release.py"))


def workflows() -> dict[str, Any]:
    """Read GitHub's workflows, by file name."""
    return {
        path.name: yaml.safe_load(path.read_text("utf-8"))
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
    }


def list_steps() -> list[dict[str, Any]]:
    jobs = [job for workflow in workflows().values() for job in workflow["jobs"].values()]
    return [step for job in jobs for step in job.get("steps", ())]


def list_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def test_workflows_and_hooks_run_targets_of_the_makefile() -> None:
    runs = [step["run"] for step in list_steps() if "run" in step]
    called = {run.split()[1] for run in runs if run.startswith("make ")}
    assert {"test", "wheel", "lint", "types", "floors"} <= called <= list_targets()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    entries = [hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]]
    assert {entry.split()[1] for entry in entries} <= list_targets()


def test_actions_are_pinned_by_version() -> None:
    uses = [step["uses"] for step in list_steps() if "uses" in step]
    assert uses
    assert [use for use in uses if not re.search(r"@v\d", use)] == []


def test_workflows_test_each_python_that_is_supported() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    stated = re.findall(r"Python :: (3\.\d+)", config["metadata"]["classifiers"])
    matrix = workflows()["checks.yml"]["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == stated


def test_only_the_job_that_publishes_may_ask_for_an_identity() -> None:
    """Trusted publishing: no token is kept, and the job that builds cannot publish."""
    jobs = workflows()["release.yml"]["jobs"]
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert all("secrets" not in str(workflow) for workflow in workflows().values())


def test_the_citation_is_complete_and_names_no_version_of_its_own() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    assert "version" not in citation


def test_forms_for_issues_can_be_read() -> None:
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    forms = [yaml.safe_load(path.read_text("utf-8")) for path in folder.glob("*.yml")]
    assert sum({"name", "description", "body"} <= set(form) for form in forms) == len(forms) - 1


def test_the_changelog_begins_with_this_version() -> None:
    version, _ = RELEASE["read_release"]()
    assert version == RELEASE["read_version"]() == channelscope.__version__


def test_a_release_is_refused_unless_tag_source_and_changelog_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = RELEASE["check_release"]
    monkeypatch.setitem(check.__globals__, "HERE", tmp_path)
    (tmp_path / "channelscope").mkdir()
    (tmp_path / "channelscope" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text("# Changelog\n\n## 1.2.3 (2030-01-31)\n")
    check("v1.2.3")
    for tag in ("v1.2.4", "1.2.3"):
        with pytest.raises(SystemExit, match=re.escape(tag)):
            check(tag)
    for text in ("## 1.2.3 (unreleased)", "## 1.2.2 (2030-01-31)", "## 1.2.3"):
        changelog.write_text(f"{text}\n")
        with pytest.raises(SystemExit, match=r"CHANGELOG\.md"):
            check("v1.2.3")
