"""HTML pages from templates: what every page of a run or a bench has in common.

A page is a single HTML file. Images are embedded as base64 PNG and charts as SVG; it loads nothing (the worklist alone
loads its pictures, from the folder beside it), and runs one script of its own, which its content security policy names
by hash. Every text from files is escaped. Pages are readable in light and dark mode, on a phone and on paper, and
everything on them can be reached by keyboard.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anomaly.formatting import interval, number, with_interval
from anomaly.reporting.charts.svg import svg, swatch
from preprocessing.where import LABELS
from preprocessing.wording import counted

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Fill in a template: everything is escaped, and a name without a value is an error."""
    return "".join(pieces(template, **values))


def pieces(template: str, **values: Any) -> Iterator[str]:
    """Give what `render` returns piece by piece, for pages that are long."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "number": number,
        "counted": counted,
        "interval": interval,
        "with_interval": with_interval,
        "signed": signed,
        "compact": compact,
        "times": times,
        "label": LABELS.__getitem__,
        "quoted": quote,
        "hashed": _hashed,
        "svg": svg,
        "swatch": swatch,
    }
    yield from pages.get_template(template).generate(**values)


def png_address(picture: bytes) -> str:
    """A PNG file as a data address."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _hashed(script: str) -> str:
    """The source expression by which a content security policy allows this script and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def signed(value: float) -> str:
    """A difference with its sign.

    >>> signed(0.012), signed(-0.3)
    ('+.012', '-.300')
    """
    return ("" if value < 0 else "+") + number(value)


def compact(value: float) -> str:
    """Up to four significant digits.

    >>> compact(0.5), compact(0.371234), compact(123456.0)
    ('0.5', '0.3712', '1.235e+05')
    """
    return f"{value:.4g}"


def times(value: float | None) -> str:
    """A multiple of something, a dash for an undefined one.

    >>> times(2.345), times(17.2), times(None)
    ('2.3', '17.2', '–')
    """
    return "–" if value is None else f"{value:.1f}"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as one table: dotted name -> value as JSON, strings without quotes.

    >>> flat({"model": {"latent": 64, "name": "vae"}, "seed": None})
    {'model.latent': '64', 'model.name': 'vae', 'seed': 'null'}
    """
    table: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            table |= flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            table[f"{prefix}{name}"] = text
    return table
