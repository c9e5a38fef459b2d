"""A bundle scores as its run does, with onnxruntime alone."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

import anomaly
from anomaly.data.dataset import FilmSet
from anomaly.evaluation.calibration import read_calibration
from anomaly.evaluation.named_calibration import REFITTED
from anomaly.evaluation.torch_scorer import TorchScorer, trained_scorer
from anomaly.export import onnx_nets, onnx_session
from anomaly.export.bundle import FILE, Bundle
from anomaly.export.onnx_nets import OnnxLocalizer, OnnxSegmenter, bundled_nets, suppressed
from anomaly.export.onnx_scorer import OnnxScorer
from anomaly.localization.detection import NMS_IOU
from anomaly.localization.nets import load_localizer, load_segmenter
from anomaly.pipeline.calibrate import calibrate_run
from anomaly.pipeline.export import export_run
from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.options import CalibrateOptions
from anomaly.pipeline.scoring import score_selection
from anomaly.pipeline.selection import recorded_films
from anomaly.runs import Run
from anomaly.sealed import sealed, unsealed
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.phantom import write_phantoms
from preprocessing.readers import read_film
from preprocessing.sources import open_films

BLOCKED = ("torch", "torchvision", "imgaug", "sklearn", "skimage", "scipy", "matplotlib", "nibabel", "joblib")
WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
VERBS = """
import json
from anomaly.cli.app import main

for words in json.loads(sys.argv[1]):
    sys.argv = ["anomaly", *words]
    print("$", *words, flush=True)
    try:
        main()
    except SystemExit as stop:
        print("status", stop.code or 0, flush=True)
"""
RELATIVE = 1e-4
"""At most, of a score or of its spread among normal films, where that is more: sums in another order, in float32."""


@pytest.fixture(scope="module")
def original(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the run that all share; a test that writes copies it."""
    return export_run(run, tmp_path_factory.mktemp("bundles") / "bundle").folder


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bundle"))


