"""Wording that messages share."""


def counted(number: int, noun: str) -> str:
    """Give a number with its noun, in the plural save for 1: "1 film", "2 films", "0 films".

    >>> counted(1, "film"), counted(1200, "pixel")
    ('1 film', '1200 pixels')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
