"""Source and recipe to a cache: in parallel, in the source's order, and from where an interrupted build stopped.

One machine or a cluster, it is the same call of joblib: films are prepared a few at a time by whichever worker is free,
and stored in the source's order by this process alone.
"""

import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import cv2
import joblib
import numpy as np
from joblib.externals.loky import reusable_executor
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.cache.disk import disk_full
from preprocessing.cache.reader import Cache, replaceable
from preprocessing.cache.schema import BOX_CLASSES, MAX_BOXES, STAGES, Header, Row, stage_of
from preprocessing.cache.writer import Writer
from preprocessing.cluster import call_up, on_one_line
from preprocessing.readers import peek_depth, read_film, read_mask
from preprocessing.recipe import RECIPE_VERSION, VARIANTS, Localizer, Prepared, Recipe, Segmenter
from preprocessing.sources import Record, Source

TASK_FILMS = 4  # given to a worker at a time
ROUND_BYTES = 2**30  # of prepared films that may wait for a slow disk
WATCH_SECONDS = 1.0  # between two looks of a worker process for its parent
TORN_SECONDS = 5.0  # that a lost worker may stay unnoticed by its pool


@dataclass(frozen=True)
class Progress:
    """How far a build is; `phase` is "depth" (headers read), "check" (of an interrupted build's films) or "films"."""

    phase: Literal["depth", "check", "films"]
    done: int
    total: int
    failed: int = 0


@dataclass(frozen=True)
class BuildReport:
    """What a build came to.

    rows       films in the cache, each hand of two counted
    failures   path and reason of each film that could not be prepared
    reused     the cache was there already
    kept       films taken over from an interrupted build
    notes      what the user should know, one line each
    """

    path: Path
    rows: int
    failures: list[tuple[str, str]]
    reused: bool
    kept: int
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Job:
    """What every worker needs to prepare any film."""

    source: Source
    recipe: Recipe
    variants: tuple[str, ...]
    dtype: str
    narrow: bool  # deeper films than `dtype` are brought down to it, rather than refused
    localizer: Localizer | None
    segmenter: Segmenter | None


@dataclass(frozen=True)
class _Outcome:
    """What became of a film: its rows, or why there are none.

    read   when the film and its masks were last written, and a hash of the bytes read of them; empty if not known
    """

    path: str
    rows: tuple[Row, ...] = ()
    reason: str = ""
    read: str = ""


_Report = Callable[[Progress], None]


def cache_path(
    source: Source,
    recipe: Recipe,
    variants: Sequence[str],
    folder: Path = Path("cache"),
    *,
    localizer: Localizer | None = None,
    segmenter: Segmenter | None = None,
) -> Path:
    """Name the cache of a source, recipe and variants: `cache/<source>-<recipe>-<size>-<8 hex digits>.h5`."""
    made = f"{made_digest(recipe, localizer=localizer, segmenter=segmenter)} {','.join(_ordered(variants))}"
    given = {"boxes": any(record.boxes for record in source.records), "masks": any(r.mask for r in source.records)}
    made += "".join(f" {name}" for name, there in given.items() if there)  # other content than without
    return folder / f"{source.name}-{recipe.name}-{recipe.size}-{hashlib.sha256(made.encode()).hexdigest()[:8]}.h5"


def made_digest(recipe: Recipe, *, localizer: Localizer | None = None, segmenter: Segmenter | None = None) -> str:
    """Give the recipe's digest; with trained nets, one that changes with their weights too: a cache's recipe_digest."""
    if localizer is None and segmenter is None:
        return recipe.digest()
    nets: tuple[Any, Any] = (localizer, segmenter)
    weights = [None if net is None else net.digest for net in nets]
    return hashlib.sha256(f"{recipe.digest()} {weights}".encode()).hexdigest()[:12]


