"""Help with typing: examples that hold, words that were meant, Tab, and what comes next."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from anomaly.cli import completion
from anomaly.cli.app import app
from anomaly.cli.examples import EXAMPLES
from anomaly.models import TOOLS, zoo
from anomaly.runs import Run
from preprocessing.cache.reader import Cache

from .test_cli import refused, typed
from .test_run_list import make, scored

GROUP: Any = typer.main.get_command(app)
VERBS = sorted(GROUP.commands)


def parse(words: list[str]) -> None:
    """Parse a command as it is typed, and run nothing."""
    command = GROUP.commands[words[0]]
    command.make_context(words[0], words[1:])


# --- examples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_has_examples_that_can_be_typed(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    examples = EXAMPLES.get(verb, ())
    assert len(examples) >= 2, f"{verb} needs two examples in anomaly/cli/examples.py"
    shown = typed(capsys, verb, "--help")[1]
    for example in examples:
        program, *words = shlex.split(example)
        assert program == "anomaly" and words[0] == verb
        parse(words)
        assert f"\n    {example}\n" in shown + "\n"  # on a line of its own, not wrapped


def test_examples_are_of_verbs_that_there_are_and_name_models_that_there_are() -> None:
    assert set(EXAMPLES) <= set(VERBS)
    for verb in ("train", "tune", "models"):
        for example in EXAMPLES[verb]:
            name = [word for word in shlex.split(example)[2:] if not word.startswith("-")][:1]
            assert not name or name[0].startswith("runs/") or name[0] in {*zoo(), *TOOLS}


# --- what was meant -------------------------------------------------------------------------------------------------


def test_the_word_that_was_meant_is_named(capsys: pytest.CaptureFixture[str], cache: Cache, run: Run) -> None:
    at = ("--cache", cache.path)
    for words, meant in (
        (("trian", "cae"), "Did you mean 'train'?"),
        (("train", "cae", "--varient", "raw"), "did you mean --variant?"),
        (("train", "cea"), "did you mean 'cae'?"),
        (("models", "feature-mixture"), "did you mean 'feature_mixture'?"),
        (("train", "cae", *at, "--set", "lernig_rate=1"), "did you mean 'learning_rate'?"),
        (("train", "cae", *at, "--preset", "fats"), "did you mean 'fast'?"),
        (("train", "cae", *at, "--variant", "full_he"), "did you mean 'full-he'?"),
        (("train", "cae", *at, "--where", "patien=x"), "did you mean 'patient'?"),
        (("score", run.path, "--split", "vall"), "did you mean 'val'?"),
        (("score", run.path, "--by", "mse_top"), "did you mean 'mse_topk'?"),
        (("score", run.path, "--by-column", "difficulti"), "did you mean 'difficulty'?"),
        (("bench", *at, "--models", "cae,vea", "--dry-run"), "did you mean 'vae'?"),
        (("bench", *at, "--models", "cae", "--set", "epoch=1"), "did you mean 'epochs'?"),
    ):
        assert meant in refused(capsys, *words), words
    assert "did you mean" not in refused(capsys, "models", "llama").lower()


def test_the_version_names_what_a_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = typed(capsys, "--version")
    assert status == 0 and out.startswith("anomaly ") and "(Python 3." in out and ", torch 2." in out


# --- Tab ------------------------------------------------------------------------------------------------------------


def completed(words: str) -> list[str]:
    """What bash is told for a line typed so far."""
    environment = os.environ | {
        "_ANOMALY_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    code = "import sys; sys.argv[0] = 'anomaly'; from anomaly.cli.app import main\ntry:\n main()\nfinally:\n"
    code += " assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done.stdout.split()


def test_a_shell_completes_verbs_options_models_and_runs() -> None:
    make(Path("runs/cae-1"))
    make(Path("runs/sites/north"))
    assert completed("anomaly compa") == ["compare"]
    assert completed("anomaly train --more-f") == ["--more-films"]
    assert completed("anomaly train feature") == ["feature_mixture"]
    assert completed("anomaly train ru") == completed("anomaly score ru") == ["runs/cae-1", "runs/sites/north"]
    assert completed("anomaly rm runs/cae-1 runs/s") == ["runs/sites/north"]
    assert completed("anomaly models u") == ["unet"]


def test_runs_elsewhere_are_completed_in_the_folder_that_is_typed(tmp_path: Path) -> None:
    make(tmp_path / "other/a")
    assert completion.run_folders(f"{tmp_path}/other/") == [f"{tmp_path}/other/a"]
    assert completion.run_folders("nothing/") == [] and completion.run_folders("") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_shown(shell: str) -> None:
    code = "import sys; sys.argv[:] = ['anomaly']; from anomaly.cli.app import main; main()"
    environment = os.environ | {"_ANOMALY_COMPLETE": f"source_{shell}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "_ANOMALY_COMPLETE" in done.stdout and "anomaly" in done.stdout


# --- what comes next ------------------------------------------------------------------------------------------------


def test_every_verb_says_what_comes_next(
    capsys: pytest.CaptureFixture[str], cache: Cache, run: Run, tmp_path: Path
) -> None:
    """`preprocess`, `train`, `phantom`, `ensemble` and `bench` are followed where they are tested."""
    scored(Path("runs/a"), [0.1, 0.9] * 8)
    scored(Path("runs/b"), [0.2, 0.8] * 8)
    mine = Path(shutil.copytree(run.path, tmp_path / "mine"))
    for words in (
        ("inspect", cache.path),
        ("score", mine, "--out", tmp_path / "out"),
        ("heatmap", mine, "--limit", 1, "--out", tmp_path / "maps"),
        ("report", mine),
        ("models",),
        ("models", "cae"),
        ("models", "ssd"),
        ("runs",),
        ("compare", "runs/a:mse", "runs/b:mse"),
        ("rm", "runs/a", "--yes"),
        ("bench", "--dry-run"),
        ("bench", "--dry-run", "--cache", cache.path),
    ):
        status, out, err = typed(capsys, *words)
        assert status == 0, err
        (following,) = [line for line in out.splitlines() if line.startswith("next: ")]
        program, *then = shlex.split(following.removeprefix("next: "))
        assert program == "anomaly"
        parse(then)


def test_json_is_nothing_but_json(capsys: pytest.CaptureFixture[str], cache: Cache) -> None:
    for words in (("inspect", cache.path, "--json"), ("runs", "--json")):
        assert "next:" not in typed(capsys, *words)[1]


# --- a bench that is only planned -----------------------------------------------------------------------------------


def test_a_dry_run_makes_nothing_and_imports_no_torch() -> None:
    """Measured .25 s of a processor, .9 s on a busy one, against 113 s before it stopped preparing films."""
    code = "import sys; sys.argv[:] = ['anomaly', 'bench', '--dry-run']; from anomaly.cli.app import main\n"
    code += "try:\n main()\nfinally:\n assert not {'torch', 'numpy', 'cv2'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "42 trainings: 7 models x 6 variants x 1 seed, preset fast, 64 px" in done.stdout
    assert "SYNTHETIC" in done.stdout and "not known yet: how long it takes" in done.stdout
    assert "next: anomaly bench\n" in done.stdout and not list(Path().iterdir())


def test_a_dry_run_says_what_it_cannot_know(capsys: pytest.CaptureFixture[str], films: Path, cache: Cache) -> None:
    out = typed(capsys, "bench", films, "--dry-run", "--seeds", "1,2")[1]
    assert "not known yet: how many films there are" in out and "not known yet: the variants" in out
    assert "7 models x the films' variants x 2 seeds" in out and "14 trainings" not in out
    out = typed(capsys, "bench", films, "--dry-run", "--recipe", "plain")[1]
    assert "14 trainings: 7 models x 2 variants x 1 seed" in out
    out = typed(capsys, "bench", "--cache", cache.path, "--models", "all", "--dry-run")[1]
    assert "have no preset fast, and are left out" in out and f"{len(cache)} films of" in out
    assert not Path("runs").exists() and not Path("cache").exists()
    for words, reason in (
        (("nowhere",), "nowhere is not there"),
        (("--cache", cache.path, "--variants", "side"), "no variant 'side'"),
        (("--models", "ssd"), "ssd prepares films"),
        (("--seeds", "a"), "is not a comma list of whole numbers"),
        (("--timed",), "--timed belongs to --dry-run"),
    ):
        assert reason in refused(capsys, "bench", "--dry-run", *words)
