"""Source and recipe to a cache: in parallel, in the source's order, and resumable.

Films are prepared a few at a time by whichever worker is free, of this machine or of a cluster, and stored in the
source's order by this process alone.
"""

import hashlib
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import cv2

from preprocessing import InputError
from preprocessing.cache.disk import disk_full
from preprocessing.cache.reader import Cache, replaceable
from preprocessing.cache.schema import Header, stage_of
from preprocessing.cache.writer import Writer, tidy
from preprocessing.changes import changed_films, changed_since
from preprocessing.prepare import Job, Outcome, prepare, reason_without_path
from preprocessing.readers import peek_depth
from preprocessing.recipe import RECIPE_VERSION, VARIANTS, Nets, Recipe
from preprocessing.sources import Record, Source
from preprocessing.wording import counted, did_you_mean, on_one_line
from preprocessing.workers import LOST, run_in_order

TASK_FILMS = 4  # given to a worker at a time
NAMED = 5  # films, in the error that says that none could be prepared
WAITING_TASKS = 8  # for each worker, given out or waiting for a slow disk


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
class BuildOptions:
    """How a cache is built.

    variants      of `recipe.VARIANTS`; stored in that order
    workers       processes, at most one a film; 0 takes every core, 1 works in this process
    cluster       the scheduler of a Dask cluster, such as tcp://host:8786, whose workers then prepare the films; they
                  read them for themselves, at the path where the source is here
    compression   None, "lzf" or "gzip": smaller, but slower to read
    force         make the cache, and replace the one that is there, whatever is in it
    dtype         of the films stored, uint8 or uint16; None: uint16 where any film is deeper than 8 bits
    command       recorded in the cache as the one that makes it again; None: derived from the source
    """

    variants: Sequence[str] = ("full-he",)
    workers: int = 0
    cluster: str | None = None
    compression: str | None = None
    force: bool = False
    dtype: str | None = None
    command: str | None = None

    def check(self) -> tuple[str, ...]:
        """Return the variants in the order of `recipe.VARIANTS`; raises InputError for a wrong option."""
        if self.workers < 0:
            raise InputError(f"{self.workers} workers; give 1 or more, or 0 for every core")
        if self.compression not in (None, "lzf", "gzip"):
            raise InputError(f"no compression {self.compression!r}; there are: lzf, gzip")
        return _ordered(self.variants)


_Report = Callable[[Progress], None]
_Results = Generator[Any, None, None]  # of each task, in order: a list of outcomes, or LOST


def cache_path(
    source: Source,
    recipe: Recipe,
    variants: Sequence[str],
    folder: Path = Path("cache"),
    nets: Nets = Nets(),
) -> Path:
    """Name the cache of a source, recipe and variants: `cache/<source>-<recipe>-<size>-<8 hex digits>.h5`."""
    content = f"{made_digest(recipe, nets)} {','.join(_ordered(variants))}"
    given = {"boxes": any(record.boxes for record in source.records), "masks": any(r.mask for r in source.records)}
    content += "".join(f" {name}" for name, present in given.items() if present)  # other content than without
    return folder / f"{source.name}-{recipe.name}-{recipe.size}-{hashlib.sha256(content.encode()).hexdigest()[:8]}.h5"


def made_digest(recipe: Recipe, nets: Nets = Nets()) -> str:
    """Give the recipe's digest; with trained nets, one that changes with their weights too: a cache's recipe_digest."""
    if not nets.named():
        return recipe.digest()
    named = nets.named()
    weights = [named[role].digest if role in named else None for role in ("localizer", "segmenter")]
    return hashlib.sha256(f"{recipe.digest()} {weights}".encode()).hexdigest()[:12]


