"""A Dask cluster through joblib: called up, asked whether it can do the work, and let go."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import joblib

from preprocessing import InputError

CLUSTER_SECONDS = 10  # for a cluster's scheduler, and its workers, to answer


@dataclass(frozen=True)
class Crew:
    """The workers of a cluster.

    cores      of all of them together
    at_once    tasks for which there is room: a GPU or, without, a worker each
    processes  gives the context in which joblib finds them
    lost       what is raised where a task took its workers with it
    """

    cores: int
    at_once: int
    processes: Callable[[], AbstractContextManager[Any]]
    lost: type[Exception]


@contextmanager
def call_up(address: str, able: Callable[[], object], version: int, needs: str, *, gpu: bool = False) -> Iterator[Crew]:
    """Call up the workers of the cluster whose scheduler is at `address`.

    able     run on every worker: returns `version`, or raises.    needs  what it needs for that, to read.
    gpu      whether a task takes one of the resource GPU, where workers have it.

    Raises InputError where nobody answers, where a worker is not able, and where the cluster fails later on.
    """
    try:
        from distributed import Client, KilledWorker
        from distributed.comm.addressing import get_address_host_port
        from joblib._dask import DaskDistributedBackend
    except ImportError as error:
        raise InputError(
            f"no cluster without Dask ({error}); run `pip install xray-anomaly[cluster]`, or leave out `--cluster`"
        ) from error

    class Backend(DaskDistributedBackend):  # type: ignore[misc]
        """joblib's own, which would wait for ever for a film that ends every worker, and leave one core unused."""

        def effective_n_jobs(self, n_jobs: int) -> int:
            return n_jobs

        def submit(self, func: Any, callback: Any = None) -> Any:
            future = super().submit(func, callback)
            future.add_done_callback(lambda done: callback(done.exception()) if done.exception() else None)
            return future

        def retrieve_result_callback(self, out: Any) -> Any:
            if isinstance(out, KilledWorker):
                raise out
            if isinstance(out, BaseException):  # of the cluster: those of a task are among its outcomes
                raise InputError(
                    f"{address}: the cluster failed ({type(out).__name__}: {on_one_line(out)}); when it is "
                    "well again give the same command, it goes on where it stopped"
                ) from out
            return super().retrieve_result_callback(out)

    try:
        # Asked first, as a client that finds nobody leaves a thread behind.
        socket.create_connection(get_address_host_port(address, strict=True), CLUSTER_SECONDS).close()
        client = Client(address, timeout=CLUSTER_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{address}: no Dask scheduler answered within {CLUSTER_SECONDS} s ({on_one_line(error)}); start one with "
            "`dask scheduler` and give the address it prints, such as tcp://host:8786"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CLUSTER_SECONDS)
        except TimeoutError as error:
            raise InputError(
                f"{address}: the cluster has no workers; start some with `dask worker {address}`"
            ) from error
        for worker, seen in client.run(able, on_error="return").items():
            if seen != version:
                fault = "has another version of this program" if isinstance(seen, int) else on_one_line(seen)
                raise InputError(f"{address}: worker {worker}: {fault}; it needs this program, and {needs} there")
        told = client.scheduler_info(n_workers=-1)["workers"].values()
        gpus = [int(worker.get("resources", {}).get("GPU", 0)) for worker in told]
        asked = {"resources": {"GPU": 1}} if gpu and any(gpus) else {}
        cores = sum(client.ncores().values())  # type: ignore[no-untyped-call]
        at_once = sum(gpus) if asked else len(gpus)
        yield Crew(cores, at_once, lambda: joblib.parallel_config(Backend(client=client, **asked)), KilledWorker)


def on_one_line(error: object) -> str:
    """Return what an error says, on one line."""
    return " ".join(str(error).split())
