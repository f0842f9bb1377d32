"""PNG files byte by byte, for what no library writes."""

import io
import struct
import zlib

from PIL import Image


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def png_of_chunks(width: int, height: int, bits: int, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A header of that size, depth and colour type, and the chunks (kind, content) with their checksums."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    return b"".join(parts)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header declares the size; the pixels are never made."""
    return png_of_chunks(width, height, 8, 2, (b"IDAT", zlib.compress(b"\0" * 1000)))
