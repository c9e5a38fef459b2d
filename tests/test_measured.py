"""What is measured once on a machine, where it is kept, and what `--precision auto` makes of it."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from anomaly.nn.attention import SelfAttention
from anomaly.nn.blocks import Convolution, TransposedConvolution
from anomaly.pipeline.fit import continue_or_create
from anomaly.pipeline.plan import Plan, prepare
from anomaly.training import measured
from anomaly.training.device import choose_precision
from anomaly.training.measured import LEAST_GAIN, ROUNDS, Gain, Measured
from preprocessing import InputError
from preprocessing.cache.reader import Cache

from .conftest import TINY
from .test_cli import typed

CPU = torch.device("cpu")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, with measuring on; measurements are counted, and take no time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(measured.SWITCH, "1")
    return tmp_path / "home" / "xray-anomaly" / "machines.json"


def measures(monkeypatch: pytest.MonkeyPatch, *gains: float) -> list[int]:
    calls: list[int] = []
    monkeypatch.setattr(measured, "_measured", lambda: (calls.append(1), found(*gains))[1])
    return calls


def found(bfloat16: float, small_maps: float = 2.0, attention: float | None = 1.5) -> Measured:
    gains = [None if gain is None else Gain(rounds=[gain]) for gain in (bfloat16, small_maps, attention)]
    return Measured(bfloat16=gains[0], small_maps=gains[1], attention=gains[2], date="today")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rounds", "pays", "harms"),
    [
        ([2.0] * 7, True, False),
        ([0.2] + [2.0] * 6, True, False),  # one round in which something else ran
        ([1.0, 1.0] + [2.0] * 5, False, False),
        ([LEAST_GAIN] * 7, True, False),
        ([LEAST_GAIN - 0.01] * 7, False, False),
        ([0.1], False, True),
        ([2.0], True, False),
        ([0.5] * 6 + [3.0], False, True),
        ([0.5] * 5 + [1.0, 3.0], False, False),
    ],
)
def test_a_side_is_taken_where_it_is_faster_beyond_noise(rounds: list[float], pays: bool, harms: bool) -> None:
    gain = Gain(rounds=rounds)
    assert (gain.pays, gain.harms) == (pays, harms)
    whole = Measured(bfloat16=gain, small_maps=gain, attention=gain, date="today").lines()
    assert ("float32 is taken" in whole["precision"]) is not pays
    assert ("torch has the faster kernel" in whole["small maps"]) is harms


@pytest.mark.parametrize(
    ("gains", "products", "by_blocks"),
    [((2.0, 2.0, 1.5), True, True), ((2.0, 0.5, 0.5), False, False), ((0.5, 1.0, None), True, True)],
)
def test_layers_train_by_the_faster_kernels(
    home: Path, monkeypatch: pytest.MonkeyPatch, gains: tuple[float, ...], products: bool, by_blocks: bool
) -> None:
    measures(monkeypatch, *gains)
    net = nn.ModuleList([spectral_norm(Convolution(3, 4, 4, 2, padding=1)), SelfAttention(8, pool=False)])
    net.append(TransposedConvolution(3, 4, 4, 2, padding=1))
    measured.choose_kernels(net)
    assert [net[0].products, net[1].by_blocks, net[2].products] == [products, by_blocks, products]


def test_where_no_layer_has_another_kernel_nothing_is_measured(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = measures(monkeypatch, 2.0)
    measured.choose_kernels(nn.Conv2d(1, 1, 3))
    monkeypatch.setenv(measured.SWITCH, "0")
    measured.choose_kernels(Convolution(1, 1, 3))
    assert not calls


def test_it_is_measured_once_and_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = measures(monkeypatch, 2.0)
    assert [choose_precision("auto", CPU, pays=True) for _ in range(3)] == ["bfloat16"] * 3 and len(calls) == 1
    assert capsys.readouterr().err.count("measured on this machine: bfloat16 trains 2.00 times as fast") == 1
    assert list(json.loads(home.read_text())["machines"]) == [measured.machine()]
    assert choose_precision("auto", CPU, pays=False) == "float32"
    monkeypatch.setattr(measured, "machine", lambda: "another one")  # in the same home folder
    measures(monkeypatch, 0.5)
    assert choose_precision("auto", CPU, pays=True) == "float32"
    assert len(json.loads(home.read_text())["machines"]) == 2


@pytest.mark.parametrize("content", ["", "{", '{"machines": {"a": {"gains": []}}}', '{"other": 1}', "\x00\xff"])
def test_a_damaged_file_is_measured_again_and_said_in_one_line(
    content: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home.parent.mkdir(parents=True)
    home.write_text(content, encoding="latin-1")
    calls = measures(monkeypatch, 2.0)
    assert choose_precision("auto", CPU, pays=True) == "bfloat16" and len(calls) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0] == f"note: {home} is not used (damaged, or of another version)"
    assert measured.kept() is not None


def test_where_nothing_can_be_kept_it_is_measured_all_the_same(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home.parent.parent.write_text("a file where the folder should be")
    measures(monkeypatch, 2.0)
    assert choose_precision("auto", CPU, pays=True) == "bfloat16"
    assert "it can't be kept in" in capsys.readouterr().err


def test_the_measurement_itself_draws_no_random_numbers_and_leaves_no_gradients(home: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with torch.inference_mode():  # as where a plan is made
        gains = measured._measured()
    assert torch.equal(torch.rand(1), expected)
    assert (gains.attention is not None) == gains.bfloat16.pays
    for gain in (gains.bfloat16, gains.small_maps, gains.attention):
        assert gain is None or (1 <= len(gain.rounds) <= ROUNDS and all(value > 0 for value in gain.rounds))


def test_a_run_goes_on_in_the_precision_it_was_begun_in(
    cache: Cache, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measures(monkeypatch, 2.0)

    def plan(precision: str) -> Plan:
        return Plan("cae", cache.path, "full-he", settings=TINY, device="cpu", precision=precision)

    run = continue_or_create(prepare(plan("auto")), tmp_path / "run", resume=False)
    assert run.config.precision == "bfloat16"
    home.unlink()
    measures(monkeypatch, 0.5)  # as on another machine
    again = continue_or_create(prepare(plan("auto")), run.path, resume=True)
    assert again.config.precision == "bfloat16"
    with pytest.raises(InputError, match="precision"):
        continue_or_create(prepare(plan("float32")), run.path, resume=True)


def test_doctor_shows_what_is_kept_and_measures_when_asked(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    calls = measures(monkeypatch, 2.0)
    assert "not measured yet: the first training does" in typed(capsys, "doctor")[1] and not calls
    _, out, err = typed(capsys, "doctor", "--measure")
    assert "measured on this machine" in err and len(calls) == 1
    assert "bfloat16 trains 2.00 times as fast (2.00 to 2.00): taken where it pays (measured today" in out
    assert "convolutions as products, 2.00 times as fast" in out and "attention by blocks of queries, 1.50" in out
    typed(capsys, "doctor", "--measure")
    assert len(calls) == 2
    monkeypatch.setenv(measured.SWITCH, "0")
    assert "not measured (ANOMALY_MEASURE=0)" in typed(capsys, "doctor")[1]