def build(
    source: Source,
    recipe: Recipe,
    path: Path,
    nets: Nets = Nets(),
    options: BuildOptions = BuildOptions(),
    on_progress: _Report | None = None,
) -> BuildReport:
    """Prepare every film of a source and write the cache; its content is the same for any number of workers.

    An interrupted build resumes where it stopped. A film that cannot be prepared, for whatever reason, becomes a row of
    `failures`; one whose worker process ends twice does too. A complete cache of the same source, recipe and variants
    is returned as it is. A film counts as the same if its file is no newer than the cache, or has the same bytes; masks
    and films that could not be prepared, if their size is the same.

    Where films or masks have changed while the source was read, there is no cache: an InputError names the first, and
    the films before it stay for the next build.

    Raises InputError for an empty source, a source of which no film can be prepared, a file in the way, a cache that
    another process is writing, a cluster that does not answer, or no longer, and a disk that fails, is too full or
    becomes so: the films done then stay for the next build.
    """
    started = time.monotonic()
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if not source.records:
        raise InputError(f"{source.root}: no films found")
    variants, listing = options.check(), source.listing_hash()
    if path.exists() and options.force and not replaceable(path):
        raise InputError(f"{path}: not a cache, so `--force` does not replace it; name another file")
    if path.exists() and not options.force:
        cache = _existing(path, source, made_digest(recipe, nets), listing, variants)
        tidy(path)
        seconds = time.monotonic() - started
        return BuildReport(path, len(cache), cache.failures, reused=True, kept=0, seconds=seconds, notes=())

    with _interruptible(on_progress) as report, _pool(options, source) as pool:
        dtype = options.dtype or _depth(source, report)
        job = Job(source, recipe, variants, dtype, narrow=options.dtype is not None, nets=nets)
        header = _header(job, listing, options.command)
        with _disk_errors(path, header, len(source.records)):
            _refuse_full_disk(path, header, len(source.records), options.compression)
            writer, kept = _write(path, header, job, pool, options.compression, report)
    return BuildReport(
        path=path,
        rows=writer.rows,
        failures=writer.failures,
        reused=False,
        kept=kept,
        seconds=time.monotonic() - started,
        notes=tuple(writer.notes),
    )


def _header(job: Job, listing: str, command: str | None) -> Header:
    source = job.source
    return Header(
        variants=job.variants,
        size=job.recipe.size,
        dtype=job.dtype,
        recipe_json=job.recipe.to_json(),
        recipe_digest=made_digest(job.recipe, job.nets),
        nets=job.nets.to_json(),
        source=source.name,
        source_kind=source.kind,
        source_hash=listing,
        source_path=str(source.root.absolute()),
        synthetic=source.synthetic,
        truth=any(record.anomaly_mask or record.lesion_boxes for record in source.records),
        boxes=any(record.boxes for record in source.records) and any(stage_of(name) != "raw" for name in job.variants),
        command=command or shlex.join(["anomaly", "preprocess", str(source.root)]),
    )


def _write(
    path: Path, header: Header, job: Job, pool: "_Pool", compression: str | None, report: _Report
) -> tuple[Writer, int]:
    """Write the cache, or what of it is missing; the finished writer, and how many films were there already."""
    records, root = job.source.records, job.source.root
    total = len(records)

    def check(films: int) -> None:
        report(Progress("check", films, total))

    changed = partial(changed_films, job.source)
    with Writer(path, header, total=total, compression=compression, on_checked=check, find_changed=changed) as writer:
        kept = writer.done
        report(Progress("films", kept, total, writer.failed))
        with closing(_outcomes(job, records[kept:], pool)) as outcomes:
            for outcome in outcomes:
                _store(writer, outcome)
                report(Progress("films", writer.done, total, writer.failed))
        for other in changed(writer.fingerprints()):
            writer.keep_first(next(films for films, record in enumerate(records) if record.path == other))
            raise InputError(
                f"{root}: {other} changed while the source was read; once nothing writes there any more, repeat the "
                "command: it prepares that film and those after it again"
            )
        if not writer.rows:
            reasons = "; ".join(f"{path}: {reason}" for path, reason in writer.failures[:NAMED])
            more = f"; and {writer.failed - NAMED} more" if writer.failed > NAMED else ""
            writer.discard()
            raise InputError(f"{root}: none of {counted(total, 'film')} could be prepared; left out: {reasons}{more}")
        writer.finish()
    return writer, kept


def _store(writer: Writer, outcome: Outcome) -> None:
    if not outcome.rows:
        writer.fail(outcome.path, outcome.reason, fingerprint=outcome.fingerprint)
        return
    try:
        writer.append(*outcome.rows, fingerprint=outcome.fingerprint)
    except InputError as error:
        writer.fail(outcome.path, reason_without_path(outcome.path, error), fingerprint=outcome.fingerprint)


def _ordered(variants: Sequence[str]) -> tuple[str, ...]:
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown or not variants:
        hint = did_you_mean(unknown[0], VARIANTS) if unknown else ""
        raise InputError(f"no variant {unknown[0] if unknown else ''!r}; there are: {', '.join(VARIANTS)}{hint}")
    return tuple(variant for variant in VARIANTS if variant in variants)


