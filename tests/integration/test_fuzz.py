"""Damaged files through every reader: each is read, or refused with one sentence, in bounded time.

`pytest -m fuzz` tries 2,000 of each and prints the table of docs/robustness.md; the ordinary tests try a few.
"""

import io
import json
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from inscene_records import record
from mutate import mutated
from PIL import Image, PngImagePlugin

from face2scene.assets.catalogue import parse_asset
from face2scene.assets.download import fetch
from face2scene.cli.command_line import is_user_error
from face2scene.cli.explain import explain
from face2scene.common.files import read_json, read_seconds, sha256_of
from face2scene.common.ledger import Ledger
from face2scene.data.records import METADATA, write_manifest, write_sums
from face2scene.data.shards import members_of, pack, read_bytes
from face2scene.data.verify import verify
from face2scene.degradation.recipe import Recipe
from face2scene.eval.scoring.results import read_scores
from face2scene.image_io.photos import read_photo, write_photo
from face2scene.inference.pretrained import OPTIONS, read_options
from face2scene.models.fadex import FaDeX
from face2scene.models.fadex.linear_readout import LinearProbe
from face2scene.train.run import Run

SECONDS = 30  # of one input, also on a busy machine
Reader = Callable[[Path], object]


def pixels(seed: int, size: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (size, size + 5, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def images(place: Path) -> tuple[list[bytes], str, Reader]:
    image = Image.fromarray(pixels(0))
    deep = place / "deep.png"
    write_photo(deep, pixels(1) / np.float32(255))
    seeds = [encoded(image, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")]
    seeds += [encoded(image, "TIFF", compression=kind) for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits")]
    seeds += [encoded(image.convert(mode), "PNG") for mode in ("L", "P", "RGBA", "LA", "1", "I;16")]
    seeds += [encoded(image.convert("CMYK"), "JPEG"), encoded(image, "JPEG", progressive=True)]
    return seeds, "photo.jpg", lambda path: read_photo(path, max_pixels=1_000_000)


def photo_metadata(place: Path) -> tuple[list[bytes], str, Reader]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x9003] = 6, "A camera", "2020:01:01 00:00:00"
    exif.get_ifd(0x8825)[1] = "N"
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta xmlns:x='adobe:ns:meta/'><a b='1'/></x:xmpmeta>")
    texts.add_text("Comment", "words", zip=True)
    flat = Image.new("RGB", (8, 8))  # nearly all of the file is metadata
    profile = Image.open(io.BytesIO(encoded(flat, "PNG"))).info.get("icc_profile")
    seeds = [encoded(flat, kind, exif=exif) for kind in ("JPEG", "WEBP", "TIFF")]
    seeds += [encoded(flat, "PNG", exif=exif, pnginfo=texts), encoded(flat, "JPEG", icc_profile=profile, comment=b"x")]

    def read(path: Path) -> None:
        photo = read_photo(path, max_pixels=1_000_000)
        for suffix in (".png", ".jpg", ".tif", ".webp"):
            write_photo(place / f"again{suffix}", photo.image, like=photo)

    return seeds, "photo.jpg", read


def weights(place: Path) -> tuple[list[bytes], str, Reader]:
    FaDeX(widths=[4, 4], strides=[2, 1], embedding=4).save(place / "a.safetensors")
    whole = (place / "a.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = whole[8 : 8 + length], whole[8 + length :]

    def read(path: Path) -> None:
        text = path.read_bytes()  # the damaged header alone, of its own length
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        for kind in (FaDeX, LinearProbe):
            try:
                kind.from_file(path)
            except ValueError as error:
                assert str(path) in str(error)
        explain(path)

    return [header], "a.safetensors", read


def dataset(place: Path) -> Path:
    folder = place / "set"
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(3):
        path = folder / f"images/{number}.png"
        Image.fromarray(pixels(number)).save(path)
        known = {"image": f"images/{number}.png", "landmarks_68": ((1.0, 2.0),) * 68, "generator": {"seed": number}}
        rows.append(record(path, (2, 2, 20, 20), **known))
    write_sums(folder, [])
    write_manifest(folder, rows)
    return folder


def manifest(place: Path) -> tuple[list[bytes], str, Reader]:
    folder = dataset(place)

    def read(path: Path) -> None:
        (folder / METADATA).write_bytes(path.read_bytes())
        list(verify(folder))

    return [(folder / METADATA).read_bytes()], METADATA, read


def checksums(place: Path) -> tuple[list[bytes], str, Reader]:
    folder = dataset(place)

    def read(path: Path) -> None:
        (folder / "SHA256SUMS").write_bytes(path.read_bytes())
        problems = list(verify(folder))
        assert problems or f"{sha256_of(folder / METADATA)}  {METADATA}".encode() in path.read_bytes()

    return [(folder / "SHA256SUMS").read_bytes()], "SHA256SUMS", read


def archives(place: Path) -> tuple[list[bytes], str, Reader]:
    packed = place / "packed"
    pack(dataset(place), packed)
    (shard,) = packed.rglob("*.tar")
    name = shard.relative_to(packed).as_posix()
    whole = shard.read_bytes()

    def read(path: Path) -> None:
        shard.write_bytes(path.read_bytes())
        for member in list(members_of(packed, name)):
            read_bytes(packed, member)

    return [whole], "shard.tar", read


def recipes(place: Path) -> tuple[list[bytes], str, Reader]:
    stored = json.loads((Path(__file__).parents[1] / "degradation/presets.json").read_text())
    texts = _recipes_in(stored)[:20]
    assert texts
    image = torch.rand(3, 64, 64)

    def read(path: Path) -> None:
        Recipe.from_json(path.read_text(encoding="utf-8")).apply(image, keep_size=False)

    return texts, "recipe.json", read


def _recipes_in(value: object) -> list[bytes]:
    if isinstance(value, dict) and "operators" in value:
        return [json.dumps(value).encode()]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _recipes_in(part)]


def logs(place: Path) -> tuple[list[bytes], str, Reader]:
    lines = [{"name": f"{n}ü.png", "output": "x", "written": [{"sha256": "a", "bytes": n}]} for n in range(5)]
    log = place / "restore.jsonl"

    def read(path: Path) -> None:
        log.write_bytes(path.read_bytes())
        before = set(Ledger(log).read().lines)
        Ledger(log).gather().append({"name": "new.png"})
        assert set(Ledger(log).read().lines) == before | {"new.png"}

    return [b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)], "log.jsonl", read


def configs(place: Path) -> tuple[list[bytes], str, Reader]:
    config = {"seed": 1, "train": {"lr": 0.1, "names": ["a", "b"]}, "name": "run", "data": {"root": "x"}}
    folder = place / "run"
    Run(folder, config).log({"loss": 1.0}, 1)  # one that has trained, and is held to its configuration

    def read(path: Path) -> None:
        (folder / "config.yaml").write_bytes(path.read_bytes())
        Run(folder, config, main=False)

    return [(folder / "config.yaml").read_bytes()], "config.yaml", read


def json_files(place: Path) -> tuple[list[bytes], str, Reader]:
    scores = {"means": {"psnr": 20.0}, "csv_sha256": "0" * 64, "provenance": {"commit": "x"}}
    options = {"version": "0.1.0", "options": {"tile": 512, "colour": "wavelet"}}
    (place / "scores.csv").write_text("name,psnr\na,20.0\n")

    def read(path: Path) -> None:
        for name in ("scores.json", OPTIONS, "seconds.json"):
            (place / name).write_bytes(path.read_bytes())
        read_seconds(place / "seconds.json")
        for use in (lambda: read_scores(place), lambda: read_options(place), lambda: explain(place / "scores.json")):
            try:
                use()
            except Exception as error:
                assert is_user_error(error), repr(error)
        read_json(path)

    return [json.dumps(value).encode() for value in (scores, options, {"train": 1.5})], "a.json", read


def zips(place: Path) -> tuple[list[bytes], str, Reader]:
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as box:
            box.writestr("net.bin", b"weights" * 40)
            box.writestr("other.txt", b"x" * 50)
        seeds.append(file.getvalue())
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as box:
        info = tarfile.TarInfo("net.bin")
        info.size = 280
        box.addfile(info, io.BytesIO(b"weights" * 40))

    def read(path: Path) -> None:
        kind = "zip" if path.read_bytes()[:1] == b"P" else "tar.gz"
        source = {"kind": "url", "url": "x", "archive": f"net.{kind}", "members": {"net.bin": "net.bin"}}
        entry = {"purpose": "A toy.", "licence": {"weights": "MIT"}, "files": {"net.bin": {"size": 280}}}
        given = path.rename(path.with_name(f"net.{kind}"))
        asset = parse_asset("toy", entry | {"sources": [source]})
        fetch(["toy"], root=place / "weights", assets={"toy": asset}, given=given)

    return [*seeds, tar.getvalue()], "net.bin", read


PARSERS = [images, photo_metadata, weights, manifest, checksums, archives, recipes, logs, configs, json_files, zips]


def survived(parser: Callable, place: Path, numbers: range) -> dict[str, int]:
    """Counts of inputs that were read and refused.

    Raises:
        AssertionError: one ended in another way.
    """
    seeds, name, read = parser(place)
    counts = {"read": 0, "refused": 0}
    inbox = place / "inbox"
    inbox.mkdir()
    for number in numbers:
        data, path = mutated(seeds, number), inbox / name
        path.write_bytes(data)
        start = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(path)
            counts["read"] += 1
        except Exception as error:
            if not is_user_error(error):
                raise AssertionError(f"{parser.__name__}, input {number}: {type(error).__name__}: {error}") from error
            counts["refused"] += 1
        spent = time.process_time() - start
        assert spent < SECONDS, f"{parser.__name__}, input {number}: {spent:.0f} s"
    return counts


@pytest.mark.parametrize("parser", PARSERS)
def test_damaged_input_is_read_or_refused(tmp_path, parser):
    counts = survived(parser, tmp_path, range(40))
    assert sum(counts.values()) == 40
    assert counts["refused"] or parser in (logs, checksums, archives)  # whose readers skip or report what is damaged


@pytest.mark.fuzz
@pytest.mark.parametrize("parser", PARSERS)
def test_thousands_are_read_or_refused(tmp_path, parser, capsys):
    counts = survived(parser, tmp_path, range(100, 2100))
    with capsys.disabled():
        print(f"\n| {parser.__name__} | {sum(counts.values())} | {counts['read']} | {counts['refused']} |")
    assert sum(counts.values()) == 2000
