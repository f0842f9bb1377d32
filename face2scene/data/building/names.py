"""Names from outside as names that can be written down."""


def printable(name: str) -> str:
    """A name as it can be written to a file: bytes that are no UTF-8 become escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def safe(text: str) -> str:
    """A file name from any name: letters and digits of any script stay."""
    name = "".join(c if c.isalnum() or c in "-." else "-" for c in text).strip("-.") or "unnamed"
    return name.encode()[:120].decode(errors="ignore")  # what is added to it must still fit a file system's 255 bytes
