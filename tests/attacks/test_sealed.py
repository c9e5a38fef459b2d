"""Files that carry their own SHA-256: a bit that flips in one ends what would be made of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly.evaluation.figures import read_metrics
from anomaly.models.pretrained import named_file
from anomaly.pipeline.auto_record import read_scores, write_scores
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.plan import Plan, Prepared, prepare
from anomaly.runs import CHECKPOINT, Run
from anomaly.sealed import sealed, sealed_tensors, state_of_tensors, unsealed
from anomaly.training.trainer import Trainer
from preprocessing import InputError
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source

from ..conftest import TINY
from ..test_cli import typed

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def flip(data: bytes, place: int, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[place] ^= 1 << bit
    return bytes(damaged)


@settings(max_examples=50, deadline=None)
@given(record=st.dictionaries(st.text(min_size=1).filter("sha256".__ne__), JSON_VALUES, max_size=4), data=st.data())
def test_a_record_comes_back_and_no_flipped_bit_of_it_does(record, data):
    text = sealed(record).encode()
    assert unsealed(text) == record == unsealed(json.dumps(record))
    place = data.draw(st.integers(0, len(text) - 1))
    try:
        changed = unsealed(flip(text, place, data.draw(st.integers(0, 7))))
    except ValueError as error:
        assert "\n" not in str(error)
    else:  # the hash's own name changed, which no record with fixed fields takes, or white space did
        assert changed == record or any(name not in record for name in changed)


@pytest.fixture(scope="module")
def interrupted(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Run]:
    """A training that stopped after its first epoch."""
    prepared = prepare(Plan("cae", cache.path, "full-he", settings=TINY, device="cpu"))
    run = continue_or_create(prepared, tmp_path_factory.mktemp("interrupted") / "cae", resume=False)
    original = Trainer.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run", lambda self, *words: original(self, *words, checkpoint_seconds=0.0))

        def stop(report: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(prepared, run, workers=0, on_epoch=stop)
    assert run.epochs_done() == 1
    return prepared, run


def test_no_flipped_bit_of_a_checkpoint_goes_on_into_the_weights(interrupted, tmp_path, capsys):
    """At fifty random places and in each part of its header; the training ends before its first step."""
    prepared, run = interrupted
    copied = Run(Path(shutil.copytree(run.path, tmp_path / "cae")))
    file, data = copied.path / CHECKPOINT, (run.path / CHECKPOINT).read_bytes()
    random, head = np.random.default_rng(0), 8 + int.from_bytes(data[:8], "little")
    places = [0, 5, *random.integers(8, head, 20).tolist(), *random.integers(head, len(data), 30).tolist()]
    for place in places:
        file.write_bytes(flip(data, place, int(random.integers(8))))
        with pytest.raises(InputError, match=rf"^{file} is damaged .*; put the right file back, or delete it: then"):
            fit(prepared, copied, workers=0, on_epoch=lambda report: None)
    status, _, error = typed(capsys, "score", copied.path)
    assert status == 2 and f"error: {file} is damaged" in error and error.count("error: ") == 1
    for twentieth in range(20):
        file.write_bytes(data[: len(data) * twentieth // 20])
        with pytest.raises(InputError, match=f"^{file} is damaged"):
            copied.epochs_done()


def test_without_its_checkpoint_a_training_starts_again(interrupted, tmp_path):
    prepared, run = interrupted
    copied = Run(Path(shutil.copytree(run.path, tmp_path / "cae")))
    (copied.path / CHECKPOINT).unlink()
    epochs: list[int] = []
    fit(prepared, copied, workers=0, on_epoch=lambda report: epochs.append(report.epoch))
    assert epochs == [1, 2, 3]


def test_run_json_of_an_unfinished_run_is_compared_too(interrupted, tmp_path, capsys):
    _, run = interrupted
    copied = Path(shutil.copytree(run.path, tmp_path / "cae"))
    text = (copied / "run.json").read_text()
    (copied / "run.json").write_text(text.replace('"batch_size": 8', '"batch_size": 9'))
    status, _, error = typed(capsys, "score", copied)
    assert status == 2 and f"{copied / 'run.json'} is damaged (its own SHA-256 is another)" in error


def test_sealed_tensors_are_those_that_were_given(tmp_path):
    from safetensors.torch import load_file

    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16), "c": torch.tensor(True)}
    state = {"text": 'with "sha256":"' + "0" * 64 + '" in it', "best": float("inf")}
    (tmp_path / "a.safetensors").write_bytes(sealed_tensors(tensors, state))
    assert state_of_tensors(tmp_path / "a.safetensors", "") == state
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_changed_digit_of_figures_is_noticed(run, tmp_path, capsys):
    copied = Path(shutil.copytree(run.path, tmp_path / "cae"))
    assert typed(capsys, "score", copied)[0] == 0
    file = copied / "metrics.json"
    file.write_text(file.read_text().replace('"films": ', '"films": 1', 1))
    with pytest.raises(InputError, match=r"metrics\.json was changed or damaged .*; run `anomaly score"):
        read_metrics(Run(copied))
    for words in (["compare", copied, copied], ["export", copied, "--out", tmp_path / "bundle"]):
        status, _, error = typed(capsys, *words)
        assert status == 2 and "metrics.json was changed or damaged" in error, words
    assert "damaged" in typed(capsys, "runs", tmp_path)[1]


def test_a_training_goes_on_from_no_damaged_weights(run, tmp_path, capsys):
    copied = Path(shutil.copytree(run.path, tmp_path / "parent"))
    data = (copied / "weights.safetensors").read_bytes()
    (copied / "weights.safetensors").write_bytes(flip(data, len(data) - 20, 3))
    status, _, error = typed(capsys, "train", copied, "--more-epochs", 1)
    assert status == 2 and "weights.safetensors was changed or damaged" in error
    with pytest.raises(InputError, match=r"weights\.safetensors was changed or damaged"):
        named_file(str(copied))


def test_scores_of_a_candidate_are_compared(tmp_path):
    write_scores(tmp_path, "cae", {"film": ["a", "b"], "score": [1.25, 2.5]})
    file = tmp_path / "scores" / "cae.csv"
    assert [line["score"] for line in read_scores(tmp_path, "cae")] == ["1.25", "2.5"]
    file.write_text(file.read_text().replace("2.5", "3.5"))
    with pytest.raises(InputError, match=r"cae\.csv was changed or damaged"):
        read_scores(tmp_path, "cae")


def stopped_build(folder: Path, films: Path) -> Callable[[], Path]:
    """Prepare all films but the last ones into `folder`, and return what finishes that."""
    source, path = open_source(films), folder / "films.h5"

    def stop(progress: object) -> None:
        if getattr(progress, "phase", "") == "films" and getattr(progress, "done", 0) == len(source.records) - 2:
            raise KeyboardInterrupt

    options = BuildOptions(variants=("raw",), workers=1)
    with pytest.raises(KeyboardInterrupt):
        build(source, Recipe(name="plain", size=64), path, options=options, on_progress=stop)
    return lambda: build(source, Recipe(name="plain", size=64), path, options=options).path


def test_no_flipped_bit_of_a_journal_reaches_the_cache(tmp_path):
    """A changed digit of a label, say, is still JSON."""
    films = tmp_path / "films"
    write_phantoms(films, seed=0, patients=4, size=64)
    whole = Cache(stopped_build(tmp_path, films)()).content_hash
    random = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / str(number)
        folder.mkdir()
        finish = stopped_build(folder, films)
        journal = folder / "films.h5.partial.rows"
        data = journal.read_bytes()
        place = int(random.integers(len(data))) if number else data.index(b'"label": ') + 9
        journal.write_bytes(flip(data, place, 0))
        assert Cache(finish()).content_hash == whole
