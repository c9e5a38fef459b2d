"""The files around the code say what the code says: versions, test files, linters, links."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md", ROOT / "cache" / "README.md"]


def test_the_citation_is_of_this_software() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {key: str(citation[key]) for key in ("title", "version", "license")} == {
        "title": PROJECT["name"],
        "version": PROJECT["version"],
        "license": PROJECT["license"],
    }
    assert citation["cff-version"] == "1.2.0" and citation["message"]


def test_the_fast_tests_exist() -> None:
    (names,) = re.findall(r"^FAST := ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
    files = [f"test_{name}.py" for name in names.replace("\\\n", " ").split()]
    assert files == sorted(set(files)) and len(files) > 10
    assert [name for name in files if not (ROOT / "tests" / name).is_file()] == []


def test_the_hooks_run_every_linter_of_make_check() -> None:
    (recipe,) = re.findall(r"^check: setup\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    commands = [line.removeprefix("\t$(BIN)/").split() for line in recipe.splitlines()]
    linters = [" ".join(words[:2] if words[0] == "ruff" else words[:1]) for words in commands]
    assert linters == ["ruff check", "ruff format", "mypy", "bandit"]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local", "hooks of other repositories are downloaded"
    entries = [hook["entry"] for hook in repository["hooks"]]
    assert [name for name in linters if not any(entry.startswith(f".venv/bin/{name}") for entry in entries)] == []


def test_the_workflow_runs_what_the_script_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    steps = [step.get("run") for step in workflow["jobs"]["test"]["steps"]]
    assert "bash .ci/run" in steps and (ROOT / ".ci" / "run").is_file()
    assert (
        workflow["jobs"]["audit"]["continue-on-error"] is True and "continue-on-error" not in workflow["jobs"]["test"]
    )


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml")), ids=lambda path: path.stem
)
def test_issue_forms_have_what_github_asks_for(form: Path) -> None:
    content = yaml.safe_load(form.read_text())
    assert content["name"] and content["description"]
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert fields and len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_pages_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings}, target


def test_what_may_hold_films_is_ignored_by_git() -> None:
    paths = ["cache/films.h5", "runs/cae-1/report.html", "films/a.png", "phantoms/a.png"]
    done = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.stdout.split() == paths


def test_the_site_builds_without_broken_links(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert {page.stem for page in (tmp_path / "site").glob("*.html")} == pages | {"404"}
    assert not re.findall(r'(?:src|href)="https?://', (tmp_path / "site" / "index.html").read_text())


def test_a_broken_link_ends_the_build(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "index.md").open("a") as page:
        page.write("\n[nowhere](usage.md#no-such-heading)\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "no-such-heading" in done.stderr


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
    assert len((ROOT / "docs" / "performance.md").read_text().splitlines()) <= 150
