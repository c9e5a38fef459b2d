"""Bundles: written whole, checked on reading, without what belongs to the machine or the patients of the training."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from anomaly.cli.scoring import score
from anomaly.evaluation.named_calibration import REFITTED
from anomaly.export.bundle import FILE, FORMAT, MODEL, PROBE, read_bundle
from anomaly.export.layouts import hf_front_matter, monai_metadata
from anomaly.export.probe import check_bundle
from anomaly.export.run_copy import stripped
from anomaly.models import find_detector
from anomaly.models.base import Detector, Prediction
from anomaly.pipeline import export as exporting
from anomaly.pipeline.export import Exported, check_export, export_run
from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.options import ScoreOptions
from anomaly.pipeline.software_device import software_device
from anomaly.runs import Run
from anomaly.sealed import sealed, unsealed
from anomaly.service.detector import OpenRunFolder
from preprocessing import InputError

from .conftest import on_path
from .film_files import png
from .test_cli import refused, typed
from .test_next_commands import following

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def made(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A bundle that tests share: they copy it before they change it."""
    return export_run(run, tmp_path_factory.mktemp("bundles") / "cae")


@pytest.fixture
def bundle(made: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.folder, tmp_path / "bundle"))


@pytest.fixture
def own(run: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(run.path, tmp_path / "run")))


def test_a_bundle_is_a_run_folder_with_a_graph(made: Exported, run: Run) -> None:
    folder, bundle = made.folder, read_bundle(made.folder)
    assert bundle == made.bundle
    assert set(bundle.files) == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } - {FILE}
    assert {MODEL, PROBE, "run.json", "calibration.json", "model_card.md", "LICENSE.txt"} <= set(bundle.files)
    assert not (folder / "weights.safetensors").exists()
    copied = Run(folder)
    assert copied.finished and copied.config.model == run.config.model and copied.config.size == bundle.size
    assert (folder / "calibration.json").read_bytes() == (run.path / "calibration.json").read_bytes()
    assert tuple(bundle.score_names) == find_detector("cae").score_names and bundle.synthetic and not bundle.labelled
    card = (folder / "model_card.md").read_text()
    assert (
        "NOT A MEDICAL DEVICE" in card and "synthetic" in card and "MIT License" in (folder / "LICENSE.txt").read_text()
    )


def test_it_holds_neither_films_nor_folders_of_the_machine(made: Exported, run: Run) -> None:
    """Paths of the training are names alone, and the probe's films are noise."""
    for path in made.folder.rglob("*"):
        if path.suffix in (".json", ".md", ".txt", ".csv"):
            assert str(Path(run.config.cache.path).parent) not in path.read_text(), path
    config = Run(made.folder).config
    assert config.cache.path == Path(run.config.cache.path).name and "/" not in config.cache.command
    assert config.cache.recipe == run.config.cache.recipe and config.cache.content_hash == run.config.cache.content_hash
    assert stripped(config) == config
    probe = load_file(made.folder / PROBE)
    assert probe["film"].shape == (3, 1, 64, 64) and probe["scores"].shape == (3, len(made.bundle.score_names))


def test_the_same_export_again_changes_nothing(own: Run, capsys: pytest.CaptureFixture[str]) -> None:
    first = export_run(own)
    times = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    assert first.folder == own.path / "bundle"
    again = export_run(own)
    assert again.bundle == first.bundle and times == {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    (first.folder / MODEL).write_bytes(b"damaged")
    assert read_bundle(export_run(own).folder) == first.bundle, "a damaged one is mended"
    assert [path.name for path in own.path.glob(".anomaly-*")] == []
    (first.folder / "choices.json").write_text("{}")
    message = refused(capsys, "export", own.path, "--layout", "hf")
    assert "holds 1 file that were made since (choices.json)" in message and (first.folder / "choices.json").is_file()


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.sampled_from([MODEL, PROBE, "run.json"]))
def test_a_flipped_bit_is_refused(made: Exported, place: float, bit: int, name: str) -> None:
    path = made.folder / name
    content = path.read_bytes()
    changed = bytearray(content)
    changed[int(place * len(changed))] ^= 1 << bit
    path.write_bytes(changed)
    try:
        with pytest.raises(InputError, match=f"{name} was changed or damaged"):
            read_bundle(made.folder)
    finally:
        path.write_bytes(content)


def test_what_is_no_whole_bundle_of_this_format_is_refused(bundle: Path) -> None:
    record = unsealed((bundle / FILE).read_text())
    (bundle / FILE).write_text(sealed(record | {"format": FORMAT + 1, "something": "new"}))
    with pytest.raises(
        InputError, match=f"has format {FORMAT + 1}, this version reads {FORMAT}; install a newer"
    ) as no:
        read_bundle(bundle)
    assert "damaged" not in str(no.value) and "export" not in str(no.value)
    (bundle / FILE).write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        read_bundle(bundle)
    (bundle / FILE).write_text(sealed(record | {"size": "large"}))
    with pytest.raises(InputError, match="is damaged"):
        read_bundle(bundle)
    (bundle / FILE).write_text(sealed(record | {"files": record["files"] | {"../../etc/passwd": ""}}))
    with pytest.raises(InputError, match="leaves"):
        read_bundle(bundle)
    (bundle / FILE).write_text(sealed(record))
    (bundle / PROBE).unlink()
    with pytest.raises(InputError, match=f"lacks {PROBE}"):
        read_bundle(bundle)
    with pytest.raises(InputError, match="no bundle"):
        read_bundle(bundle.parent)