def build(
    source: Source,
    recipe: Recipe,
    path: Path,
    *,
    variants: Sequence[str],
    workers: int = 0,
    compression: str | None = None,
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    localizer: Localizer | None = None,
    segmenter: Segmenter | None = None,
    command: str | None = None,
    dtype: str | None = None,
    cluster: str | None = None,
) -> BuildReport:
    """Prepare every film of a source and write the cache; its content is the same for any number of workers.

    variants               of `recipe.VARIANTS`; stored in that order
    workers                processes, at most one a film; 0 takes every core, 1 works in this process
    cluster                the scheduler of a Dask cluster, such as tcp://host:8786, whose workers then prepare the
                           films; they read them for themselves, at the path where the source is here
    compression            None, "lzf" or "gzip": smaller, but slower to read
    force                  make the cache, and replace the one that is there, whatever is in it
    localizer, segmenter   trained nets that can be sent to other processes, with the text attributes `name`, `run`
                           (where they were trained) and `digest`, which tells their weights apart
    dtype                  of the films stored, uint8 or uint16; none: uint16 where any film is deeper than 8 bits
    command                recorded in the cache as the one that makes it again

    An interrupted build goes on where it stopped. A film that cannot be prepared, for whatever reason, becomes a row of
    `failures`; one whose worker process ends twice does too. A complete cache of the same source, recipe and variants
    is returned as it is. A film counts as the same if its file is no newer than the cache, or has the same bytes; masks
    and films that could not be prepared, if their size is the same.

    Where films or masks have changed while the source was read, there is no cache: an InputError names the first, and
    the films before it stay for the next build.

    Raises InputError for an empty source, a source of which no film can be prepared, a file in the way, a cache that
    another process is writing, a cluster that does not answer, or no longer, and a disk that fails, is too full or
    becomes so: the films done then stay for the next build.
    """
    begun = time.monotonic()
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if not source.records:
        raise InputError(f"{source.root}: no films found")
    if workers < 0:
        raise InputError(f"{workers} workers; give 1 or more, or 0 for every core")
    if compression not in (None, "lzf", "gzip"):
        raise InputError(f"no compression {compression!r}; there are: lzf, gzip")
    variants = _ordered(variants)
    digest, listing = made_digest(recipe, localizer=localizer, segmenter=segmenter), source.listing_hash()
    if path.exists() and force and not replaceable(path):
        raise InputError(f"{path}: not a cache, so `--force` does not replace it; name another file")
    if path.exists() and not force:
        cache = _same(path, source, digest, listing, variants)
        seconds = time.monotonic() - begun
        return BuildReport(path, len(cache), cache.failures, reused=True, kept=0, seconds=seconds, notes=())

    with _interruptible(on_progress) as report, _crew(cluster, workers, source, localizer, segmenter) as crew:
        header = Header(
            variants=variants,
            size=recipe.size,
            dtype=dtype or _depth(source, report),
            recipe_json=recipe.to_json(),
            recipe_digest=digest,
            nets=_nets(localizer, segmenter),
            source=source.name,
            source_kind=source.kind,
            source_hash=listing,
            source_path=str(source.root.absolute()),
            synthetic=source.synthetic,
            truth=any(record.anomaly_mask for record in source.records),
            boxes=any(record.boxes for record in source.records) and any(stage_of(name) != "raw" for name in variants),
            command=command or shlex.join(["anomaly", "preprocess", str(source.root)]),
        )
        job = _Job(source, recipe, variants, header.dtype, dtype is not None, localizer, segmenter)
        with _disk(path, header, len(source.records)):
            _refuse_full_disk(path, header, len(source.records), compression)
            writer, kept = _write(path, header, job, crew, compression, report)
    return BuildReport(
        path=path,
        rows=writer.rows,
        failures=writer.failures,
        reused=False,
        kept=kept,
        seconds=time.monotonic() - begun,
        notes=tuple(writer.notes),
    )


def _write(
    path: Path, header: Header, job: _Job, crew: "_Crew", compression: str | None, report: _Report
) -> tuple[Writer, int]:
    """Write the cache, or what of it is missing; the finished writer, and how many films were there already."""
    records, root = job.source.records, job.source.root
    total = len(records)

    def check(films: int) -> None:
        report(Progress("check", films, total))

    changed = partial(_changed, job.source)
    with Writer(path, header, total=total, compression=compression, on_checked=check, find_changed=changed) as writer:
        kept = writer.done
        report(Progress("films", kept, total, writer.failed))
        with closing(_outcomes(job, records[kept:], crew, header)) as outcomes:
            for outcome in outcomes:
                _store(writer, outcome)
                report(Progress("films", writer.done, total, writer.failed))
        for other in changed(writer.fingerprints()):
            writer.keep_first(next(films for films, record in enumerate(records) if record.path == other))
            raise InputError(
                f"{root}: {other} changed while the source was read; when nothing writes there any more give the same "
                "command again, it prepares that film and those after it anew"
            )
        if not writer.rows:
            first, reason = writer.failures[0]
            writer.discard()
            raise InputError(f"{root}: none of {total} films could be prepared; the first, {first}: {reason}")
        writer.finish()
    return writer, kept


