"""Films a second from films in memory to scores, as `anomaly score` computes them."""

import time
from collections.abc import Callable
from typing import Any

import torch

from anomaly.data.batch import as_batch, batches
from anomaly.data.dataset import chunk_length
from anomaly.evaluation.torch_scorer import TorchScorer
from benchmarks.gpu.films import repeated
from benchmarks.gpu.setting import Case, Setting
from benchmarks.gpu.speed import idle
from benchmarks.record import spread

SECONDS = 1.0
"""Of each measurement; at least three rounds."""
FITTED = 64
"""Normal films that references are fitted to."""


def films_a_second(case: Case) -> dict[str, Any]:
    """Time the network alone, all scores, and scores with maps, of an untrained model in float32."""
    setting = case.setting
    setting.clear()
    model = case.model()
    with torch.inference_mode():
        normal = case.films.part(case.films.label == 0)
        model.fit_reference(batches(repeated(normal, FITTED), setting.device))
        films = repeated(setting.all_films(case.size), chunk_length(case.size))  # as many as pass at a time
        batch = as_batch(films, setting.device)
        drawn = model.predict(batch, maps=True).map is not None
        scorer = TorchScorer(model, setting.device)
        reconstruct: Callable[[torch.Tensor], object] | None = getattr(model, "reconstruct", None)
        sides: dict[str, Callable[[], object]] = {"scores": lambda: scorer.predict_films(films)}
        if reconstruct is not None:
            sides["network"] = lambda: reconstruct(batch.film)
        if drawn:
            sides["maps"] = lambda: scorer.predict_films(films, maps=True)
        rates = {f"{side}, films_per_second": _rate(setting, work, len(films)) for side, work in sides.items()}
        figures: dict[str, Any] = {"films": len(films), **rates}
        if setting.device.type == "cuda":
            figures |= idle(setting, sides["scores"])
    return figures


def _rate(setting: Setting, work: Callable[[], object], films: int) -> dict[str, float]:
    seconds: list[float] = []
    work()
    while len(seconds) < 3 or (sum(seconds) < SECONDS and len(seconds) < 100):
        setting.synchronize()
        start = time.perf_counter()
        work()
        setting.synchronize()
        seconds.append(time.perf_counter() - start)
    found = spread(seconds)
    return {"median": films / found["median"], "min": films / found["max"], "max": films / found["min"]}
