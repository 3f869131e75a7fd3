"""Words of messages."""


def counted(n: int, noun: str) -> str:
    """A number of things, as in "1 image" and "1,024 images"."""
    return f"{n:,} {noun}{'s' * (n != 1)}"
