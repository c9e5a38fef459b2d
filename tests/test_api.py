"""The public Python API: that it does what docs/api.md shows, and what it promises for films of every kind."""

import doctest
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
import tifffile
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset

import anomaly
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.loaded_run import LoadedRun
from anomaly.pipeline.plan import Plan, prepare
from anomaly.runs import Run
from anomaly.sealed import sealed
from preprocessing.cache.reader import Cache
from preprocessing.phantom import write_phantoms

from .conftest import TINY, on_path

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"(?<![\w.])-?\d*\.\d+(?:e[+-]?\d+)?")


class AnyFraction(doctest.OutputChecker):
    """Takes any number with a decimal point for any other: their digits depend on the processor."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return super().check_output(NUMBER.sub("#", want), NUMBER.sub("#", got), optionflags)


def dataset_of(levels: NDArray[np.uint16], bits: int = 12) -> Dataset:
    """A DICOM dataset, made in memory, with these grey levels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"  # Computed Radiography
    dataset.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["a film"])
    dataset.Modality = "CR"
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = levels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, bits, bits - 1, 0
    dataset.PixelData = levels.astype("<u2").tobytes()
    return dataset


@pytest.fixture(scope="session")
def film(films: Path) -> Path:
    """One built-in film."""
    return sorted(films.rglob("image1.png"))[0]


@pytest.fixture(scope="session")
def levels(film: Path) -> NDArray[np.uint8]:
    """Its grey levels."""
    return np.asarray(cv2.imread(str(film), cv2.IMREAD_UNCHANGED))


@pytest.fixture(scope="session")
def loaded(run: Run) -> LoadedRun:
    """The trained run, as a program opens it."""
    return anomaly.load(run.path, device="cpu")


# ---- the page


def test_every_example_of_the_page_runs(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "films", seed=1, patients=16, size=96)
    shutil.copy(tmp_path / "films/XR_HAND/patient00001/study1_negative/image1.png", "new.png")
    new = np.asarray(cv2.imread("new.png", cv2.IMREAD_UNCHANGED))
    dataset_of(new.astype(np.uint16) * 16).save_as("scan.dcm", enforce_file_format=True)
    Path("notes.png").write_text("no film")
    page = (ROOT / "docs/api.md").read_text()
    text = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    examples = doctest.DocTestParser().get_doctest(text, {}, "docs/api.md", "docs/api.md", 0)
    assert len(examples.examples) > 30 and page.count(">>> ") == len(examples.examples)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    report: list[str] = []
    results = doctest.DocTestRunner(AnyFraction(), optionflags=options).run(examples, out=report.append)
    assert not results.failed, "".join(report)


# ---- films of every kind


def as_png(path: Path, levels: NDArray[Any]) -> Path:
    assert cv2.imwrite(str(path), levels)
    return path


def as_tiff(path: Path, levels: NDArray[Any]) -> Path:
    tifffile.imwrite(path, levels, photometric="minisblack")
    return path


