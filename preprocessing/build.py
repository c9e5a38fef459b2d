"""Source and recipe to a cache: in parallel, in the source's order, and from where an interrupted build stopped."""

import hashlib
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
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import cv2
import joblib

from preprocessing import InputError
from preprocessing.readers import peek_depth, read_film, read_mask
from preprocessing.recipe import VARIANTS, Localizer, Recipe, Segmenter
from preprocessing.schema import STAGES, Cache, Header, Row, Writer, disk_full, replaceable
from preprocessing.sources import Record, Source

TASK_FILMS = 4  # given to a worker at a time
ROUND_BYTES = 2**30  # of prepared films that may wait for a slow disk
WATCH_SECONDS = 1.0  # between two looks of a worker process for its parent


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

    rows       films in the cache
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


_Outcome = Row | tuple[str, str]  # a prepared film, or path and reason of a failure
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
    made = f"{_digest(recipe, localizer, segmenter)} {','.join(_ordered(variants))}"
    return folder / f"{source.name}-{recipe.name}-{recipe.size}-{hashlib.sha256(made.encode()).hexdigest()[:8]}.h5"


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
) -> BuildReport:
    """Prepare every film of a source and write the cache; its content is the same for any number of workers.

    variants               of `recipe.VARIANTS`; stored in that order
    workers                processes, at most one a film; 0 takes every core, 1 works in this process
    compression            None, "lzf" or "gzip": smaller, but slower to read
    force                  make the cache, and replace the one that is there, whatever is in it
    localizer, segmenter   trained nets that can be sent to other processes, with a text attribute `digest` that tells
                           their weights apart
    dtype                  of the films stored, uint8 or uint16; none: uint16 where any film is deeper than 8 bits
    command                recorded in the cache as the one that makes it again

    An interrupted build goes on where it stopped. A film that cannot be prepared, for whatever reason, becomes a row of
    `failures`; one whose worker process ends twice does too. A complete cache of the same source, recipe and variants
    is returned as it is. A film counts as the same if its file is no newer than the cache, or has the same bytes; masks
    and films that could not be prepared, if their size is the same.

    Raises InputError for an empty source, a source of which no film can be prepared, a file in the way, a cache that
    another process is writing, and a disk that is too full or becomes so: the films done then stay for the next build,
    unless a compressed file was left damaged.
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
    digest, listing = _digest(recipe, localizer, segmenter), source.listing_hash()
    if path.exists() and force and not replaceable(path):
        raise InputError(f"{path}: not a cache, so `--force` does not replace it; name another file")
    if path.exists() and not force:
        cache = _same(path, source, digest, listing, variants)
        seconds = time.monotonic() - begun
        return BuildReport(path, len(cache), cache.failures, reused=True, kept=0, seconds=seconds, notes=())

    with _interruptible(on_progress) as report:
        header = Header(
            variants=variants,
            size=recipe.size,
            dtype=dtype or _depth(source, report),
            recipe_json=recipe.to_json(),
            recipe_digest=digest,
            source=source.name,
            source_kind=source.kind,
            source_hash=listing,
            source_path=str(source.root.absolute()),
            synthetic=source.synthetic,
            truth=any(record.anomaly_mask for record in source.records),
            command=command or shlex.join(["anomaly", "preprocess", str(source.root)]),
        )
        job = _Job(source, recipe, variants, header.dtype, dtype is not None, localizer, segmenter)
        processes = min(workers or joblib.cpu_count(), len(source.records))
        with _disk(path, header, len(source.records), compression):
            _refuse_full_disk(path, header, len(source.records), compression)
            writer, kept = _write(path, header, job, processes, compression, report)
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
    path: Path, header: Header, job: _Job, workers: int, compression: str | None, report: _Report
) -> tuple[Writer, int]:
    """Write the cache, or what of it is missing; the finished writer, and how many films were there already."""
    records, root = job.source.records, job.source.root
    total = len(records)

    def check(films: int) -> None:
        report(Progress("check", films, total))

    changed = partial(_changed, job.source)
    with Writer(path, header, total=total, compression=compression, on_kept=check, changed=changed) as writer:
        kept = writer.done
        report(Progress("films", kept, total, kept - writer.rows))
        with closing(_outcomes(job, records[kept:], workers, header)) as outcomes:
            for outcome in outcomes:
                _store(writer, outcome)
                report(Progress("films", writer.done, total, writer.done - writer.rows))
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


def _digest(recipe: Recipe, localizer: Localizer | None, segmenter: Segmenter | None) -> str:
    """Give the recipe's digest; with trained nets, one that changes with their weights too."""
    if localizer is None and segmenter is None:
        return recipe.digest()
    nets: tuple[Any, Any] = (localizer, segmenter)
    weights = [None if net is None else net.digest for net in nets]
    return hashlib.sha256(f"{recipe.digest()} {weights}".encode()).hexdigest()[:12]


def _same(path: Path, source: Source, digest: str, listing: str, variants: tuple[str, ...]) -> Cache:
    """Open the complete cache that is there already, or say what of it differs."""
    try:
        cache = Cache(path)
        films = list(zip(cache.index["path"].tolist(), cache.index["sha256"].tolist(), strict=True))
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
    changed = [] if differing or relisted else _changed(source, films, path.stat().st_mtime_ns)
    if (relisted and here) or changed:
        then = len(cache) + len(cache.failures)
        which = f", another {changed[0]}" if changed else ""
        faults.append(f"the source has changed since ({then} films then, {len(source.records)} now{which})")
    if faults:
        raise InputError(
            f"{path}: {', and '.join(faults)}; `--force` replaces it, and runs trained on it can then only score films "
            "named on the command line; or name another `--out`"
        )
    return cache


