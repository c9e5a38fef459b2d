"""LaTeX from templates: every text put in is escaped, for any engine."""

import re
import unicodedata
from pathlib import Path

_TEMPLATES = Path(__file__).parent / "templates"

ESCAPES = {sign: "\\" + sign for sign in "{}$&#%_"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\char34{}",
    "[": "{[}",  # after the end of a line it would begin an argument, as would a star
    "*": "{*}",
    "–": r"\textendash{}",
    "±": r"$\pm$",
    "≥": r"$\geq$",
}
"""Character -> LaTeX, for those with a meaning of their own or without a letter in the old fonts."""


class Latex(str):
    """Text that is LaTeX already, which a template takes as it is."""


def escape(text: str) -> Latex:
    r"""Text as LaTeX typesets it; a letter that the old fonts lack is written as its code point.

    >>> print(escape("mse_topk: 5 % -- α"))
    mse\_topk: 5 \% -{}- \texttt{U+03B1}
    """
    escaped = "".join(ESCAPES.get(character) or _letter(character) for character in text)
    return Latex(re.sub(r"-(?=-)", "-{}", escaped))


def _letter(character: str) -> str:
    accented = character <= "ÿ" and unicodedata.normalize("NFD", character)[0].isascii()
    return character if character.isascii() or accented else rf"\texttt{{U+{ord(character):04X}}}"


def render_latex(template: str, **values: object) -> str:
    """A template filled in. Every value that is not `Latex` is escaped; one that is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # nosec B701 # LaTeX, not HTML; `finalize` escapes every value
        loader=FileSystemLoader(_TEMPLATES),
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Latex) else escape(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # its escapes are those of HTML; `finalize` has LaTeX's
    )
    return environment.get_template(template).render(values)