@pytest.mark.parametrize(
    ("dtype", "write", "suffix"),
    [
        ("uint8", as_png, "png"),
        ("uint16", as_png, "png"),
        ("int16", as_tiff, "tif"),
        ("int32", as_tiff, "tif"),
        ("float32", as_tiff, "tif"),
        ("float64", as_tiff, "tif"),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_has_the_score_of_the_same_film_in_a_file(
    loaded: LoadedRun,
    levels: NDArray[np.uint8],
    tmp_path: Path,
    dtype: str,
    write: Callable[[Path, NDArray[Any]], Path],
    suffix: str,
    order: Any,
) -> None:
    values = levels.astype(dtype, order=order)
    if dtype != "uint8":
        values = (values * 100 - (1000 if dtype != "uint16" else 0)).astype(dtype)
    path = write(tmp_path / f"film.{suffix}", np.ascontiguousarray(values))
    in_file, in_memory = loaded.score([path, values])
    assert in_memory.id == "array-1"
    assert in_memory.scores == pytest.approx(in_file.scores, rel=1e-6)


def test_an_array_in_the_other_byte_order_is_the_same_film(loaded: LoadedRun, levels: NDArray[np.uint8]) -> None:
    deep = levels.astype(np.uint16) * 257
    one, other = loaded.score([deep, deep.astype(">u2")])
    assert one.scores == other.scores


def test_a_dataset_has_the_score_of_its_file(loaded: LoadedRun, levels: NDArray[np.uint8], tmp_path: Path) -> None:
    dataset = dataset_of(levels.astype(np.uint16) * 16)
    dataset.save_as(tmp_path / "film.dcm", enforce_file_format=True)
    results = list(loaded.score([tmp_path / "film.dcm", pydicom.dcmread(tmp_path / "film.dcm"), dataset]))
    assert [result.id for result in results] == ["film.dcm", "dataset-1", "dataset-2"]
    for result in results[1:]:
        assert result.scores == pytest.approx(results[0].scores, rel=1e-6)


def test_a_film_has_one_score_in_a_file_a_folder_an_archive_and_a_manifest(
    loaded: LoadedRun, film: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    shutil.copy(film, tmp_path / "folder/a.png")
    (tmp_path / "folder.csv").write_text("path,label\nfolder/a.png,1\n")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.write(film, "a.png")
    expected = loaded.score(film)[0].scores
    for place in ("folder/a.png", "folder", "folder.csv", "archive.zip"):
        (scored,) = loaded.score(tmp_path / place)
        assert scored.scores == pytest.approx(expected, rel=1e-6), place
        assert scored.label == (1 if str(place).endswith(".csv") else -1), place
        assert loaded.score(str(tmp_path / place))[0].scores == scored.scores


def test_a_mixed_list_keeps_its_order(
    loaded: LoadedRun, films: Path, levels: NDArray[np.uint8], tmp_path: Path
) -> None:
    a, b = sorted(films.rglob("image1.png"))[:2]
    (tmp_path / "link").symlink_to(films, target_is_directory=True)
    through_link = tmp_path / "link" / b.relative_to(films)
    result = loaded.score([levels, through_link, dataset_of(levels.astype(np.uint16) * 16), a, levels[::-1]])
    assert [film.id.split("/")[-1] for film in result] == ["array-0", b.name, "dataset-2", a.name, "array-4"]
    assert [len(units) for units in (result, result.films, result.studies, result.patients)] == [5, 5, 5, 5]
    assert result[1].score == pytest.approx(loaded.score(b)[0].score, rel=1e-6)
    assert result[0].score == pytest.approx(result[3].score, rel=1e-6)
    assert loaded.score((levels, levels))[1].id == "array-1"


def test_a_film_that_cannot_be_read_is_a_failure_and_a_warning(
    loaded: LoadedRun, film: Path, levels: NDArray[np.uint8], tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("no film")
    with pytest.warns(UserWarning, match=r"^2 films can't be read, the first: .*bad\.png: not a PNG") as caught:
        result = loaded.score([film, tmp_path / "bad.png", np.full(levels.shape, np.nan)])
    assert caught[0].filename == __file__
    assert len(result) == 1 and "2 unreadable" in repr(result)
    (bad, reason), (array, nan) = result.failures
    assert bad.endswith("bad.png") and "not a PNG" in reason and array == "array-2" and "NaN" in nan
    with pytest.raises(anomaly.InputError, match=r"films in memory: none of 1 film could be prepared.*array-0: NaN"):
        loaded.score(np.full(levels.shape, np.nan))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no films were given"),
        (5, "film 0 is 5: give a path"),
        (np.zeros((2, 64, 64)), r"film 0 is an array \(2, 64, 64\) of float64: .* several films as a list"),
        (np.zeros((0, 64)), r"film 0 is an array \(0, 64\)"),
        (["a.png", np.zeros((64, 64), np.bool_)], "film 1 is an array .* of bool"),
        (np.zeros((64, 64), np.complex64), "of complex64"),
        ("gone.png", "gone.png: No such file"),
        (Dataset(), "dataset-0 can't be written as DICOM"),
    ],
)
def test_what_is_no_film_is_answered(loaded: LoadedRun, given: Any, message: str) -> None:
    with pytest.raises(anomaly.InputError, match=message):
        loaded.score(given)


# ---- names, figures, maps


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.score(by="likelihood"), "has no score 'likelihood'; there are: atypicality, mixture, mse"),
        (lambda run: run.score(split="tset"), "no split 'tset'; there are: all, train, val, test"),
        (lambda run: run.score("a.png", split="val"), "split 'val' applies to the run's own films"),
        (lambda run: run.score(aggregate="median"), "no aggregate 'median'; there are: max, mean"),
        (lambda run: run.heatmap(space="page"), "no space 'page'; there are: cache, film"),
        (lambda run: run.heatmap(limit=0), "limit is 0; give 1 or more"),
        (lambda run: run.score(flag=("fpr", 0.1)), "no way 'fpr' to flag films; there are: false alarms, sens"),
        (lambda run: run.score(flag=("sensitivity", 90)), "--sensitivity is 90; give a share between 0 and 1"),
        (lambda run: run.heatmap(by="likelihood"), "has no score 'likelihood'"),
        (lambda run: run.heatmap(limit=1)[0].save("a.gif"), "no format '.gif'; there are: png, tiff, npy"),
        (lambda run: anomaly.load("runs/none"), r"runs/none is not a run folder"),
        (lambda run: anomaly.load(run.path, device="gpu"), "no device 'gpu'"),
        (lambda run: anomaly.train("cea"), "no model 'cea'; there are: alphagan"),
        (lambda run: anomaly.train("ssd"), "ssd prepares films and scores none; `anomaly train ssd` trains it"),
        (lambda run: anomaly.train("cae", "no.h5"), "no cache no.h5"),
        (lambda run: anomaly.train("cae", variants="raw"), "no option 'variants'; there are: cache, device"),
        (lambda run: anomaly.train("cae", seed=-1), "option seed is -1; give 0 to"),
        (lambda run: anomaly.train("cae", seed="x"), "option seed: Input should be a valid integer"),
        (lambda run: anomaly.train("cae", settings="epochs"), "--set 'epochs' is not key=value"),
        (lambda run: anomaly.preprocess("gone"), "gone: No such file"),
        (lambda run: anomaly.preprocess("films", size=4), "option size is 4; give 16 to 2048"),
        (lambda run: anomaly.preprocess("films", sise=64), "no option 'sise'; there are: abnormal, cluster"),
    ],
)
def test_wrong_names_are_answered_before_anything_is_made(
    loaded: LoadedRun, call: Callable[[LoadedRun], object], message: str
) -> None:
    with pytest.raises(anomaly.InputError, match=message):
        call(loaded)
    assert list(Path().iterdir()) == []