def test_the_verb_says_what_was_made_checks_it_and_says_what_comes_next(
    own: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my bundle"
    status, text, err = typed(capsys, "export", own.path, "--out", out, "--check")
    assert status == 0, err
    assert f"{out}: cae of run, 64 px, scores, map, reconstruction; opset 18" in text
    assert "of the test split" in text and "they agree" in text and "mse_topk" in text
    assert following(text) == ["anomaly", "score", str(out), "FILMS"]
    status, text, err = typed(capsys, "export", out, "--check")
    assert status == 0 and "on made-up films" in text and "they agree" in text, err


def test_a_bundle_checks_itself_without_torch(bundle: Path, tmp_path: Path) -> None:
    """On the machine where it is to score; what makes it wrong there is told by the exit status."""
    (tmp_path / "torch.py").write_text("raise ImportError('there is no torch here')\n")

    def check() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "anomaly", "export", str(bundle), "--check"]
        return subprocess.run(command, env=on_path(tmp_path), capture_output=True, text=True, check=False)

    done = check()
    assert done.returncode == 0 and "they agree" in done.stdout, done.stderr
    rows = check_bundle(bundle)
    assert all(row.largest <= row.at_most for row in rows)
    probe = load_file(bundle / PROBE)
    from safetensors.numpy import save_file

    save_file(probe | {"scores": probe["scores"] * 1.001}, bundle / PROBE)
    record = unsealed((bundle / FILE).read_text())
    from anomaly.runs import sha256

    record["files"][PROBE] = sha256(bundle / PROBE)
    (bundle / FILE).write_text(sealed(record))
    done = check()
    assert done.returncode == 1 and "THEY DIFFER" in done.stdout