def _changed(source: Source, films: Iterable[tuple[str, str]], since: int) -> list[str]:
    """List those of some films, given with their sha256, that are others now; files older than `since` (ns) are not."""
    return [path for path, sha256 in films if _stamp(source.root, path) >= since and _sha256(source, path) != sha256]


def _stamp(root: Path, relative: str) -> int:
    """When a film's file, or the archive it is in, was last written or put in its place, in nanoseconds."""
    place = root / relative
    while not place.exists():
        place = place.parent
    status = place.stat()
    return max(status.st_mtime_ns, status.st_ctime_ns)  # a file moved or unpacked here brings its old mtime along


def _sha256(source: Source, path: str) -> str:
    try:
        return hashlib.sha256(source.read(path)).hexdigest()
    except InputError:  # it could be read when it was prepared
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


def _outcomes(job: _Job, records: Sequence[Record], workers: int, header: Header) -> Generator[_Outcome]:
    """Prepare films in their order.

    When a worker process is killed, which ends a whole pool, the films that were under way are prepared one by one.
    """
    if workers == 1:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # as in a worker: results must not depend on how many there are
        try:
            yield from (_prepare(job, record) for record in records)
        finally:
            cv2.setNumThreads(threads)
        return
    workers = max(2, min(workers, len(records)))  # with one, joblib would work in this process, which a film can end
    # A round's results fit into memory even while the disk takes none of them: joblib does not wait for its reader.
    films = max(2 * workers * TASK_FILMS, ROUND_BYTES // (len(header.arrays()) * 2 * header.size**2))
    done = 0
    while done < len(records):
        try:
            with closing(_parallel(job, records[done : done + films], workers)) as outcomes:
                for outcome in outcomes:
                    done += 1
                    yield outcome
        except BrokenProcessPool:
            for record in records[done : done + 2 * workers * TASK_FILMS]:
                done += 1
                yield _alone(job, record)


def _parallel(job: _Job, records: Sequence[Record], workers: int) -> Generator[_Outcome, None, None]:
    films = max(1, min(TASK_FILMS, len(records) // (4 * workers)))
    parts = (records[i : i + films] for i in range(0, len(records), films))
    tasks = (joblib.delayed(_work)(replace(job, source=job.source.part(part))) for part in parts)
    settings = {"initializer": _begin, "initargs": (os.getpid(),)}
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        parallel = joblib.Parallel(n_jobs=workers, batch_size=1, return_as="generator", **settings)
    with _deaf():
        results = parallel(tasks)
    try:
        for outcomes in results:
            yield from outcomes
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\d+ tasks")  # that an interrupted build leaves work undone is no news
            results.close()


def _alone(job: _Job, record: Record) -> _Outcome:
    for _ in range(2):
        try:
            return next(_parallel(job, [record], 2))
        except BrokenProcessPool:
            continue
    return record.path, "preparing it ended the worker process twice; it may need more memory than there is"


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


def _begin(parent: int) -> None:
    """Set up a worker process."""
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, however that was; it would wait minutes for more work."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def _work(job: _Job) -> list[_Outcome]:
    """Prepare a part of the source, in a worker process."""
    return [_prepare(job, record) for record in job.source.records]


def _prepare(job: _Job, record: Record) -> _Outcome:
    try:
        return _row(job, record)
    except InputError as error:
        return record.path, _reason(record.path, error)
    except Exception as error:  # one film, whatever is wrong with it, must not end the build of all others
        return record.path, f"{type(error).__name__}: {error}"


def _reason(path: str, error: InputError) -> str:
    """Why a film failed, without its name, which stands beside it."""
    return str(error).removeprefix(f"{path}: ")


def _row(job: _Job, record: Record) -> Row:
    data = job.source.read(record.path)
    film = read_film(record.path, data, window=job.recipe.window == "voi")
    if film.depth > 8 and job.dtype == "uint8" and not job.narrow:
        raise InputError(f"{record.path}: {film.depth} bits deep, which its header does not say; mend the film")
    mask, anomaly = (
        None if given is None else read_mask(given, job.source.read(given))
        for given in (record.mask, record.anomaly_mask)
    )
    prepared = job.recipe.apply(
        film,
        variants=job.variants,
        dtype=job.dtype,
        box=record.box,
        mask=mask,
        anomaly=anomaly,
        localizer=job.localizer,
        segmenter=job.segmenter,
    )
    return Row(
        path=record.path,
        patient=record.patient,
        study=record.study,
        label=record.label,
        split=record.split,
        finding=record.finding,
        difficulty=record.difficulty,
        sha256=hashlib.sha256(data).hexdigest(),
        height=film.pixels.shape[0],
        width=film.pixels.shape[1],
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
    )


def _store(writer: Writer, outcome: _Outcome) -> None:
    if isinstance(outcome, Row):
        try:
            writer.append(outcome)
        except InputError as error:
            writer.fail(outcome.path, _reason(outcome.path, error))
    else:
        writer.fail(*outcome)


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
def _disk(path: Path, header: Header, total: int, compression: str | None) -> Iterator[None]:
    """Turn what a disk refuses into one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if disk_full(error):
            damage = "" if compression is None else ", or begins again if that damaged the compressed file"
            raise InputError(
                f"{path.parent}: the disk is full; up to {_readable(_missing(path, header, total))} more are needed: "
                f"free some space and give the same command again, it goes on where it stopped{damage}"
            ) from error
        if isinstance(error, OSError):
            text = " ".join(str(error).split())
            raise InputError(f"{path}: cannot be written ({text}); name another file") from error
        raise


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