@pytest.fixture
def own(run: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(run.path, tmp_path / "run")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "clinic"
    write_phantoms(out, seed=5, patients=8, size=128)
    return out


def without_torch(script: str, *arguments: str) -> list[str]:
    """What a process prints that can import neither torch nor anything else of BLOCKED."""
    code = f"BLOCKED = {BLOCKED!r}\n{WITHOUT}{script}"
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return (done.stdout + done.stderr).splitlines()


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def rounding(run: Run, name: str) -> float:
    """How far a score may be off, beyond RELATIVE of itself; trivial scores are NumPy's in either case."""
    normals = read_calibration(run).normals
    assert normals is not None
    return RELATIVE * float(np.std(normals.scores[name]))


def test_every_verb_that_scores_runs_without_torch(bundle: Path, own: Run, site: Path, tmp_path: Path) -> None:
    film = next(site.rglob("image1.png"))
    shutil.copytree(site, tmp_path / "site")
    alone = tmp_path / "film.png"
    shutil.copy(film, alone)
    verbs = [
        ["score", str(bundle), str(alone), "--out", "one"],
        ["heatmap", str(bundle), str(alone), "--out", "maps", "--space", "film"],
        ["calibrate", str(bundle), "site", "--name", "clinic", "--workers", "1"],
        ["score", str(bundle), "site", "--calibration", "clinic", "--out", "all", "--workers", "1"],
        ["report", str(bundle)],
    ]
    said = without_torch(VERBS, json.dumps(verbs))
    assert [line for line in said if line.startswith("status")] == ["status 0"] * 4 + ["status 2"], said
    # What needs more than an installation that scores has is said.
    assert any("no figures of these labelled films: they need scipy, scikit-learn, matplotlib" in line for line in said)
    assert any(line.startswith("error: a page shows figures: they need scipy") for line in said)
    result = anomaly.load(own.path, device="cpu").score(alone, maps=True)
    (ours,), (expected,) = rows(tmp_path / "one" / "scores.csv"), result.films
    for name, value in expected.scores.items():
        assert float(ours[name]) == pytest.approx(value, rel=RELATIVE, abs=rounding(own, name)), name
    assert ours["flagged"] == str(int(expected.flagged)) and float(ours["p_value"]) == expected.p_value
    record = json.loads((tmp_path / "one" / "results.json").read_text())
    assert record["films"][0]["flagged"] == expected.flagged and (tmp_path / "one" / "worklist.html").is_file()
    values = np.load(next((tmp_path / "maps").rglob("*.npy")))
    (heatmap,) = anomaly.load(own.path, device="cpu").heatmap(alone, space="film")
    np.testing.assert_allclose(values, heatmap.map, atol=RELATIVE * heatmap.scale)
    assert next((tmp_path / "maps").rglob("*.png")).stat().st_size > 1000
    # Thresholds of the place are those that the run itself finds there.
    options = CalibrateOptions(own.path, (), "clinic", device="cpu", workers=1)
    done = calibrate_run(own, open_films([site]), options)
    local = json.loads((bundle / "calibrations" / "clinic" / "calibration.json").read_text())
    for name, value in done.run.calibration.thresholds["mean"]["film"].items():
        assert local["thresholds"]["mean"]["film"][name] == pytest.approx(
            value, rel=RELATIVE, abs=rounding(own, name)
        ), name


def test_the_api_runs_without_torch(bundle: Path, site: Path) -> None:
    film = next(site.rglob("image1.png"))
    script = """
import numpy, anomaly
run = anomaly.load(sys.argv[1])
result = run.score(sys.argv[2])
print(run.scores[0], result[0].score, len(run.heatmap(numpy.full((90, 70), 40, numpy.uint8))))
print("loaded", sorted({name.partition(".")[0] for name in sys.modules} & set(BLOCKED)))
"""
    line, loaded = without_torch(script, str(bundle), str(film))[-2:]
    name, value, maps = line.split()
    assert loaded == "loaded []" and maps == "1" and name == "mse"
    assert float(value) == anomaly.load(bundle).score(film)[0].score


def test_scores_flags_and_maps_of_recorded_films_are_the_runs(bundle: Path, run: Run) -> None:
    selection = recorded_films(run, "test", None)
    ours, theirs = (score_selection(open_run(one, "cpu"), selection) for one in (Run(bundle), run))
    for name, values in theirs.scored.scores.items():
        np.testing.assert_allclose(
            ours.scored.scores[name], values, rtol=RELATIVE, atol=rounding(run, name), err_msg=name
        )
    assert [film.flagged for film in ours] == [film.flagged for film in theirs]
    assert ours.figures is not None and theirs.figures is not None
    assert ours.figures.main.roc_auc == theirs.figures.main.roc_auc
    films = FilmSet(selection.films.cache, run.config.variant, selection.films.rows[:3], run.config.size).read()
    scorers = OnnxScorer.open(bundle), trained_scorer(run, "cpu")
    found, expected = (scorer.predict_films(films, maps=True) for scorer in scorers)
    assert found.map is not None and expected.map is not None and found.reconstruction is not None
    np.testing.assert_allclose(found.map, expected.map, atol=1e-5)
    np.testing.assert_allclose(found.reconstruction, expected.reconstruction, atol=1e-5)
    assert scorers[0].predict_films(films).map is None
    assert scorers[0].score_names == scorers[1].score_names and scorers[0].map_unit == scorers[1].map_unit


def test_what_lies_off_the_mask_counts_for_nothing(bundle: Path, cache: Cache, run: Run) -> None:
    films = FilmSet(cache, run.config.variant, np.arange(2), run.config.size).read()
    before = OnnxScorer.open(bundle).predict_films(films)
    films.film[~films.mask] = 200
    after = OnnxScorer.open(bundle).predict_films(films)
    for name, values in before.scores.items():
        np.testing.assert_array_equal(after.scores[name], values)


# --- what a bundle can't do, and what is wrong with one ---------------------------------------------------------------


def test_a_bundle_is_not_refitted(bundle: Path, site: Path) -> None:
    options = CalibrateOptions(bundle, (), "clinic", True, device="cpu", workers=1)
    with pytest.raises(InputError, match="is a bundle, which has what scores compare with fixed in its graph"):
        calibrate_run(Run(bundle), open_films([site]), options)


def test_a_calibration_with_a_reference_of_its_own_is_refused(bundle: Path, own: Run, site: Path) -> None:
    calibrate_run(own, open_films([site]), CalibrateOptions(own.path, (), "clinic", True, device="cpu", workers=1))
    shutil.copytree(own.path / "calibrations", bundle / "calibrations")
    assert (bundle / "calibrations" / "clinic" / REFITTED).is_file()
    with pytest.raises(InputError, match=r"which .* has fixed in its graph; choose another --calibration"):
        open_run(Run(bundle), "cpu", calibration="clinic")


def test_a_damaged_graph_is_refused(bundle: Path) -> None:
    graph = bundle / "model.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx was changed or damaged"):
        anomaly.load(bundle)


def test_a_graph_that_is_none_is_refused_in_one_line(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"model\.onnx can't be opened by onnxruntime") as error:
        onnx_session.open_session(bundle / "model.onnx")
    assert "\n" not in str(error.value)


def test_a_graph_without_a_promised_output_is_refused(bundle: Path, original: Path) -> None:
    about = Bundle.model_validate(unsealed((bundle / FILE).read_bytes()))
    lacking = about.outputs[0].model_copy(update={"name": "saliency"})
    changed = about.model_copy(update={"outputs": [*about.outputs, lacking]})
    (bundle / FILE).write_text(sealed(changed.model_dump(mode="json")))
    with pytest.raises(InputError, match=r"model\.onnx lacks the outputs saliency"):
        anomaly.load(bundle)


