"""The nets that come with the package, how they are made, and the films they learn from."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from anomaly.cli import zoo
from anomaly.data.batch import as_batch
from anomaly.data.dataset import FilmSet
from anomaly.localization import nets, packaged, poses
from anomaly.localization.nets import load_localizer, load_segmenter
from anomaly.localization.poses import pose_film, write_posed_films
from anomaly.localization.predict import annotated_rows, load_localization_model
from anomaly.pipeline.options import ModelsOptions
from anomaly.runs import Run, sha256
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.cache.schema import BOX_CLASSES
from preprocessing.phantom import plan_films
from preprocessing.sources import open_source
from preprocessing.sources.annotations import annotate
from tests.test_cli import refused, typed

CPU = torch.device("cpu")
LARGEST = {"ssd": 6_000_000, "unet": 2_000_000}
"""Bytes of the weights that a package may have."""
SEED = 3


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's nets in a checkout of their own."""
    folder = tmp_path / "checkout" / "anomaly" / "localization" / "weights"
    shutil.copytree(packaged.WEIGHTS, folder)
    (tmp_path / "checkout" / "pyproject.toml").touch()
    monkeypatch.setattr(packaged, "WEIGHTS", folder)
    nets.load_once.cache_clear()
    return folder


# --- as they come ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LARGEST))
def test_the_package_has_small_nets_and_says_what_made_them(name: str) -> None:
    net, path = packaged.packaged_net(name), packaged.WEIGHTS / f"{name}.safetensors"
    assert path.stat().st_size <= LARGEST[name] and sha256(path) == net.sha256
    assert {tensor.dtype for tensor in load_file(path).values()} <= {torch.float16, torch.int64}
    assert net.command == f"anomaly models --make {name}" and len(net.commit.rstrip("+")) == 40
    assert net.films["seed"] > 0 and net.films["train"] > net.films["val"] > 0 and net.seed >= 0
    assert "torch" in net.versions and net.training["epochs"] > 0
    assert {file.name for file in packaged.WEIGHTS.iterdir()} == {packaged.MODELS} | {
        f"{n}.safetensors" for n in LARGEST
    }
    model = packaged.load_packaged(name, CPU)
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}


def test_films_are_prepared_by_the_packages_nets_at_once(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No training, no network and nothing in the user's folders."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    some = tmp_path / "some"
    for film in sorted(films.rglob("image1.png"))[:4]:
        (some / film.parent.relative_to(films)).mkdir(parents=True, exist_ok=True)
        shutil.copy(film, some / film.relative_to(films))
    words = ("preprocess", some, "--mask", "unet", "--localizer", "ssd", "--size", 64, "--workers", 1)
    status, _, err = typed(capsys, *words, "--out", "nets.h5")
    assert status == 0, err
    cache = Cache(Path("nets.h5"))
    assert {part: (net["name"], net["run"]) for part, net in cache.nets.items()} == {
        "localizer": ("ssd", ""),
        "segmenter": ("unet", ""),
    }
    assert "--localizer ssd --mask unet" in cache.command
    share = cache.masks("full-he", np.arange(len(cache))).mean(axis=(1, 2))
    assert ((share > 0.05) & (share < 0.95)).all()
    assert "of the package" in typed(capsys, "inspect", "nets.h5")[1]


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_damaged_weights_are_refused_in_one_line(copied: Path) -> None:
    file = copied / "unet.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"unet\.safetensors is damaged: its SHA-256 is not .*; install") as error:
        load_segmenter()
    assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(InputError, match=r"unet\.safetensors can't be read \(No such file"):
        load_segmenter()
    load_localizer()


def test_a_damaged_record_is_refused(copied: Path) -> None:
    record = copied / packaged.MODELS
    content = json.loads(record.read_text())
    record.write_text(json.dumps({"unet": content["unet"]}))
    with pytest.raises(InputError, match="the package has no trained ssd; there are: unet"):
        load_localizer()
    record.write_text('{"ssd": {"model": "ssd"}}')
    with pytest.raises(InputError, match=r"models\.json can't be read \(ssd\.settings: Field required\)"):
        load_localizer()
    record.unlink()
    with pytest.raises(InputError, match=r"models\.json can't be read \(No such file"):
        load_localizer()


def test_weights_of_another_model_are_refused(copied: Path) -> None:
    shutil.copy(copied / "ssd.safetensors", copied / "unet.safetensors")
    content = json.loads((copied / packaged.MODELS).read_text())
    content["unet"]["sha256"] = content["ssd"]["sha256"]
    (copied / packaged.MODELS).write_text(json.dumps(content))
    with pytest.raises(InputError, match="does not fit unet of this version"):
        load_segmenter()


def test_a_net_that_changes_meanwhile_is_refused(copied: Path) -> None:
    segmenter = load_segmenter()
    content = json.loads((copied / packaged.MODELS).read_text())
    content["unet"]["threshold"] += 0.05
    (copied / packaged.MODELS).write_text(json.dumps(content))
    nets.load_once.cache_clear()
    with pytest.raises(InputError, match="the package's unet has changed while films were prepared"):
        segmenter(np.zeros((40, 40), np.uint8))
    assert load_segmenter().digest != segmenter.digest


def test_numbers_beyond_half_precision_are_refused() -> None:
    with pytest.raises(InputError, match="the weights big are too large for half precision"):
        packaged.halve({"big": torch.tensor([1e6])})
    halved = packaged.halve({"small": torch.tensor([0.1]), "count": torch.tensor([70000])})
    assert halved["small"].dtype == torch.float16 and halved["count"].item() == 70000


# --- making them ----------------------------------------------------------------------------------------------------


def test_an_installed_package_keeps_its_nets(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkout" / "pyproject.toml").unlink()
    error = refused(capsys, "models", "--make")
    assert "belongs to an installed package, whose nets are ready for use" in error and not Path("cache").exists()
    assert "'cae' is not trained by --make; there are: ssd, unet" in refused(capsys, "models", "cae", "--make")


def test_made_nets_are_those_of_their_runs_in_half_precision(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "MADE", {"ssd": ("size=96", "epochs=1"), "unet": ("size=64", "width=4", "epochs=2")})
    monkeypatch.setattr(zoo, "MADE_OF", {"seed": SEED, "patients": 16})
    monkeypatch.setattr(poses, "DRAWN_SIZE", 96)
    monkeypatch.setattr(packaged, "commit", lambda root: "0" * 40)
    before = packaged.packaged_nets()
    zoo.models(ModelsOptions(make=True, workers=1))
    after = packaged.packaged_nets()
    assert set(after) == set(before) and all(after[name].sha256 != before[name].sha256 for name in after)
    for name, net in after.items():
        run = Run(Path("cache/nets") / name)
        assert (net.size, net.settings) == (run.config.size, run.config.settings.model)
        assert net.films["patients"] == 16 and net.commit == "0" * 40
        whole, half = load_localization_model(run, CPU), packaged.load_packaged(name, CPU)
        cache = Cache(Path(f"cache/nets/{name}.h5"))
        rows = annotated_rows(cache, whole.targets)[:3]
        batch = as_batch(FilmSet(cache, "crop", rows, net.size, whole.targets).read(), CPU)
        with torch.inference_mode():
            for ours, theirs in zip(half(batch.film), whole(batch.film), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)
    zoo.models(ModelsOptions("unet", make=True, workers=1))  # finished: packaged again as it is
    assert packaged.packaged_nets() == after


def test_the_commit_is_told_and_marked_where_files_differ(copied: Path, tmp_path: Path) -> None:
    root = packaged.checkout()
    assert root == tmp_path / "checkout"
    with pytest.raises(InputError, match="git can't say which commit this is"):
        packaged.commit(root)
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*git, *words], check=True)
    clean = packaged.commit(root)
    assert len(clean) == 40
    (copied / packaged.MODELS).write_text("{}")  # the nets themselves are what is being made
    assert packaged.commit(root) == clean
    (root / "pyproject.toml").write_text("[project]")
    assert packaged.commit(root) == f"{clean}+"


