"""Numbers with their nouns."""


def counted(number: int, noun: str) -> str:
    """Give a number with its noun, in the plural save for 1.

    >>> counted(1, "film"), counted(1200, "pixel"), counted(2, "study")
    ('1 film', '1200 pixels', '2 studies')
    """
    if number == 1:
        return f"{number} {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("dy") else f"{number} {noun}s"
