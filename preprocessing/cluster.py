"""A Dask cluster: connected to, asked whether it can do the work, and given tasks."""

import socket
import time
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from itertools import islice
from typing import Any

from preprocessing import InputError
from preprocessing.wording import on_one_line
from preprocessing.workers import LOST

CLUSTER_SECONDS = 10  # for a cluster's scheduler, and its workers, to answer
POLL_SECONDS = 5.0  # after which it is asked whether there are workers that a result could come from
GONE_SECONDS = 120.0  # without any worker, after which the work ends: a queue may take a while to replace them
PACKAGE = "xray-anomaly"


@dataclass(frozen=True)
class Cluster:
    """The workers of a cluster.

    address    of its scheduler
    client     of Dask
    cores      of all of them together
    at_once    tasks for which there is room: a GPU or, without, a worker each
    resources  of Dask that each task takes
    lost       what is raised where a task took its workers with it
    """

    address: str
    client: Any
    cores: int
    at_once: int
    resources: dict[str, int]
    lost: type[Exception]

    def run_in_order(
        self, function: Callable[[Any], Any], tasks: Iterable[Any], *, ahead: int
    ) -> Generator[Any, None, None]:
        """Run a function on tasks; yields its results in the order of the tasks, LOST for one that ended its workers.

        ahead   tasks given out before the first of them has its result taken: bounds the results that wait

        Raises what the function raises, and InputError where the cluster fails.
        """
        todo, futures = iter(tasks), deque[Any]()
        try:
            while True:
                while len(futures) < ahead and (task := next(todo, None)) is not None:
                    futures.append(self._submit(function, task))
                if not futures:
                    return
                yield self._result(futures.popleft())
        finally:
            self.client.cancel(list(futures))

    def run_as_completed(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Generator[Any, None, None]:
        """Run a function on tasks, as many at a time as there is room for; yields its results as they come.

        Raises what the function raises, `lost` where a task ended its workers, and InputError where the cluster fails.
        """
        todo = iter(tasks)
        futures = [self._submit(function, task) for task in islice(todo, self.at_once)]
        try:
            while futures:
                for future in self._wait(futures):
                    futures.remove(future)
                    yield self._result(future, raise_lost=True)
                    if (task := next(todo, None)) is not None:
                        futures.append(self._submit(function, task))
        finally:
            self.client.cancel(futures)

    def _submit(self, function: Callable[[Any], Any], task: Any) -> Any:
        return self.client.submit(function, task, pure=False, resources=self.resources or None)

    def _wait(self, futures: list[Any]) -> list[Any]:
        """Wait until some of the futures are done, and return these; InputError where no worker is left to do them."""
        from distributed import wait

        gone_since: float | None = None
        while True:
            try:
                with self.client.as_current():  # this function alone takes no client
                    done = wait(futures, timeout=POLL_SECONDS, return_when="FIRST_COMPLETED").done  # type: ignore[no-untyped-call]
                return [future for future in futures if future in done]
            except TimeoutError:
                workers = self._cores()
            except (Exception, CancelledError) as error:
                raise _failed(self.address, error) from error
            gone_since = None if workers else gone_since or time.monotonic()
            if gone_since is None:
                continue
            if time.monotonic() - gone_since > GONE_SECONDS:
                raise InputError(
                    f"{self.address}: the cluster has had no worker for {GONE_SECONDS:.0f} s; start some with "
                    f"`dask worker {self.address}`, and the same command resumes"
                )

    def _cores(self) -> dict[str, int]:
        """Return the cores of each worker there is now."""
        try:
            return dict(self.client.ncores())
        except (Exception, CancelledError) as error:
            raise _failed(self.address, error) from error

    def _result(self, future: Any, *, raise_lost: bool = False) -> Any:
        try:
            while True:
                self._wait([future])
                try:
                    return future.result(timeout=GONE_SECONDS)
                except TimeoutError:
                    # A worker that dies with a result that nobody has fetched yet takes it along: it is due again.
                    if future.status == "error":  # the function's own
                        raise
        except self.lost:
            if raise_lost:
                raise
            return LOST
        except InputError:
            raise
        except (Exception, CancelledError) as error:
            raise _failed(self.address, error) from error


@contextmanager
def connect(
    address: str, able: Callable[[], object], version: int, needs: str, *, gpu: bool = False
) -> Iterator[Cluster]:
    """Connect to the cluster whose scheduler is at `address`.

    able     run on every worker: returns `version`, or raises.    needs  what it needs for that, to read.
    gpu      whether a task takes one of the resource GPU, where workers have it.

    Raises InputError where nobody answers, where a worker is not able, and where the cluster fails later on.
    """
    try:
        from distributed import Client, KilledWorker
        from distributed.comm.addressing import get_address_host_port
    except ImportError as error:
        raise InputError(
            f"no cluster without Dask ({error}); run `pip install xray-anomaly[cluster]`, or leave out `--cluster`"
        ) from error

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
        own = package_version()
        for worker, seen in client.run(_versions, able, on_error="return").items():
            if seen != (version, own):
                other = isinstance(seen, tuple)
                fault = f"has version {seen[1] or 'unknown'} of this program, not {own}" if other else on_one_line(seen)
                raise InputError(f"{address}: worker {worker}: {fault}; it needs this program, and {needs} there")
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        gpus = [int(worker.get("resources", {}).get("GPU", 0)) for worker in workers]
        resources = {"GPU": 1} if gpu and any(gpus) else {}
        cores = sum(client.ncores().values())  # type: ignore[no-untyped-call]
        yield Cluster(address, client, cores, sum(gpus) if resources else len(gpus), resources, KilledWorker)


def package_version() -> str:
    """Return the version of this package, "" where it is run from its sources without being installed."""
    try:
        return version_of(PACKAGE)
    except PackageNotFoundError:
        return ""


def _versions(able: Callable[[], object]) -> tuple[object, str]:
    """Return, on a worker, what `able` does, and the version of the package."""
    return able(), package_version()


def _failed(address: str, error: BaseException) -> InputError:
    return InputError(
        f"{address}: the cluster failed ({type(error).__name__}: {on_one_line(error)}); once it is available again, "
        "the same command resumes"
    )