def test_what_cannot_be_exported_is_refused_in_one_line(
    own: Run, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films/a.png").touch()
    for words, meant in (
        ((own.path, "--out", tmp_path / "films"), "exists and is no bundle"),
        ((own.path, "--layout", "zip"), "there are: plain, monai, hf"),
        ((own.path, "--calibration", "north"), "has no calibration 'north'"),
        ((bundle,), "is a bundle; `anomaly export"),
        ((tmp_path / "none",), "is not a run folder"),
    ):
        assert meant in refused(capsys, "export", *words), words
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    assert "pip install 'xray-anomaly[export]'" in refused(capsys, "export", own.path)
    (own.path / "calibration.json").unlink()
    assert "is unfinished; `anomaly train" in refused(capsys, "export", own.path)
    assert not (own.path / "bundle").exists()


def test_a_model_that_tracing_does_not_follow_is_refused(own: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of another package: its graph is compared with it, one film at a time too."""

    class Counting(find_detector("cae")):  # type: ignore[misc]
        def predict(self, batch, *, maps=False):  # type: ignore[no-untyped-def]
            prediction = super().predict(batch, maps=maps)
            shares = {name: values * (1 + len(batch.film)) for name, values in prediction.scores.items()}
            return Prediction(shares, prediction.map, prediction.reconstruction)

    assert issubclass(Counting, Detector)
    monkeypatch.setattr(exporting, "find_detector", lambda name: Counting)
    with pytest.raises(InputError, match=r"gives another \w+ than torch .* so no bundle was written"):
        export_run(own)
    assert not (own.path / "bundle").exists()


def test_calibrations_go_along_and_a_refitted_one_has_a_bundle_of_its_own(own: Run) -> None:
    for name in ("north", "south"):
        folder = own.path / "calibrations" / name
        folder.mkdir(parents=True)
        shutil.copy(own.path / "calibration.json", folder)
        (folder / "source.json").write_text(json.dumps({"source": "/home/ann/films", "films": 3}))
    changed = json.loads((own.path / "calibration.json").read_text())
    changed["thresholds"]["mean"]["film"]["mse"] = 0.125
    (own.path / "calibrations/south/calibration.json").write_text(json.dumps(changed))
    tensors = {"normals.variance": np.full((1, 1, 64, 64), 2.0, np.float32)}
    from safetensors.numpy import save_file

    save_file(tensors, own.path / "calibrations/south" / REFITTED)
    (own.path / "choices.json").write_text('{"format": 1, "calibration": "north"}')

    plain = export_run(own, own.path / "plain")
    assert {"calibrations/north/calibration.json", "calibrations/north/source.json"} <= set(plain.bundle.files)
    assert "/home" not in (plain.folder / "calibrations/north/source.json").read_text()
    assert not (plain.folder / "calibrations/south").exists() and (plain.folder / "choices.json").is_file()
    assert "choices.json" not in plain.bundle.files, "scoring changes it"
    assert len(plain.bundle.notes) == 1 and "--calibration south" in plain.bundle.notes[0]

    south = export_run(own, own.path / "to-south", calibration="south")
    assert south.bundle.calibration == "south" and not (south.folder / "calibrations").exists()
    assert json.loads((south.folder / "calibration.json").read_text()) == changed
    assert not (south.folder / "choices.json").exists() and "another calibration" in south.bundle.notes[0]
    weighted = south.bundle.score_names.index("weighted")
    before, after = (load_file(one.folder / PROBE)["scores"][:, weighted] for one in (plain, south))
    assert (after < before).all(), "errors are divided by what was fitted there"
    assert all(row.largest <= row.at_most for row in check_bundle(south.folder))


def test_a_bundle_is_called_after_its_run_and_names_its_own_calibration(own: Run, tmp_path: Path) -> None:
    (own.path / "calibrations/south").mkdir(parents=True)
    shutil.copy(own.path / "calibration.json", own.path / "calibrations/south")
    shutil.copy(own.path / "films.safetensors", own.path / "calibrations/south")
    for name, calibration in ((None, "own"), ("south", "south")):
        bundle = export_run(own, tmp_path / f"to-{name}" / "bundle", calibration=name)
        opened = open_run(Run(bundle.folder), "cpu")
        device = software_device(opened, "mse")
        assert (opened.name, device.run) == ("run", "run"), "not bundle, as the folder is called"
        assert opened.calibrated_on == name and opened.calibration_name is None
        assert device.parameters["calibration"] == calibration
        assert OpenRunFolder(bundle.folder, device="cpu")().facts.run == "run"
    film = tmp_path / "film.png"
    film.write_bytes(png(np.arange(128 * 128).reshape(128, 128).astype(np.uint16)))
    score(ScoreOptions(bundle.folder, (film,), out=tmp_path / "out", device="cpu", workers=1))
    assert json.loads((tmp_path / "out/results.json").read_text())["calibration"] == "south"
    assert "calibrated on films of south" in (tmp_path / "out/worklist.html").read_text()


def test_a_cache_to_check_with_that_is_not_there_is_named_before_anything_is_written(
    own: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "export", own.path, "--out", tmp_path / "b", "--check", "--cache", tmp_path / "none")
    assert "--cache" in said and str(tmp_path / "none") in said
    assert not (tmp_path / "b").exists()


def test_a_cache_that_moved_is_named_to_check(own: Run, tmp_path: Path) -> None:
    exported = export_run(own)
    moved = Path(shutil.copy(own.config.cache.path, tmp_path / "moved.h5"))
    rows, films = check_export(exported, own, moved)
    assert films and all(row.largest <= row.at_most and not row.flags for row in rows)


def test_the_layouts_of_other_tools(own: Run) -> None:
    monai = export_run(own, own.path / "monai", layout="monai")
    metadata = json.loads((monai.folder / "configs/metadata.json").read_text())
    assert metadata == monai_metadata(monai.bundle)
    mandatory = "version monai_version pytorch_version numpy_version optional_packages_version task description authors"
    assert {*mandatory.split(), "copyright", "network_data_format"} <= set(metadata)
    keys = "type format modality num_channels spatial_shape dtype value_range is_patch_data channel_def"
    tensors = metadata["network_data_format"]
    assert set(tensors) == {"inputs", "outputs"} and set(tensors["inputs"]) == {"film", "mask"}
    for tensor in (*tensors["inputs"].values(), *tensors["outputs"].values()):
        assert set(tensor) == set(keys.split()) and len(tensor["channel_def"]) == tensor["num_channels"]
    assert (monai.folder / "models" / MODEL).read_bytes() == (monai.folder / MODEL).read_bytes()
    assert (monai.folder / "LICENSE").is_file() and (monai.folder / "docs/README.md").is_file()

    hub = export_run(own, own.path / "hub", layout="hf")
    readme = (hub.folder / "README.md").read_text()
    _, front, card = readme.split("---\n", 2)
    assert "license: mit" in front and "- x-ray" in front and "NOT A MEDICAL DEVICE" in card
    assert (
        readme.startswith(hf_front_matter(hub.bundle))
        and "*.onnx filter=lfs" in (hub.folder / ".gitattributes").read_text()
    )
    for folder in (monai.folder, hub.folder):
        assert read_bundle(folder).model == "cae" and all(row.sound for row in check_bundle(folder))


def test_exporting_leaves_the_model_as_it_is(run: Run, made: Exported) -> None:
    """The copy that is traced shares nothing with it."""
    probe = load_file(made.folder / PROBE)
    film, mask = torch.from_numpy(probe["film"]), torch.from_numpy(probe["mask"])
    from anomaly.data.batch import Batch

    with torch.inference_mode():
        scores = made.model.predict(Batch(film, mask, torch.full((3,), -1))).scores
    for column, name in enumerate(made.bundle.score_names):
        np.testing.assert_allclose(scores[name].double().numpy(), probe["scores"][:, column], rtol=1e-6)
