"""TIFF files tag by tag, for what no library writes."""

import struct

_FORMATS = {1: "B", 3: "H", 4: "I"}


def tiff_bytes(data: bytes, width: int, height: int, tags: dict[int, tuple[int, object]], following: int = 0) -> bytes:
    """One uncompressed page of one strip, with further `tags` (type, number or numbers or bytes) by code.

    Args:
        following: where the header says that the next page's directory is.
    """
    rows = {256: (4, width), 257: (4, height), 273: (4, 0), 278: (4, height), 279: (4, len(data)), **tags}
    behind = 8 + 2 + 12 * len(rows) + 4
    extra, entries = b"", b""
    for code, (kind, value) in sorted(rows.items()):
        numbers = value if isinstance(value, tuple) else (value,)
        content = value if isinstance(value, bytes) else struct.pack(f"<{len(numbers)}{_FORMATS[kind]}", *numbers)
        count = len(value) if isinstance(value, bytes) else len(numbers)
        if code == 273:
            content = b"here"
        elif len(content) > 4:
            extra += content + b"\0" * (len(content) % 2)
            content = struct.pack("<I", behind + len(extra) - len(content) - len(content) % 2)
        entries += struct.pack("<HHI", code, kind, count) + content.ljust(4, b"\0")
    entries = entries.replace(b"here", struct.pack("<I", behind + len(extra)), 1)
    head = b"II*\0" + struct.pack("<IH", 8, len(rows))
    return head + entries + struct.pack("<I", following) + extra + data
