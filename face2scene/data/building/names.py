"""File names and printable names from any names."""

import hashlib


def printable(name: str) -> str:
    """A file name as valid text: bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def safe(text: str) -> str:
    """A file name from any name: letters and digits of any script stay."""
    name = "".join(c if c.isalnum() or c in "-." else "-" for c in text).strip("-.") or "unnamed"
    return name.encode()[:120].decode(errors="ignore")  # with prefix and suffix it must fit in 255 bytes


def distinct(text: str) -> str:
    """`safe`, with a digest where more than underscores was replaced, so that two people do not become one."""
    name = safe(text)
    return (
        name
        if name == text.replace("_", "-")
        else f"{name}-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:8]}"
    )