def test_a_comma_list_may_be_a_list(films: Path) -> None:
    few = anomaly.preprocess(films / "XR_HAND/patient00001", size=16, variants=["raw", "full-he"], quiet=True)
    assert Cache(few.path).variants == ("raw", "full-he") and few.failures == []


def test_a_result_has_every_unit_with_scores_flags_and_maps(loaded: LoadedRun, cache: Cache) -> None:
    result = loaded.score(split="val", maps=True)
    assert list(result) == result.films and len(result) == len(result.films) > len(result.patients)
    assert sum(study.films for study in result.studies) == len(result)
    for unit, entries in (("film", result.films), ("study", result.studies), ("patient", result.patients)):
        for entry in entries:
            assert entry.score == entry.scores["mse"] and set(loaded.scores) <= set(entry.scores)
            assert entry.flagged == (entry.score >= loaded.thresholds[unit]["mse"])  # type: ignore[index]
            assert entry.p_value is not None and entry.p_interval is not None and entry.q_value is None
            assert 0 < entry.p_value <= 1 and 0 <= entry.p_interval[0] <= entry.p_interval[1] <= 1
            assert entry.flagged == (entry.p_value <= 0.2) and entry.label in (0, 1)  # of 4 patients: 1 / 5
            assert (entry.map is not None) == (unit == "film")
    drawn = loaded.heatmap(split="val")
    assert [heatmap.name for heatmap in drawn] == [film.id for film in result]
    for heatmap, scored in zip(drawn, result, strict=True):
        assert scored.map is not None and (heatmap.map == scored.map).all() and heatmap.score == scored.score
    assert result.figures and result.figures.main.n == len(result)
    assert loaded.score(split="train").figures is None


def test_reprs_read_well(loaded: LoadedRun, films: Path, film: Path) -> None:
    result = loaded.score(film)
    assert repr(loaded) == f"<cae {loaded.path}: films (SYNTHETIC), full-he at 64 px>"
    assert re.fullmatch(r"<mse of 1 SYNTHETIC film: [01] flagged>", repr(result))
    assert re.fullmatch(r"<image1\.png: [\d.e-]+(, flagged)?>", repr(result[0]))
    assert re.fullmatch(
        r"<mse of \d+ SYNTHETIC films: \d+ flagged, ROC-AUC [\d.]+ \[[\d.]+, [\d.]+\]>", repr(loaded.score())
    )
    (heatmap,) = loaded.heatmap(film)
    assert re.fullmatch(r"<heatmap of image1\.png: 64 x 64, score [\d.e-]+>", repr(heatmap))
    prepared = anomaly.preprocess(films / "XR_HAND/patient00001", size=16, quiet=True)
    assert re.fullmatch(r"<cache cache/patient00001-limb-16-\w+\.h5: \d+ SYNTHETIC films?>", repr(prepared))