def _ordered(variants: Sequence[str]) -> tuple[str, ...]:
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown or not variants:
        raise InputError(f"no variant {unknown[0] if unknown else ''!r}; there are: {', '.join(VARIANTS)}")
    return tuple(variant for variant in VARIANTS if variant in variants)


def _nets(localizer: Localizer | None, segmenter: Segmenter | None) -> str:
    """Say as JSON which trained nets are asked."""
    nets: dict[str, Any] = {"localizer": localizer, "segmenter": segmenter}
    told = {
        role: {name: getattr(net, name) for name in ("name", "run", "digest")}
        for role, net in nets.items()
        if net is not None
    }
    return json.dumps(told, sort_keys=True)


def _same(path: Path, source: Source, digest: str, listing: str, variants: tuple[str, ...]) -> Cache:
    """Open the complete cache that is there already, or say what of it differs."""
    try:
        cache = Cache(path)
        films = dict(zip(cache.index["path"].tolist(), cache.index["sha256"].tolist(), strict=True))
    except InputError as error:
        advice = "`--force` replaces it" if replaceable(path) else "name another file with `--out`"
        raise InputError(f"{str(error).rpartition('; ')[0]}; {advice}") from error
    found = {"recipe": cache.recipe_digest, "variants": cache.variants}
    wanted = {"recipe": digest, "variants": variants}
    differing = [name for name in wanted if found[name] != wanted[name]]
    relisted, here = cache.source_hash != listing, cache.source_path == str(source.root.absolute())
    if relisted and not here:
        differing.insert(0, f"source ({cache.source_path})")
    faults = [f"a cache of another {' and '.join(differing)}"] if differing else []
    changed = [] if differing or relisted else _newer(source, films, path.stat().st_mtime_ns)
    if (relisted and here) or changed:
        then = len(films) + len(cache.failures)
        which = f", another {changed[0]}" if changed else ""
        faults.append(f"the source has changed since ({then} films then, {len(source.records)} now{which})")
    if faults:
        raise InputError(
            f"{path}: {', and '.join(faults)}; `--force` replaces it, and runs trained on it can then only score films "
            "named on the command line; or name another `--out`"
        )
    return cache


def _newer(source: Source, films: dict[str, str], since: int) -> list[str]:
    """List those of some films, path -> sha256, that are others now; files older than `since` (ns) are not."""
    return [
        path for path, sha256 in films.items() if _stamp(source.root, path) >= since and _sha256(source, path) != sha256
    ]