# --- posed films ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poses, "DRAWN_SIZE", 128)


@pytest.mark.usefixtures("small")
def test_posed_films_have_a_limb_a_background_and_exact_boxes() -> None:
    turned = upright = several = touching = 0
    for plan in plan_films(seed=SEED, patients=16):
        film = pose_film(plan, SEED)
        again = pose_film(plan, SEED)
        assert (film.pixels == again.pixels).all() and (film.foreground == again.foreground).all()
        assert film.boxes == again.boxes
        height, width = film.pixels.shape
        assert film.foreground.shape == (height, width) and film.pixels.dtype == np.uint8
        assert 0 < film.foreground.mean() < 1
        hands = [box for name, box in film.boxes if name.endswith("hand")]
        inside = np.zeros((height, width), bool)
        for x0, y0, x1, y1 in hands:
            inside[y0:y1, x0:x1] = True
        if hands:
            assert not (film.foreground & ~inside).any()
        for name, (x0, y0, x1, y1) in film.boxes:
            assert name in BOX_CLASSES and 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        turned, upright, several = turned + (not hands), upright + bool(hands), several + (len(hands) > 1)
        edge = np.concatenate([film.foreground[0], film.foreground[:, 0], film.foreground[:, -1]])
        touching += bool(edge.any())
    assert turned > 3 and upright > 10 and several > 1 and touching > 5


@pytest.mark.usefixtures("small")
def test_limbs_stand_out_from_what_lies_around_them() -> None:
    """Of most films: a thin limb in a white frame is darker than the frame, and an inverted film is what it is."""
    brighter = []
    for plan in plan_films(seed=SEED, patients=16):
        film = pose_film(plan, SEED)
        levels = film.pixels.astype(float)
        brighter.append(np.median(levels[film.foreground]) > np.median(levels[~film.foreground]))
    assert np.mean(brighter) > 0.7


@pytest.mark.usefixtures("small")
def test_a_set_of_posed_films_is_a_synthetic_source_with_masks_and_boxes(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    out = tmp_path / "posed"
    count, posed = write_posed_films(out, seed=SEED, patients=6, on_film=lambda *done: told.append(done))
    assert 0 < posed < count and told[-1] == (count, count)
    source = open_source(out)
    assert source.synthetic and len(annotate(source, "masks").records) == count
    assert 0 < len(annotate(source, "boxes").records) < count
    films = {path: path.read_bytes() for path in out.rglob("*.png")}
    lost = min(path for path in films if path.name == "image1.png")
    lost.unlink()
    write_posed_films(out, seed=SEED, patients=6)  # completes what was interrupted
    assert {path: path.read_bytes() for path in out.rglob("*.png")} == films
    with pytest.raises(InputError, match="holds other films than those asked for"):
        write_posed_films(out, seed=SEED + 1, patients=6)
