"""Graphs opened with onnxruntime: threads, processor or GPU, and errors in one line."""

import os
from pathlib import Path
from typing import Any

from anomaly.console import warn
from preprocessing import InputError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
DEVICES = ("auto", "cpu", "cuda")


def open_session(graph: Path | bytes, device: str = "cpu", threads: int | None = None) -> Any:
    """Return an `onnxruntime.InferenceSession` of a graph: a file, or its content.

    device   "auto" takes a GPU where this onnxruntime can use one, and says so where it was built for one and can't;
             "cpu"; "cuda" or "cuda:N".
    threads  None: as many as OMP_NUM_THREADS says, or processors that this process may use.

    Raises InputError where onnxruntime is missing, the device isn't there, or the graph can't be opened.
    """
    runtime = _runtime()
    providers = _providers(runtime, device)
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # an error comes as an exception, which is said in one line
    options.intra_op_num_threads = _threads() if threads is None else threads
    options.inter_op_num_threads = 1
    # Threads that wait in a loop for the next film would take the processor from what prepares it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source, name = (graph, "the graph") if isinstance(graph, bytes) else (str(graph), str(graph))
    try:
        session = runtime.InferenceSession(source, options, providers=providers)
    except Exception as error:  # onnxruntime has error types of its own, without a common base
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name} can't be opened by onnxruntime {runtime.__version__} ({reason}); install a newer one, or export "
            "the run again"
        ) from None
    if providers[0] != CPU and session.get_providers()[0] == CPU:
        if device != "auto":
            raise InputError(f"onnxruntime finds no GPU for --device {device}; take --device cpu")
        warn("onnxruntime finds no GPU: scoring on the processor")
    return session


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise InputError("scoring a bundle needs onnxruntime; `pip install 'xray-anomaly[score]'`") from None
    return onnxruntime


def _providers(runtime: Any, device: str) -> list[Any]:
    """Return the execution providers of a device, the processor last."""
    kind, colon, number = device.partition(":")
    if kind not in DEVICES or (colon and (kind != "cuda" or not number.isdigit())):
        raise InputError(f"no device {device!r} for a bundle; there are: {', '.join(DEVICES)}")
    built = CUDA in runtime.get_available_providers()
    if kind == "cuda" and not built:
        raise InputError(
            f"this onnxruntime was built for the processor alone, which makes --device {device} impossible; "
            "`pip install onnxruntime-gpu` in its place, or take --device cpu"
        )
    if kind == "cpu" or not built:
        return [CPU]
    # As in a training: TF32 would move scores from one machine to another.
    return [(CUDA, {"device_id": number or "0", "use_tf32": "0"}), CPU]


def _threads() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