def _changed(source: Source, films: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Find those of the source's first films, given with their `_Outcome.read`, that are others now."""
    fresh = None
    for record, (_, read) in zip(source.records, films, strict=False):
        stamp, _, digest = read.partition(" ")
        if read and stamp != str(_newest(source, record)):
            fresh = fresh or source.part(source.records)  # this one may hold an archive open that has been replaced
            if digest != _joined(_sha256(fresh, path) for path in record.files()):
                yield record.path


def _newest(source: Source, record: Record) -> int:
    """When a film or its masks were last written, in nanoseconds."""
    return max(_stamp(source.root, path) for path in record.files())


def _joined(hashes: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _stamp(root: Path, relative: str) -> int:
    """When a film's file, or the archive it is in, was last written or put in its place, in nanoseconds."""
    for place in (root / relative, *(root / relative).parents):
        with suppress(OSError):  # it lies in an archive, or is gone
            status = place.stat()  # a file moved or unpacked here brings its old mtime along
            return max(status.st_mtime_ns, status.st_ctime_ns)
    return 0


def _sha256(source: Source, path: str) -> str:
    """Hash a file's bytes; of one that cannot be read, nothing."""
    try:
        return hashlib.sha256(source.read(path)).hexdigest()
    except (InputError, KeyError):  # KeyError: of an archive that has been packed again without it
        return ""


def _depth(source: Source, report: _Report) -> str:
    """Choose the type of the films from their headers: one deeper than 8 bits is enough for uint16."""
    for done, record in enumerate(source.records, 1):
        try:
            depth = peek_depth(record.path, source.read(record.path))
        except Exception:  # when it is prepared it will be a failure, with its reason
            depth = 8
        if depth > 8:
            return "uint16"
        report(Progress("depth", done, len(source.records)))
    return "uint8"


@dataclass(frozen=True)
class _Crew:
    """Who prepares the films.

    workers    how many at a time
    processes  gives the context in which joblib finds them; none: this process alone
    broken     what is raised where a worker was lost with its film
    tries      how often a lone film may lose its worker before it is to blame
    """

    workers: int
    processes: Callable[[], AbstractContextManager[Any]] | None = None
    broken: type[Exception] = BrokenProcessPool
    tries: int = 2


@contextmanager
def _crew(
    cluster: str | None, workers: int, source: Source, localizer: Localizer | None, segmenter: Segmenter | None
) -> Iterator[_Crew]:
    """Call up who is to prepare the films."""
    workers = min(workers or joblib.cpu_count(), len(source.records))
    if cluster is not None:
        with call_up(cluster, partial(_sees, source.root), RECIPE_VERSION, str(source.root)) as crew:
            # At least two, as with one joblib would prepare the films in this process.
            yield _Crew(max(2, crew.cores), crew.processes, crew.lost, tries=1)
    elif workers == 1:
        yield _Crew(1)
    else:  # with one process, joblib would work in this one, which a film can end
        # The nets are named at the start, so that processes of an earlier build that had none are not taken again: one
        # that grows by a net's libraries, hundreds of megabytes, is taken for a leak by loky, and never comes back.
        settings = {
            "inner_max_num_threads": 1,
            "initializer": _begin,
            "initargs": (os.getpid(), localizer, segmenter),
        }
        yield _Crew(workers, partial(joblib.parallel_config, backend="loky", **settings))


def _sees(root: Path) -> int:
    """Tell, on a worker, that a source can be read there and with which version of the recipe."""
    root.stat()
    return RECIPE_VERSION


def _outcomes(job: _Job, records: Sequence[Record], crew: _Crew, header: Header) -> Generator[_Outcome]:
    """Prepare films in their order.

    When a worker process is killed, which ends a whole pool, the films that were under way are prepared one by one.
    """
    if crew.processes is None:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # as in a worker: results must not depend on how many there are
        try:
            _open_nets(job)
            yield from (_prepare(job, record) for record in records)
        finally:
            cv2.setNumThreads(threads)
        return
    # A round's results fit into memory even while the disk takes none of them: joblib does not wait for its reader.
    under_way = 2 * crew.workers * TASK_FILMS
    films = max(under_way, ROUND_BYTES // (len(header.arrays()) * 2 * header.size**2))
    done = 0
    while done < len(records):
        try:
            with closing(_parallel(job, records[done : done + films], crew)) as outcomes:
                for outcome in outcomes:
                    done += 1
                    yield outcome
        except crew.broken:
            for record in records[done : done + under_way]:
                done += 1
                yield _alone(job, record, crew)


def _parallel(job: _Job, records: Sequence[Record], crew: _Crew) -> Generator[_Outcome, None, None]:
    assert crew.processes is not None
    films = max(1, min(TASK_FILMS, len(records) // (4 * crew.workers)))
    parts = (records[i : i + films] for i in range(0, len(records), films))
    tasks = (joblib.delayed(_work)(replace(job, source=job.source.part(part))) for part in parts)
    with crew.processes():
        parallel = joblib.Parallel(n_jobs=crew.workers, batch_size=1, return_as="generator")
    with _deaf():
        results = parallel(tasks)
    ended = threading.Event()
    threading.Thread(target=_end_torn, args=(ended,), daemon=True).start()
    try:
        for outcomes in results:
            yield from outcomes
    finally:
        ended.set()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\d+ tasks")  # that an interrupted build leaves work undone is no news
            results.close()


def _end_torn(ended: threading.Event) -> None:
    """End a pool that waits for the rest of what a lost worker was saying, so that it is known as broken.

    A worker that is killed while it sends a result leaves half of it in the pipe. loky then reads on for ever: the
    other workers, and this process, hold the pipe open. When none does it reads the end, and says so.
    """
    lost = 0
    while not ended.wait(WATCH_SECONDS):
        pool = reusable_executor._executor
        processes = [] if pool is None or pool._flags.broken else list(pool._processes)
        lost = lost + 1 if any(map(_has_ended, processes)) else 0
        if lost * WATCH_SECONDS >= TORN_SECONDS:  # loky itself takes note of a lost worker at once
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            pool._result_queue._writer.close()
            return


def _has_ended(process: int) -> bool:
    """Tell whether a child has ended and nobody has taken note; nor is note taken here."""
    try:
        return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _alone(job: _Job, record: Record, crew: _Crew) -> _Outcome:
    for _ in range(crew.tries):
        try:
            (outcome,) = _parallel(job, [record], crew)  # to its end: left early, it would kill its workers each time
            return outcome
        except crew.broken:
            continue
    reason = "each time it was prepared, the worker process ended; it may need more memory than there is"
    return _Outcome(record.path, reason=reason)


@contextmanager
def _deaf() -> Iterator[None]:
    """Start processes that never hear of Ctrl-C: it reaches the whole terminal, but the parent ends its workers.

    Blocked signals are inherited, so that not even the imports of a new process are interrupted. Here the signal waits.
    """
    resource_tracker.ensure_running()  # starting it, which joblib does too, unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(parent: int, *nets: Localizer | Segmenter | None) -> None:
    """Set up a worker process of this machine; the nets need only be sent to it."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, however that was; it would wait minutes for more work."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def _work(job: _Job) -> list[_Outcome]:
    """Prepare a part of the source, in a worker process."""
    cv2.setNumThreads(1)
    _open_nets(job)
    return [_prepare(job, record) for record in job.source.records]


def _open_nets(job: _Job) -> None:
    """See that the nets are there: one that is not is no fault of the films, and ends the build."""
    for net in (job.localizer, job.segmenter):
        opened = getattr(net, "opened", None)
        if opened is not None:
            opened()


def _prepare(job: _Job, record: Record) -> _Outcome:
    # When they were written is asked before they are read: whatever changes them later is noticed by it.
    stamp = _newest(job.source, record)
    files: dict[str, bytes] = {}
    rows: tuple[Row, ...] = ()
    reason = ""
    try:
        for path in record.files():
            files[path] = job.source.read(path)
        rows = _rows(job, record, files)
    except InputError as error:
        reason = _reason(record.path, error)
    except Exception as error:  # one film, whatever is wrong with it, must not end the build of all others
        reason = f"{type(error).__name__}: {error}"
    hashes = (hashlib.sha256(files[path]).hexdigest() if path in files else "" for path in record.files())
    return _Outcome(record.path, rows, reason, f"{stamp} {_joined(hashes)}")


def _reason(path: str, error: InputError) -> str:
    """Why a film failed, without its name, which stands beside it."""
    return str(error).removeprefix(f"{path}: ")


def _rows(job: _Job, record: Record, files: dict[str, bytes]) -> tuple[Row, ...]:
    data = files[record.path]
    film = read_film(record.path, data, window=job.recipe.window == "voi")
    if film.depth > 8 and job.dtype == "uint8" and not job.narrow:
        raise InputError(f"{record.path}: {film.depth} bits deep, which its header does not say; mend the film")
    height, width = film.pixels.shape[:2]
    _check_boxes(record, width, height)
    mask, anomaly = (
        None if given is None else read_mask(given, files[given]) for given in (record.mask, record.anomaly_mask)
    )
    results = job.recipe.apply(
        film,
        variants=job.variants,
        dtype=job.dtype,
        box=record.box,
        mask=mask,
        anomaly=anomaly,
        localizer=job.localizer,
        segmenter=job.segmenter,
    )
    return tuple(
        Row(
            path=record.path,
            patient=record.patient,
            study=record.study,
            label=record.label,
            split=record.split,
            finding=record.finding,
            difficulty=record.difficulty,
            sha256=hashlib.sha256(data).hexdigest(),
            height=height,
            width=width,
            depth=film.depth,
            inverted=prepared.inverted,
            fallbacks=",".join(prepared.fallbacks),
            carrier=prepared.carrier,
            box=prepared.box,
            matrix_raw=prepared.matrices.get("raw"),
            matrix_crop=prepared.matrices.get("crop"),
            grey=[prepared.grey.get(stage, (math.nan, math.nan)) for stage in STAGES],
            films=prepared.films,
            masks=prepared.masks,
            truth=prepared.anomaly,
            boxes=_carried(record, prepared),
            hand=prepared.hand,
            side=prepared.side,
            turns=prepared.turns,
            markers=prepared.markers,
            given=mask is not None and "mask" not in prepared.fallbacks,
        )
        for prepared in results
    )


def _check_boxes(record: Record, width: int, height: int) -> None:
    """Refuse boxes that nothing could be learned from."""
    if len(record.boxes) > MAX_BOXES:
        raise InputError(f"{record.path}: {len(record.boxes)} boxes; a film may have {MAX_BOXES}")
    for name, *box in record.boxes:
        if name not in BOX_CLASSES:
            raise InputError(f"{record.path}: a box of class {name!r}; there are: {', '.join(BOX_CLASSES)}")
        x0, y0, x1, y1 = box
        # By a pixel a box may reach beyond the film: tools round. By more, it was drawn on another film, or at a scale.
        if not (-1 <= x0 < x1 <= width + 1 and -1 <= y0 < y1 <= height + 1):
            raise InputError(
                f"{record.path}: the box {x0:g} {y0:g} {x1:g} {y1:g} of a {name} is not one on this film of {width} x "
                f"{height} pixels; give x0 y0 x1 y1 in its pixels"
            )


def _carried(record: Record, prepared: Prepared) -> NDArray[np.float32]:
    """Carry a film's boxes into its crop: (n, 5) x0, y0, x1, y1, class, without those mostly cut off.

    Boxes tell edges, where matrices tell pixel centres: half a pixel lies between them. On a tilted carrier a box grows
    to what holds it.
    """
    low, high = np.array(prepared.frame[:2]), np.array(prepared.frame[2:])
    matrix = prepared.matrices["crop"]
    carried = []
    for name, x0, y0, x1, y1 in record.boxes:
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) - 0.5
        corners = corners @ matrix[:, :2].T + matrix[:, 2] + 0.5
        whole = corners.min(axis=0), corners.max(axis=0)
        visible = np.clip(whole, low, high)
        if np.prod(visible[1] - visible[0]) >= 0.5 * np.prod(whole[1] - whole[0]):
            carried.append([*visible.ravel(), BOX_CLASSES.index(name) + 1])
    return np.array(carried, np.float32).reshape(-1, 5)


def _store(writer: Writer, outcome: _Outcome) -> None:
    if not outcome.rows:
        writer.fail(outcome.path, outcome.reason, fingerprint=outcome.read)
        return
    try:
        writer.append(*outcome.rows, fingerprint=outcome.read)
    except InputError as error:
        writer.fail(outcome.path, _reason(outcome.path, error), fingerprint=outcome.read)


def _refuse_full_disk(path: Path, header: Header, total: int, compression: str | None) -> None:
    """Refuse at the start what the disk cannot hold; how small compressed films become is not known before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = _missing(path, header, total), shutil.disk_usage(path.parent).free
    if compression is None and free < needed:
        raise InputError(
            f"{path.parent}: {_readable(free)} free, this cache needs {_readable(needed)}; "
            "free some space, or choose a smaller size, fewer variants or compression"
        )


def _missing(path: Path, header: Header, total: int) -> int:
    """Bytes an uncompressed cache still needs, beside what its partial file has taken."""
    begun = path.with_name(path.name + ".partial")
    taken = begun.stat().st_blocks * 512 if begun.exists() else 0
    needed = total * (header.row_bytes() + 4096)  # 4 KiB for a film's line in the index and the chunk tables
    return max(0, needed - taken)


def _readable(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@contextmanager
def _disk(path: Path, header: Header, total: int) -> Iterator[None]:
    """Turn what a disk refuses into one line."""
    try:
        yield
    except OSError as error:
        if disk_full(error):
            raise InputError(
                f"{path.parent}: the disk is full; up to {_readable(_missing(path, header, total))} more are needed: "
                "free some space and give the same command again, it goes on where it stopped"
            ) from error
        raise InputError(f"{path}: cannot be written ({on_one_line(error)}); name another file") from error


@contextmanager
def _interruptible(on_progress: _Report | None) -> Iterator[_Report]:
    """Let Ctrl-C end the build where it next reports, between two films; a second Ctrl-C does not wait.

    Raised at once, KeyboardInterrupt often falls into the clean-up of an object, where Python drops it.
    """
    interrupted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    here = threading.current_thread() is threading.main_thread()  # signals come to no other thread

    def interrupt(number: int, frame: FrameType | None) -> None:
        if interrupted.is_set() and callable(before):
            before(number, frame)
        interrupted.set()

    def report(progress: Progress) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        if on_progress is not None:
            on_progress(progress)

    if here:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield report
    finally:
        if here:
            signal.signal(signal.SIGINT, before)
