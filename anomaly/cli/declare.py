"""The app, and how a verb joins it: a verb takes one options object, whose dataclass says which flags there are."""

import inspect
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

import anomaly
from anomaly.cli.completion import COMPLETERS
from anomaly.cli.examples import epilog
from anomaly.console import say
from anomaly.formatting import command_line
from anomaly.pipeline.options import Flag

Options = TypeVar("Options")
Result = TypeVar("Result")

_METAVARS = {Path: "PATH", int: "N", float: "X", str: "TEXT", bool: None}
"""How a value of each type is called in `--help`."""

app = typer.Typer(
    help="Unsupervised anomaly detection for X-ray films: films, cache, model, scores, heatmaps.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's help costs .1 s of every call
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"anomaly {anomaly.__version__} (Python {platform.python_version()}, torch {version('torch')})")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Unsupervised anomaly detection for X-ray films: films, cache, model, scores, heatmaps."""
    # `main` has taken --debug out wherever it stood; here it is declared for --help


def command(options: type[Options]) -> Callable[[Callable[[Options], Result]], Callable[[Options], Result]]:
    """Add a verb to the app: a function of one options object, under its own name and docstring."""

    def add(verb: Callable[[Options], Result]) -> Callable[[Options], Result]:
        hints = get_type_hints(options, include_extras=True)
        declared = [_parameter(one, hints[one.name]) for one in fields(options)]  # type: ignore[arg-type]
        lists = {one.name for one in declared if _is_list(hints[one.name])}

        def run(**values: Any) -> None:
            verb(options(**{name: tuple(value or ()) if name in lists else value for name, value in values.items()}))

        run.__name__, run.__doc__ = verb.__name__, verb.__doc__
        run.__signature__ = inspect.Signature(declared)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in declared}
        app.command(epilog=epilog(verb.__name__))(run)
        return verb

    return add


def next_again(*without: str) -> str:
    """Return the line that names this command as typed, without some of its flags, as the next one."""
    return f"next: {command_line('anomaly', *(word for word in sys.argv[1:] if word not in without))}"


def _parameter(declared: "Field[Any]", hint: Any) -> inspect.Parameter:
    """Return a field as typer reads it from a function's signature."""
    kind, flag = get_args(hint)[:2]
    assert isinstance(flag, Flag)
    required, default = declared.default is MISSING, declared.default
    if _is_list(hint):
        kind, default = list[get_args(kind)[0]] if required else list[get_args(kind)[0]] | None, None  # type: ignore[misc]
    metavar = flag.metavar or (declared.name.upper() if flag.argument else _METAVARS[_scalar(kind)])
    about: dict[str, Any] = {"help": flag.help, "metavar": metavar, "min": flag.min, "max": flag.max}
    about["autocompletion"] = COMPLETERS[flag.complete]
    name = f"--{(flag.name or declared.name).replace('_', '-')}"  # a switch has no negative form
    option = typer.Argument(**about) if flag.argument else typer.Option(name, **about)
    empty = inspect.Parameter.empty
    return inspect.Parameter(
        declared.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=empty if required else default,
        annotation=Annotated[kind, option],
    )


def _scalar(kind: Any) -> Any:
    """Return the type of one value: of an optional, or of a list's members."""
    inner = [one for one in get_args(kind) if one is not type(None)]
    return _scalar(inner[0]) if inner else kind


def _is_list(hint: Any) -> bool:
    return get_origin(get_args(hint)[0]) is Sequence
