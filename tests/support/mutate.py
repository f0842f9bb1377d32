"""Damaged versions of a file: what a bad disk, a cut download, an editor or an attacker makes of it."""

import numpy as np

_WORDS = [b"null", b"true", b"[]", b"{}", b"-1", b"0", b"1e999", b"NaN", b'""', b"99999999999999999999", b'"\\ud800"']
_WORDS += [b"[" * 2000, b"\xff\xfe", b"\x00" * 16, b"../../etc/passwd", b"1" * 5000, b"\xe2\x80\xa8", b"%s%n", b"-0"]
_INTEGERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def mutated(seeds: list[bytes], number: int) -> bytes:
    """The damaged version `number` of one of several files; the same for the same arguments."""
    draw = np.random.default_rng([8, number])
    data = bytearray(seeds[int(draw.integers(len(seeds)))])
    for _ in range(int(draw.integers(1, 5))):
        place = int(draw.integers(len(data) + 1))
        end = min(len(data), place + int(draw.integers(1, 2 ** int(draw.integers(1, 10)))))
        match int(draw.integers(10)):
            case 0 if place < len(data):
                data[place] ^= 1 << int(draw.integers(8))
            case 1:
                del data[place:]
            case 2:
                del data[place:end]
            case 3:
                data[place:place] = data[place:end]
            case 4:
                data[place:place] = draw.bytes(end - place)
            case 5:
                size, order = int(draw.choice([1, 2, 4, 8])), str(draw.choice(["little", "big"]))
                value = int(draw.choice(_INTEGERS)) % 256**size
                data[place : place + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
            case 6:
                data[place:end] = bytes(end - place)
            case 7:
                other = seeds[int(draw.integers(len(seeds)))]
                data[place:] = other[int(draw.integers(len(other) + 1)) :]
            case 8:
                data[place:end] = _WORDS[int(draw.integers(len(_WORDS)))]
            case _:
                _replace_token(data, draw)
    return bytes(data)


def _replace_token(data: bytearray, draw: np.random.Generator) -> None:
    # A whole number or word of a text, which keeps it well formed more often.
    cuts = [n for n, byte in enumerate(data[:20_000]) if byte in b' ,:[]{}"\n=']
    if len(cuts) > 1:
        first = int(draw.integers(len(cuts) - 1))
        data[cuts[first] + 1 : cuts[first + 1]] = _WORDS[int(draw.integers(len(_WORDS)))]
