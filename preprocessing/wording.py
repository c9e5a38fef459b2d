"""Numbers with their nouns, as messages say them."""


def counted(number: int, noun: str) -> str:
    """Give a number with its noun, in the plural save for 1.

    >>> counted(1, "film"), counted(1200, "pixel"), counted(0, "study")
    ('1 film', '1200 pixels', '0 studies')
    """
    return f"{number} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """The plural of a regular English noun.

    >>> plural("film"), plural("study"), plural("day")
    ('films', 'studies', 'days')
    """
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"


UNKNOWN_PATIENTS = "patients unknown: each film counts as one; intervals are too narrow if films share a patient"
"""What is said wherever no film's patient is known."""


def unknown_patients(unknown: int, films: int) -> str:
    """Say of how many films the patient is not known; empty where all are.

    >>> unknown_patients(0, 9), unknown_patients(9, 9) == UNKNOWN_PATIENTS
    ('', True)
    >>> unknown_patients(2, 9)
    'patients unknown for 2 of 9 films: each of these counts as one; intervals are too narrow if films share a patient'
    """
    if not unknown:
        return ""
    if unknown == films:
        return UNKNOWN_PATIENTS
    return UNKNOWN_PATIENTS.replace(
        "patients unknown: each film", f"patients unknown for {unknown} of {counted(films, 'film')}: each of these"
    )
