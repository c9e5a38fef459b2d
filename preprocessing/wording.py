"""Words: names compared, numbers with their nouns, and sentences that are said in several places."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


def squeezed(name: str) -> str:
    """Return a name in lower case without spaces, `_`, `-` and `.`.

    >>> squeezed("No_Finding"), squeezed("StudyInstanceUID")
    ('nofinding', 'studyinstanceuid')
    """
    return re.sub(r"[\s_.-]+", "", name).casefold()


def on_one_line(error: object) -> str:
    """Return what an error says, on one line."""
    return " ".join(str(error).split())


def counted(number: int, noun: str) -> str:
    """Give a number with its noun, in the plural save for 1.

    >>> counted(1, "film"), counted(1200, "pixel"), counted(0, "study")
    ('1 film', '1200 pixels', '0 studies')
    """
    return f"{number} {noun if number == 1 else plural(noun)}"


def patients_note(unknown: int, films: int) -> str | None:
    """Say of how many films the patient is not known, and what follows for intervals; None where all are known.

    >>> patients_note(9, 9)
    'patients unknown: each film counts as one; intervals are too narrow if films share a patient'
    """
    if not unknown:
        return None
    which = "patients unknown" if unknown == films else f"patients unknown for {unknown} of {counted(films, 'film')}"
    one = "each film" if unknown == films else "each of these films"
    return f"{which}: {one} counts as one; intervals are too narrow if films share a patient"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'cae'?" where one of the known names is much like a name, or "" where none is.

    >>> did_you_mean("CEA", ["cae", "vae"]), did_you_mean("resnet", ["cae", "vae"])
    ("; did you mean 'cae'?", '')
    """
    by_folded = {squeezed(one): one for one in known}
    alike = get_close_matches(squeezed(name), by_folded, n=1, cutoff=0.6)
    return f"; did you mean {by_folded[alike[0]]!r}?" if alike else ""


def plural(noun: str) -> str:
    """The plural of a regular English noun.

    >>> plural("film"), plural("study"), plural("day")
    ('films', 'studies', 'days')
    """
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"
