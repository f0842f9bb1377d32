"""ICC profiles for tests."""

import struct


def grey_profile(gamma: float) -> bytes:
    """A minimal ICC profile of one grey channel: a gamma curve and the white D50."""
    white = struct.pack(">3i", *(round(value * 65536) for value in (0.9642, 1.0, 0.8249)))
    body, table = b"", b""
    for name, data in (
        (b"desc", b"desc" + bytes(4) + struct.pack(">I", 5) + b"grey\0" + bytes(78)),
        (b"wtpt", b"XYZ " + bytes(4) + white),
        (b"kTRC", b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)),
        (b"cprt", b"text" + bytes(4) + b"none\0\0\0\0"),
    ):
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", 128 + 4 + 4 * 12 + len(body), len(data))
        body += data
    table = struct.pack(">I", 4) + table
    head = struct.pack(
        ">I4sI12s6H4s28x",
        128 + len(table + body),
        b"lcms",
        0x02400000,
        b"mntrGRAYXYZ ",
        *(2026, 1, 1, 0, 0, 0),
        b"acsp",
    )
    return (head + white).ljust(128, b"\0") + table + body