# ---- runs


def test_an_unfinished_run_has_its_best_weights_and_says_so(cache: Cache, film: Path) -> None:
    prepared = prepare(Plan("cae", cache.path, "full-he", settings=TINY, device="cpu"))
    interrupted = continue_or_create(prepared, Path("runs/cae-1"), resume=False)

    def stop(report: Any) -> None:
        if report.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(prepared, interrupted, workers=0, on_epoch=stop)
    with pytest.warns(UserWarning, match="runs/cae-1 is unfinished: these are the weights of epoch") as caught:
        loaded = anomaly.load("runs/cae-1", device="cpu")
    assert caught[0].filename == __file__
    assert repr(loaded).endswith(", unfinished>") and len(loaded.score(film)) == 1 and loaded.figures is None

    finished = anomaly.train("cae", cache.path, variant="full-he", settings=TINY, device="cpu", quiet=True)
    assert finished.path == Path("runs/cae-1") and "unfinished" not in repr(finished)


def test_a_cache_that_moved_is_named(run: Run, cache: Cache, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    config = run.config.model_copy(update={"cache": run.config.cache.model_copy(update={"path": "/gone/films.h5"})})
    (tmp_path / "run/run.json").write_text(sealed(config.model_dump()))
    (tmp_path / "run/manifest.json").unlink()
    with pytest.raises(anomaly.InputError, match=r"the cache /gone/films\.h5 of .*run is gone"):
        anomaly.load(tmp_path / "run", device="cpu").score()
    moved = anomaly.load(tmp_path / "run", cache=cache.path, device="cpu").score()
    assert [film.score for film in moved] == [film.score for film in anomaly.load(run.path, device="cpu").score()]


# ---- the package


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, anomaly\n"
        "print(sorted({'numpy', 'torch', 'h5py', 'cv2', 'pydantic'} & set(sys.modules)))\n"
        "print(sorted(set(anomaly.__all__) - set(dir(anomaly))))\n"
        "anomaly.InputError, anomaly.__version__\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=on_path(ROOT))
    assert done.stdout.splitlines() == ["[]", "[]", "False"]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'; there are: InputError"):
        anomaly.nothing  # noqa: B018


USER_SCRIPT = """
from pathlib import Path

import numpy as np
import anomaly

cache = anomaly.preprocess("films", size=64)
run = anomaly.train("cae", cache.path, settings={"epochs": 3})
run = anomaly.load(Path("runs/cae-1"))
result = run.score(["a.png", np.zeros((64, 64), np.uint16)], by="mse", maps=True)
scores: list[float] = [film.score for film in result]
names: list[str] = [study.id for study in result.studies if study.flagged]
threshold: float = run.thresholds["film"]["mse"]
if result.figures is not None and result.figures.main.roc_auc_interval is not None:
    low, high = result.figures.main.roc_auc_interval
    width: float = high - low
for heatmap in run.heatmap("a.png", limit=3):
    heatmap.save("a.png")
failed: list[tuple[str, str]] = result.failures
models: list[str] = anomaly.list_models()
version: str = anomaly.__version__
"""


def test_mypy_accepts_a_script_of_a_user(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "script.py").write_text(USER_SCRIPT)
    (tmp_path / "wrong.py").write_text("import anomaly\nanomaly.load('runs/cae-1').score(bye='mse')\n")
    assert all((ROOT / package / "py.typed").is_file() for package in ("anomaly", "preprocessing"))
    options = ["--strict", "--follow-imports=silent", f"--config-file={ROOT}/pyproject.toml"]
    cache = f"--cache-dir={ROOT}/.mypy_cache"  # warm where `make lint` was run: seconds instead of half a minute
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, cache, "script.py", "wrong.py"],
        capture_output=True,
        text=True,
        env=on_path(ROOT) | {"MYPYPATH": str(ROOT)},
    )
    (fault,) = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert fault.startswith("wrong.py:2") and 'Unexpected keyword argument "bye"' in fault


def test_nothing_of_a_quiet_call_is_printed(loaded: LoadedRun, film: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.score(film)
        loaded.heatmap(film)
    assert capfd.readouterr() == ("", "")