def _existing(path: Path, source: Source, digest: str, listing: str, variants: tuple[str, ...]) -> Cache:
    """Open the complete cache that is there already; raises InputError where it is another one."""
    try:
        cache = Cache(path)
        films = dict(zip(cache.index["path"].tolist(), cache.index["sha256"].tolist(), strict=True))
    except InputError as error:
        advice = "`--force` replaces it" if replaceable(path) else "name another file with `--out`"
        raise InputError(f"{str(error).rpartition('; ')[0]}; {advice}") from error
    stored = {"recipe": cache.recipe_digest, "variants": cache.variants}
    wanted = {"recipe": digest, "variants": variants}
    differing = [name for name in wanted if stored[name] != wanted[name]]
    relisted, same_place = cache.source_hash != listing, cache.source_path == str(source.root.absolute())
    if relisted and not same_place:
        differing.insert(0, f"source ({cache.source_path})")
    faults = [f"a cache of another {' and '.join(differing)}"] if differing else []
    changed = [] if differing or relisted else changed_since(source, films, path.stat().st_mtime_ns)
    if (relisted and same_place) or changed:
        then = len(films) + len(cache.failures)
        which = f", another {changed[0]}" if changed else ""
        faults.append(f"the source has changed since ({then} films then, {len(source.records)} now{which})")
    if faults:
        raise InputError(
            f"{path}: {', and '.join(faults)}; `--force` replaces it, and runs trained on it can then only score films "
            "named on the command line; or name another `--out`"
        )
    return cache


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


# Who prepares the films -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pool:
    """Who prepares the films.

    workers   how many films at a time
    run       runs tasks: yields for each, in order, its outcomes, or LOST where it took its worker with it
    tries     how often a film alone may lose its worker before it is to blame
    """

    workers: int
    run: Callable[[Iterator[Job]], _Results]
    tries: int = 2


@contextmanager
def _pool(options: BuildOptions, source: Source) -> Iterator[_Pool]:
    workers = min(options.workers or len(os.sched_getaffinity(0)), len(source.records))
    if options.cluster is not None:
        from preprocessing.cluster import connect  # loads asyncio

        with connect(options.cluster, partial(_sees, source.root), RECIPE_VERSION, str(source.root)) as cluster:
            run = partial(cluster.run_in_order, _prepare_all, ahead=WAITING_TASKS * cluster.cores)
            yield _Pool(cluster.cores, run, tries=1)
    elif workers == 1:
        with _one_thread():
            yield _Pool(1, lambda jobs: (_prepare_all(job) for job in jobs))
    else:
        yield _Pool(workers, partial(run_in_order, _prepare_all, workers=workers, ahead=WAITING_TASKS * workers))


def _sees(root: Path) -> int:
    """Tell, on a worker of a cluster, that a source can be read there and with which version of the recipe."""
    root.stat()
    return RECIPE_VERSION


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let OpenCV use one thread, as in a worker: results must not depend on how many there are."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _prepare_all(job: Job) -> list[Outcome]:
    """Prepare a part of the source."""
    with _one_thread():
        job.nets.open()
        return [prepare(job, record) for record in job.source.records]


def _outcomes(job: Job, records: Sequence[Record], pool: _Pool) -> Generator[Outcome, None, None]:
    """Prepare films in their order; those of a task that was lost one by one, to find the one to blame."""
    films = 1 if pool.workers == 1 else max(1, min(TASK_FILMS, len(records) // (4 * pool.workers)))
    parts = [records[i : i + films] for i in range(0, len(records), films)]
    with closing(pool.run(replace(job, source=job.source.part(part)) for part in parts)) as results:
        for part, outcomes in zip(parts, results, strict=True):
            if outcomes is LOST:
                for record in part:
                    yield _alone(job, record, pool)
            else:
                yield from outcomes


def _alone(job: Job, record: Record, pool: _Pool) -> Outcome:
    for _ in range(pool.tries):
        with closing(pool.run(iter([replace(job, source=job.source.part([record]))]))) as results:
            (outcomes,) = results
        if outcomes is not LOST:
            return outcomes[0]  # type: ignore[no-any-return]
    reason = "each time it was prepared, the worker process ended; it may need more memory than there is"
    return Outcome(record.path, reason=reason)


# The disk, and Ctrl-C -------------------------------------------------------------------------------------------------


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
def _disk_errors(path: Path, header: Header, total: int) -> Iterator[None]:
    """Turn what a disk refuses into one line."""
    try:
        yield
    except OSError as error:
        if disk_full(error):
            raise InputError(
                f"{path.parent}: the disk is full; up to {_readable(_missing(path, header, total))} more are needed: "
                "free some space and repeat the command: it resumes"
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
