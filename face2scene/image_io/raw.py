"""Development of camera RAW: LibRaw's options (`rawpy`) by name, and the camera's settings.

ExifRead reads the settings that LibRaw does not give, such as the camera's name.
"""

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from face2scene.common.optional import import_optional
from face2scene.image_io.metadata import is_dng

_DEMOSAIC = ("LINEAR", "VNG", "PPG", "AHD", "DCB", "MODIFIED_AHD", "AFD", "VCD", "LMMSE", "AMAZE", "DHT", "AAHD")
_BALANCES: dict[Any, dict[str, Any]] = {
    "camera": {"use_camera_wb": True},
    "auto": {"use_auto_wb": True},
    "daylight": {},
}
_HIGHLIGHTS = {"clip": 0, "ignore": 1, "blend": 2, "reconstruct": 5}
_COLOURS = ("raw", "sRGB", "Adobe", "Wide", "ProPhoto", "XYZ", "ACES", "P3D65", "Rec2020")


class RawError(ValueError):
    """A RAW file that cannot be developed; the message names the file and the reason."""


@dataclass(frozen=True)
class Development:
    """How a RAW file becomes an image; LibRaw's postprocessing. Defaults are what `photos.read_photo` does."""

    white_balance: Any = "camera"  # `camera` (as shot), `auto`, `daylight`, or four multipliers for R, G, B, G
    demosaic: str | None = None  # LibRaw's algorithm; None is its default, AHD. Some are not in every build
    half_size: bool = False  # one pixel of every 2 x 2, without demosaicing
    # Power and slope at zero; (2.4, 12.92) is sRGB's, (2.222, 4.5) BT.709, (1, 1) linear.
    gamma: tuple[float, float] = (2.4, 12.92)
    # Stretch the histogram until `auto_bright_clipped` of the pixels are white; brightness then follows the content.
    auto_bright: bool = False
    auto_bright_clipped: float = 0.01
    brightness: float = 1.0  # factor on everything
    exposure_shift: float | None = None  # linear factor before demosaicing, 0.25 to 8; None leaves it out
    highlights: str = "clip"  # `clip`, `ignore`, `blend` or `reconstruct`
    colour: str = "sRGB"  # of the output; images of a set are sRGB
    output_bps: int = 16  # 8 or 16 bits
    # Wavelet denoising; None is none. LibRaw 0.22 aborts with it on a file of 160 pixels a side: see `develop_apart`.
    noise_threshold: float | None = None
    median_passes: int = 0  # of a median filter on colour differences
    black: int | None = None  # black and white level; None takes the file's
    white: int | None = None
    flip: int | None = None  # quarter turns of LibRaw (0, 3, 5, 6); None follows the camera

    def __post_init__(self) -> None:
        if not isinstance(self.white_balance, str):
            object.__setattr__(self, "white_balance", tuple(float(v) for v in self.white_balance))
        object.__setattr__(self, "gamma", tuple(float(v) for v in self.gamma))
        balance = self.white_balance
        four = isinstance(balance, tuple) and len(balance) == 4
        known: dict[str, tuple[str, bool]] = {
            "white_balance": ("camera, auto, daylight or four numbers", four or balance in _BALANCES),
            "demosaic": (", ".join(_DEMOSAIC), self.demosaic is None or self.demosaic in _DEMOSAIC),
            "highlights": (", ".join(_HIGHLIGHTS), self.highlights in _HIGHLIGHTS),
            "colour": (", ".join(_COLOURS), self.colour in _COLOURS),
            "output_bps": ("8 or 16", self.output_bps in (8, 16)),
            "gamma": ("a power and a slope", len(self.gamma) == 2),
        }
        for option, (choices, fine) in known.items():
            if not fine:
                raise ValueError(f"develop.{option} must be {choices}, not {getattr(self, option)!r}.")

    def as_record(self) -> dict[str, Any]:
        """Every option, for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def arguments(self, rawpy: Any) -> dict[str, Any]:
        """The options by rawpy's names; white is the file's maximum whatever the content."""
        balance = _BALANCES.get(self.white_balance, {"user_wb": list(self.white_balance)})
        given = {
            "demosaic_algorithm": self.demosaic and getattr(rawpy.DemosaicAlgorithm, self.demosaic),
            "noise_thr": self.noise_threshold,
            "exp_shift": self.exposure_shift,
            "user_black": self.black,
            "user_sat": self.white,
            "user_flip": self.flip,
            "auto_bright_thr": self.auto_bright_clipped if self.auto_bright else None,
        }
        return {
            **balance,
            **{key: value for key, value in given.items() if value is not None},
            "half_size": self.half_size,
            "gamma": self.gamma,
            "no_auto_bright": not self.auto_bright,
            "adjust_maximum_thr": 0.0,
            "bright": self.brightness,
            "highlight_mode": _HIGHLIGHTS[self.highlights],
            "output_color": getattr(rawpy.ColorSpace, self.colour),
            "output_bps": self.output_bps,
            "median_filter_passes": self.median_passes,
        }


@dataclass(frozen=True)
class Developed:
    """A developed RAW file."""

    image: np.ndarray  # float32 (H, W, 3) in [0, 1], upright
    facts: Mapping[str, Any]  # camera, iso, exposure_s, aperture, focal_mm, time, lens; None where unknown


_AS_SHOT = Development()


def develop(path: str | Path, how: Development = _AS_SHOT, *, max_pixels: int = 200_000_000) -> Developed:
    """Develop a RAW file.

    Raises:
        RawError: not a RAW file that LibRaw knows, corrupt, or more than `max_pixels` pixels.
        ModuleNotFoundError: without rawpy; the message names the extra.
    """
    path = Path(path)
    rawpy = import_optional("rawpy", "raw", why=f"Developing {path.name}")
    try:
        with rawpy.imread(str(path)) as raw:
            width, height = raw.sizes.width, raw.sizes.height
            if width * height > max_pixels:
                raise RawError(
                    f"{path} has {width} x {height} pixels, more than the limit of {max_pixels / 1e6:g} million."
                )
            facts = _facts(path, raw)
            left, top, right, bottom = _margins(path, raw.sizes, how)
            levels = raw.postprocess(**how.arguments(rawpy))
            levels = levels[top : levels.shape[0] - bottom, left : levels.shape[1] - right]
    except rawpy.LibRawError as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else error
        raise RawError(f"{path} cannot be developed as camera RAW ({reason}).") from error
    return Developed(levels.astype(np.float32) / (2**how.output_bps - 1), facts)


def _margins(path: Path, sizes: Any, how: Development) -> tuple[int, int, int, int]:
    # Pixels outside of a DNG's default crop, which viewers do not show: left, top, right, bottom of the turned image.
    with open(path, "rb") as file:
        cropped = sizes.crop_width * sizes.crop_height and is_dng(file.read(2**16))
    left, top = sizes.crop_left_margin - sizes.left_margin, sizes.crop_top_margin - sizes.top_margin
    right, bottom = sizes.width - left - sizes.crop_width, sizes.height - top - sizes.crop_height
    if not cropped or min(left, top, right, bottom) < 0:
        return 0, 0, 0, 0
    left, top, right, bottom = (margin // (1 + how.half_size) for margin in (left, top, right, bottom))
    turned = {3: (right, bottom, left, top), 5: (top, right, bottom, left), 6: (bottom, left, top, right)}
    return turned.get(sizes.flip if how.flip is None else how.flip, (left, top, right, bottom))


def develop_apart(path: str | Path, how: Development = _AS_SHOT, *, timeout_s: float = 600) -> Developed:
    """`develop` in a process of its own, for unchecked files: LibRaw ends the process on some corrupt ones.

    Raises:
        RawError: as `develop`, and where the process was ended or took longer than `timeout_s`.
    """
    command = [sys.executable, "-c", "from face2scene.image_io import raw; raw._develop_for_parent()"]
    order = json.dumps({"path": str(path), "how": how.as_record()}).encode()
    try:
        done = subprocess.run(command, input=order, capture_output=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise RawError(f"{path} was not developed within {timeout_s:g} s.") from error
    if done.returncode < 0:
        raise RawError(f"{path} ended LibRaw with signal {signal.Signals(-done.returncode).name}.")
    head, _, pixels = done.stdout.partition(b"\n")  # data only: the child has read an unchecked file
    answer: dict[str, Any] = json.loads(head) if head else {"error": done.stderr[-300:].decode(errors="replace")}
    if "error" in answer:
        raise RawError(answer["error"])
    return Developed(np.frombuffer(bytearray(pixels), np.float32).reshape(answer["shape"]), answer["facts"])


def _develop_for_parent() -> None:
    try:
        order = json.load(sys.stdin)
        image, facts = vars(develop(order["path"], Development(**order["how"]))).values()
        sys.stdout.buffer.write(json.dumps({"facts": facts, "shape": image.shape}).encode() + b"\n" + image.tobytes())
    except (RawError, ModuleNotFoundError) as error:
        print(json.dumps({"error": str(error)}))


def _facts(path: Path, raw: Any) -> dict[str, Any]:
    # LibRaw reads the notes of more cameras, ExifRead the standard tags wherever a file keeps them.
    other, lens, tags = raw.other, raw.lens, _tags(path)
    make, model = (str(tags.get(f"Image {name}", "")).strip() for name in ("Make", "Model"))

    def number(known: float, tag: str, digits: int) -> float | None:
        written = tags.get(f"EXIF {tag}") or tags.get(f"Image {tag}")
        if not known and written is not None and written.values:
            known = float(written.values[0])
        return round(known, digits) or None

    iso = number(other.iso_speed, "ISOSpeedRatings", 0)
    return {
        "camera": " ".join(part for part in (make, model) if part) or None,
        "iso": iso and int(iso),
        "exposure_s": number(other.shutter_speed, "ExposureTime", 6),
        "aperture": number(other.aperture, "FNumber", 2),
        "focal_mm": number(other.focal_length, "FocalLength", 2),
        "lens": (lens.model or "").strip() or None,
        "time": other.timestamp.isoformat() if other.timestamp and other.timestamp.year > 1980 else None,
        "white_balance": [round(float(v), 4) for v in raw.camera_whitebalance],
    }


def _tags(path: Path) -> dict[str, Any]:
    if importlib.util.find_spec("exifread") is None:
        return {}  # a photo is developed without it; the camera then has no name
    exifread = importlib.import_module("exifread")
    try:
        with open(path, "rb") as file:
            return exifread.process_file(file, details=False)
    except Exception:  # ExifRead raises almost anything on a file it does not know; LibRaw has opened it
        return {}