@pytest.mark.parametrize("device", ["mps", "gpu", "cuda:x", "cpu:1"])
def test_a_device_that_there_is_not_is_refused(bundle: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"no device '{device}' for a bundle; there are: auto, cpu, cuda"):
        anomaly.load(bundle, device=device)


def test_without_a_gpu_build_cuda_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [onnx_session.CPU])
    with pytest.raises(InputError, match="built for the processor alone"):
        anomaly.load(bundle, device="cuda")
    assert anomaly.load(bundle, device="auto").scores[0] == "mse"


def test_without_onnxruntime_the_extra_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'xray-anomaly\[score\]'"):
        anomaly.load(bundle)


def test_without_nibabel_a_nifti_film_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import nibabel

    film = nibabel.Nifti1Image(np.arange(90 * 80, dtype=np.int16).reshape(90, 80, 1), np.eye(4)).to_bytes()
    assert read_film("a.nii", film).pixels.size == 90 * 80
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(InputError, match="needs nibabel: `pip install nibabel`"):
        read_film("a.nii", film)


def test_as_many_threads_as_are_asked_for(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert onnx_session.open_session(bundle / "model.onnx").get_session_options().intra_op_num_threads == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "none")
    assert onnx_session.open_session(bundle / "model.onnx").get_session_options().intra_op_num_threads >= 1
    one = onnx_session.open_session(bundle / "model.onnx", threads=1)
    assert one.get_session_options().intra_op_num_threads == 1


# --- the nets of the recipe -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_nets(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, str]]]:
    """A bundle with the nets of the package, and what run.json would say of them."""
    nets = {"localizer": load_localizer(), "segmenter": load_segmenter()}
    about = {part: {"name": net.name, "run": net.run, "digest": net.digest} for part, net in nets.items()}
    copy = Run(Path(shutil.copytree(run.path, tmp_path_factory.mktemp("runs") / "run")))
    (copy.path / "manifest.json").unlink()  # run.json is changed on purpose
    copy.update(cache=copy.config.cache.model_copy(update={"nets": about}))
    return export_run(copy).folder, about


def test_the_nets_of_a_bundle_see_what_the_runs_do(
    with_nets: tuple[Path, dict[str, dict[str, str]]], films: Path
) -> None:
    folder, about = with_nets
    nets = bundled_nets(folder, about)
    assert isinstance(nets.localizer, OnnxLocalizer) and isinstance(nets.segmenter, OnnxSegmenter)
    nets.open()
    for path in sorted(films.rglob("image1.png"))[:3]:
        film = read_film(str(path), path.read_bytes()).pixels
        found, expected = nets.localizer(film), load_localizer()(film)
        assert found is not None and expected is not None and found.turns == expected.turns
        for ours, theirs in ((found.hands, expected.hands), (found.markers, expected.markers)):
            assert [side for side, _ in ours] == [side for side, _ in theirs]
            for (_, box), (_, other) in zip(ours, theirs, strict=True):
                assert box == pytest.approx(other, abs=0.01)
        ours, theirs = nets.segmenter(film), load_segmenter()(film)
        assert ours is not None and theirs is not None and (ours != theirs).mean() < 0.001


def test_a_bundle_without_the_recipes_net_is_refused(with_nets: tuple[Path, dict[str, dict[str, str]]]) -> None:
    folder, about = with_nets
    other = {"segmenter": about["segmenter"] | {"digest": "0" * 12}}
    with pytest.raises(InputError, match="has not the unet that prepared the run's films"):
        bundled_nets(folder, other)


BOXES = st.lists(
    st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 30)] * 2, st.floats(0, 1, width=32)), max_size=30
)


@settings(max_examples=100, deadline=None)
@given(BOXES)
def test_boxes_are_suppressed_as_torchvision_does(boxes: list[tuple[int, int, int, int, float]]) -> None:
    values = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in boxes], np.float32).reshape(-1, 4)
    # Of equal scores either may stay.
    scores = np.array([score for *_, score in boxes], np.float32) + np.arange(len(boxes), dtype=np.float32)
    expected = nms(torch.from_numpy(values), torch.from_numpy(scores), NMS_IOU)
    assert suppressed(values, scores).tolist() == expected.tolist()


def test_a_graph_is_opened_once_in_a_process(with_nets: tuple[Path, dict[str, dict[str, str]]]) -> None:
    folder, about = with_nets
    onnx_nets._session.cache_clear()
    for _ in range(2):
        bundled_nets(folder, about).open()
    assert onnx_nets._session.cache_info().misses == 2  # one each


def test_a_torch_scorer_says_whether_it_can_be_refitted(run: Run) -> None:
    scorer = trained_scorer(run, "cpu")
    assert isinstance(scorer, TorchScorer) and scorer.refits and scorer.backend == "torch"
