"""A service put together: detector, spool, HTTP, DICOM node, sender; started in order, and stopped in order."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec

from anomaly.formatting import size_on_disk
from anomaly.runs import Run
from anomaly.service.access import is_loopback, read_token
from anomaly.service.detector import OpenRunFolder
from anomaly.service.options import ServeOptions
from anomaly.service.peers import Destination, NodeSettings, ae_title
from anomaly.service.records import DetectorFacts
from anomaly.service.server import address, http_server, listen, run_until_stopped
from anomaly.service.service import Limits, Service
from preprocessing import InputError
from preprocessing.wording import counted

_PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}


@dataclass(frozen=True)
class Serving:
    """Where a service is to be reached, and what who runs it should know."""

    address: str
    dicom: str | None
    facts: DetectorFacts
    left: "Left"  # of an earlier time
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Left:
    """What lies in a spool to be gone on with."""

    waiting: int  # films to be scored
    unsent: int  # films whose findings are to be sent
    refused: int  # films with findings that the PACS refused; tried again at the next start

    @classmethod
    def of(cls, service: Service) -> "Left":
        """Count it."""
        return cls(sum(service.queue.counts()), *service.outbox.counts())


def serve(options: ServeOptions, ready: Callable[[Serving], None]) -> Left:
    """Serve until SIGTERM or SIGINT; what is left then, on the disk, for the next start.

    ready  called when requests are answered. Raises InputError before anything is listened on where the options, the
    run or the address don't serve.
    """
    settings = _Settings.of(options)
    Run(options.run)  # what is no run folder is refused at once, not by a process that first imports all that it needs
    from anomaly.service.app import create_app

    limits = Limits(options.queue, options.max_bytes, options.timeout, options.keep)
    opens = OpenRunFolder(options.run, options.calibration, options.device)
    with ExitStack() as stack:
        service = Service(options.spool, opens, limits, workers=options.workers)
        stack.callback(service.stop)
        listening = stack.enter_context(listen(options.host, options.port))
        server = http_server(create_app(service, settings.token), options.tls_cert, options.tls_key)
        service.stopping = lambda: server.should_exit
        sender = None
        if settings.send_to is not None:
            from anomaly.service.sender import Sender

            sender = Sender(service, settings.send_to, options.aet)
        facts = service.start()
        left = Left.of(service)
        notes = [*settings.notes, *_notes(service, facts, sends=sender is not None)]
        if sender is not None:
            sender.start()
            stack.callback(sender.stop)
        dicom = None
        if settings.node is not None and options.dicom is not None:
            from anomaly.service.dicom_node import DicomNode

            node = DicomNode(service, settings.node, make_objects=settings.send_to is not None)
            dicom = f"{options.aet}@{options.host}:{node.start(options.host, options.dicom)}"
            stack.callback(node.stop)
        where = address(listening, tls=options.tls_cert is not None)
        run_until_stopped(server, listening, lambda: ready(Serving(where, dicom, facts, left, tuple(notes))))
    return Left.of(service)


def _notes(service: Service, facts: DetectorFacts, *, sends: bool) -> Iterator[str]:
    """Give what who starts a service should know of detector and spool."""
    if facts.remembered:
        yield facts.remembered
    room, most = service.spool.room(), service.limits.most_bytes
    if room < most:
        yield (
            f"{service.spool.folder}: {size_on_disk(room)} of the disk are free for films, and one may have "
            f"{size_on_disk(most)} (--max-bytes): what does not fit is refused"
        )
    unsent = service.outbox.counts()[0]
    if unsent and not sends:
        yield (
            f"findings on {counted(unsent, 'film')} of an earlier time are unsent, and kept: --send-to AET@HOST:PORT "
            "sends them, DELETE /films/ID removes one"
        )


@dataclass(frozen=True)
class _Settings:
    """The options, checked."""

    token: str | None
    node: NodeSettings | None
    send_to: Destination | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, options: ServeOptions) -> "_Settings":
        needed = _PACKAGES | ({} if options.dicom is None else {"pynetdicom": "pynetdicom"})
        if missing := [package for module, package in needed.items() if find_spec(module) is None]:
            raise InputError(
                f"a service needs {', '.join(missing)}; install it with `pip install 'xray-anomaly[serve]'`"
            )
        beyond = not is_loopback(options.host)
        if beyond and options.token_file is None:
            raise InputError(
                f"--host {options.host} can be reached from other machines: give --token-file FILE; "
                "`openssl rand -hex 32 > FILE` makes one"
            )
        if options.tls_key is not None and options.tls_cert is None:
            raise InputError("--tls-key is of no use without --tls-cert")
        notes = []
        if beyond and options.tls_cert is None:
            notes.append("films and token are not encrypted on the network: give --tls-cert, or put a proxy before it")
        token = None if options.token_file is None else read_token(options.token_file)
        if options.dicom is None:
            if options.send_to is not None or options.callers is not None:
                raise InputError("--send-to and --callers belong to a DICOM node: give --dicom PORT")
            return cls(token, None, None, tuple(notes))
        callers = tuple(ae_title(name, "--callers") for name in (options.callers or "").split(",") if name.strip())
        if beyond and not callers:
            raise InputError(
                f"--host {options.host} can be reached from other machines: give --callers, the AE titles that may call"
            )
        if beyond:
            notes.append("DICOM is not encrypted, and AE titles prove nothing: let a firewall decide who reaches it")
        send_to = None if options.send_to is None else Destination.parse(options.send_to)
        if send_to is None:
            notes.append("films that come by DICOM are scored, and nothing is sent back: --send-to AET@HOST:PORT")
        else:
            from anomaly.export.dicom_objects import check_highdicom

            check_highdicom()
        return cls(token, NodeSettings(ae_title(options.aet, "--aet"), callers), send_to, tuple(notes))
