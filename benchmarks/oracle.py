"""Is the face an oracle? Two restorers that must be told the degradation, told it in several ways.

    python benchmarks/oracle.py [--quick] [--json FILE] [--rows FILE] [--page FOLDER]
        [--size 256] [--heads FILE] [--richardson-lucy] [--earlier FILE]

FFDNet has to be told the noise's level and a deconvolution the blur's width. On packaged photos with people, none of
whom FaDeX was trained on, under a known degradation, each is told the true value, the one read off the face pair, off
the whole photo, and a fixed one. The scene without the face is scored: PSNR in dB over every pixel outside the face's
square. `--rows` keeps what is done, so that the same command goes on; `--page` writes oracle.md and its figure there.
Before it: face2scene fetch ffdnet_color real_esrgan_x4plus yunet photos_argon photos_argon_free photos_uikit
photos_face_recognition; `pip install 'face2scene[dev]'` has scikit-image and the PyWavelets that its estimate needs.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from people import Person, people
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray
from skimage.feature import canny
from skimage.restoration import estimate_sigma, richardson_lucy, wiener
from torch import Tensor

from face2scene.common.charts import BLUE, GREY, ORANGE, PALE, new_figure, save_figure
from face2scene.common.files import atomic_write, write_json
from face2scene.common.reproducibility import REPOSITORY, seed_from
from face2scene.degradation import Blur, GaussianNoise, Jpeg, Recipe
from face2scene.eval.baselines.networks import load_ffdnet
from face2scene.eval.scoring.results import interval
from face2scene.eval.tables.render import plain_markdown
from face2scene.models.fadex import FaDeX
from face2scene.models.fadex.factor_heads import Readout
from face2scene.ref_fr.no_reference import RealESRGAN

FIXED = {"noise": 25.0, "blur": 1.6}  # grey levels of 255, pixels
LIMITS = {"noise": (0.0, 75.0), "blur": (0.0, 6.0)}  # FFDNet's training; a kernel of the padded photo
STEP = {"noise": 1.0, "blur": 0.05}  # what is told is rounded to these
BALANCE = 0.01  # Wiener's, and Richardson-Lucy's iterations: by PSNR on skimage's astronaut, told the true width
ITERATIONS = 20
PAD = 24  # pixels mirrored around a photo that is deconvolved
TRUE = "true value"
DECONVOLUTIONS = ("Wiener", "Richardson-Lucy")


@dataclass(frozen=True)
class Case:
    """One known degradation."""

    factor: str  # that the restorer is told
    kind: str  # heading of the table
    value: float  # grey levels, or pixels
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.kind} {self.value:g}"


def cases(quick: bool) -> Iterator[Case]:
    """Noise alone, after a blur and before a JPEG; blur with a little noise, and with noise and a JPEG."""
    for level in (25,) if quick else (10, 25, 40):
        yield Case("noise", "noise", level, Recipe((GaussianNoise(level),)))
    for level in (20,):
        yield Case("noise", "blur 1.2, then noise", level, Recipe((_blur(1.2), GaussianNoise(level))))
        yield Case("noise", "noise, then JPEG 80", level, Recipe((GaussianNoise(level), Jpeg(80))))
    for sigma in (2.4,) if quick else (0.8, 1.6, 2.4, 3.2):
        yield Case("blur", "blur, then noise 2", sigma, Recipe((_blur(sigma), GaussianNoise(2))))
    for sigma in () if quick else (1.2, 2.4):
        recipe = Recipe((_blur(sigma), GaussianNoise(4), Jpeg(90)))
        yield Case("blur", "blur, then noise 4 and JPEG 90", sigma, recipe)


def _blur(sigma: float) -> Blur:
    return Blur("iso", 21, sigma_x=sigma)


def edge_blur(image: Tensor, again: float = 1.0) -> float:
    """Width in pixels of an image's blur, from how much a second blur of `again` pixels lowers its edges' gradients.

    Zhuo and Sim, Defocus map estimation from a single image (2011); the median over the edges of Canny's detector.
    """
    grey = rgb2gray(image.permute(1, 2, 0).numpy())
    ratio = _gradient(grey) / np.maximum(_gradient(gaussian_filter(grey, again)), 1e-6)
    found = ratio[canny(grey, sigma=1.5) & (ratio > 1.0 + 1e-3)]
    return float(np.median(again / np.sqrt(found**2 - 1))) if len(found) else 0.0


def _gradient(grey: np.ndarray) -> np.ndarray:
    down, right = np.gradient(grey)
    return np.hypot(down, right)


def white_noise(image: Tensor) -> float:
    """scikit-image's estimate of the noise's deviation, in grey levels (Donoho's, mean of the colours)."""
    return 255 * float(estimate_sigma(image.permute(1, 2, 0).numpy(), channel_axis=-1, average_sigmas=True))


def deconvolved(image: Tensor, sigma: float, method: str) -> Tensor:
    """An image (3, H, W), deblurred as if by a Gaussian of `sigma` pixels."""
    if sigma < 0.2:
        return image
    reach = max(1, math.ceil(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    padded = np.pad(image.numpy().astype(np.float64), ((0, 0), (PAD, PAD), (PAD, PAD)), mode="reflect")
    if method == "Wiener":
        clean = [wiener(colour, kernel, BALANCE, clip=False) for colour in padded]
    else:
        clean = [richardson_lucy(colour, kernel, num_iter=ITERATIONS) for colour in padded]
    return torch.from_numpy(np.stack(clean)[:, PAD:-PAD, PAD:-PAD]).float().clamp(0, 1)


class Tellers:
    """Everything that says how strong a factor is, by name."""

    def __init__(self, heads: Path) -> None:
        self.readout = Readout(FaDeX.from_file(REPOSITORY / "checkpoints/fadex/fadex.safetensors"), heads)
        self.stage_one = RealESRGAN(device="cpu")

    @torch.inference_mode()
    def __call__(self, person: Person, degraded: Tensor, case: Case) -> dict[str, float]:
        face, clean = (image[(slice(None), *person.inside)] for image in (degraded, person.image))
        restored = self.stage_one.restore(face, (), gt=None, rng=np.random.default_rng(0))
        classical = white_noise if case.factor == "noise" else edge_blur
        found = {TRUE: case.value}
        for name, other in (("ground truth", clean), ("Real-ESRGAN", restored), ("the degraded face", face)):
            found[f"face pair with {name}, FaDeX"] = self.readout(other, face)[case.factor].value
        found["face alone, classical"] = classical(face)
        found["whole photo, classical"] = classical(degraded)
        found[f"fixed, {FIXED[case.factor]:g}"] = FIXED[case.factor]
        (low, high), step = LIMITS[case.factor], STEP[case.factor]
        return {name: round(min(max(value, low), high) / step) * step for name, value in found.items()}


def psnr_outside(output: Tensor, gt: Tensor, inside: tuple[slice, slice]) -> float:
    """PSNR in dB over the pixels outside the face."""
    error = (output - gt).square().mean(0)
    kept = torch.ones_like(error, dtype=torch.bool)
    kept[inside] = False
    return -10 * math.log10(max(float(error[kept].double().mean()), 1e-10))


def measured(
    chosen: Sequence[Person], quick: bool, kept: Path | None, heads: Path, more: bool, earlier: Path | None
) -> list[dict[str, Any]]:
    """A row for every photo, degradation, restorer and way to be told; with `more` Richardson-Lucy too.

    Rows of `earlier`, a file like `kept`, give the scores of values that were told before.
    """
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept and kept.is_file() else []
    done = {(row["photo"], row["case"]) for row in rows}
    before = [json.loads(line) for line in earlier.read_text().splitlines()] if earlier else []
    known = {(row["photo"], row["case"], row["method"], row["value"]): row["psnr"] for row in before}
    tellers, ffdnet = Tellers(heads), load_ffdnet()

    def denoised(image: Tensor, level: float) -> Tensor:
        return ffdnet(image[None], torch.tensor([level / 255]))[0].clamp(0, 1)

    restorers: dict[str, dict[str, Callable[[Tensor, float], Tensor]]] = {
        "noise": {"FFDNet": denoised},
        "blur": {name: partial(deconvolved, method=name) for name in DECONVOLUTIONS[: 1 + more]},
    }
    for person in chosen:
        for case in cases(quick):
            if (person.name, case.name) in done:
                continue
            seed = seed_from("oracle", person.name, case.name)
            degraded = case.recipe.with_noise_seed(seed).apply(person.image).mul(255).round().div(255)
            told = tellers(person, degraded, case)
            about = {"photo": person.name, "case": case.name, "kind": case.kind, "true": case.value}
            made = [about | {"method": "none", "told": "", "value": None, "psnr": _scored(degraded, person)}]
            for method, restore in restorers[case.factor].items():
                of = person.name, case.name, method
                scores = {key[3]: score for key, score in known.items() if key[:3] == of}
                for name, value in told.items():
                    if value not in scores:
                        with torch.inference_mode():
                            scores[value] = _scored(restore(degraded, value), person)
                    score = scores[value]
                    made.append(about | {"method": method, "told": name, "value": value, "psnr": score})
            rows += made
            if kept:
                with kept.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in made)
        print(f"{person.name} is done", flush=True)
    return rows


def _scored(image: Tensor, person: Person) -> float:
    return psnr_outside(image, person.image, person.inside)


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over photos with 95 % bootstrap intervals, by method, kind and who told.

    `lost` is the PSNR against being told the true value, photo by photo; `error` the mean distance of the told value.
    Photos are drawn again and not their cases, since those of one photo are alike.
    """
    by: dict[tuple[str, str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    true = {(r["photo"], r["case"], r["method"]): r["psnr"] for r in rows if r["told"] == TRUE}
    for row in rows:
        by[row["method"], row["kind"], row["told"]][row["photo"]].append(row)
    found = {}
    for (method, kind, told), photos in by.items():
        scores = [float(np.mean([r["psnr"] for r in ones])) for ones in photos.values()]
        entry: dict[str, Any] = {
            "psnr": float(np.mean(scores)),
            "psnr_interval": interval(scores),
            "photos": len(photos),
        }
        if method != "none":
            lost = [
                float(np.mean([r["psnr"] - true[r["photo"], r["case"], method] for r in ones]))
                for ones in photos.values()
            ]
            errors = [float(np.mean([abs(r["value"] - r["true"]) for r in ones])) for ones in photos.values()]
            entry |= {"lost": float(np.mean(lost)), "lost_interval": interval(lost)}
            entry |= {"error": float(np.mean(errors)), "error_interval": interval(errors)}
            bias = [float(np.mean([r["value"] - r["true"] for r in ones])) for ones in photos.values()]
            entry |= {"bias": float(np.mean(bias)), "bias_interval": interval(bias)}
        found[f"{method} | {kind} | {told}"] = entry
    return found


def tables(rows: list[dict[str, Any]], found: dict[str, dict[str, Any]]) -> str:
    """One table in Markdown for each restorer and kind of degradation."""
    parts = []
    for key in dict.fromkeys(tuple(name.split(" | ")[:2]) for name in found if not name.startswith("none")):
        method, kind = key
        values = sorted({row["true"] for row in rows if row["kind"] == kind})
        none = found[f"none | {kind} | "]
        parts.append(f"### {method}: {kind} ({', '.join(f'{v:g}' for v in values)})\n")
        lines = [["not restored", "", "", _with(none, "psnr"), ""]]
        for name, entry in found.items():
            if name.startswith(f"{method} | {kind} | "):
                cells = [
                    _with(entry, "error"),
                    _with(entry, "bias", "+"),
                    _with(entry, "psnr"),
                    _with(entry, "lost", "+"),
                ]
                lines.append([name.split(" | ")[2], *cells])
        parts.append(
            plain_markdown(
                ["told", "size of its error", "mean of its error", "PSNR, dB", "against the true value, dB"], lines
            )
        )
    return "\n".join(parts)


def _with(entry: dict[str, Any], name: str, sign: str = "") -> str:
    low, high = entry[f"{name}_interval"]
    return f"{entry[name]:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def drawn(found: dict[str, dict[str, Any]]) -> Any:
    """The figure: what being told otherwise than truly costs, by restorer and degradation."""
    panels = [tuple(name.split(" | ")[:2]) for name in found if not name.startswith("none")]
    panels = list(dict.fromkeys(panel for panel in panels if panel[0] != "Richardson-Lucy"))
    figure = new_figure(3.2 * len(panels), 3.6)
    for number, (method, kind) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        told = {n.split(" | ")[2]: e for n, e in found.items() if n.startswith(f"{method} | {kind} | ")}
        told.pop(TRUE)
        names = list(told)[::-1]
        middle = np.array([told[name]["lost"] for name in names])
        ends = np.array([told[name]["lost_interval"] for name in names])
        colours = [BLUE if "FaDeX" in n else ORANGE if "classical" in n else GREY for n in names]
        axes.barh(range(len(names)), middle, xerr=np.abs(ends.T - middle), color=colours, ecolor="black", capsize=2)
        axes.set_yticks(range(len(names)), names if number == 0 else [""] * len(names), fontsize=8)
        axes.set_title(f"{method}: {kind}", fontsize=8, loc="left")
        axes.set_xlabel("PSNR against the true value, dB", fontsize=8)
        axes.axvline(0, color="black", linewidth=0.6)
        axes.grid(axis="x", color=PALE, linewidth=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


PAGE = """# Is the face an oracle?

`python benchmarks/oracle.py --richardson-lucy --json docs/oracle.json --page docs` makes this page and its figure
({photos} photos, longer side {size} pixels); with `--quick` of four photos and fewer degradations.

The paper's claim is that a restored face tells how its whole scene is degraded. Here it is asked without any
training of a restorer: FFDNet has to be told the noise's level, a deconvolution (Wiener's, and Richardson-Lucy's, which
the figure leaves out) the blur's width, and being told wrongly costs decibels. Each is told the true value; the one
that FaDeX's heads (`checkpoints/fadex`, [readout.md](readout.md)) read off the face pair; a classical estimate off the
face or the whole photo (noise: scikit-image's `estimate_sigma`; blur: the edges' gradients before and after a second
blur); one fixed value. The scene without the face is scored: every pixel outside the face's square.

Stage I is played by the ground truth, by Real-ESRGAN x4plus (a real network that runs here, without references),
and by the degraded face itself. No photo was in FaDeX's training. Values are rounded to {noise:g} grey level and
{blur:g} pixel before they are told. In brackets: 95 % bootstrap intervals of means over photos; degradations of one
photo count as one value. The truth is not the best to be told where the noise is no longer white, as after a JPEG.
FaDeX's heads are fitted on the noise that is left at the end, so that a JPEG after it lowers what they tell.

![What being told otherwise than truly costs](images/oracle.png)

{verdict}

{tables}"""


def verdict(found: dict[str, dict[str, Any]]) -> str:
    """For every table a sentence: the best that is told, other than the truth, and whether the face is it."""
    lines = []
    for key in dict.fromkeys(tuple(name.split(" | ")[:2]) for name in found if not name.startswith("none")):
        told = {n.split(" | ")[2]: e for n, e in found.items() if n.startswith(" | ".join(key) + " | ")}
        pair = max((n for n in told if n.startswith("face pair")), key=lambda n: told[n]["lost"])
        other = max((n for n in told if not n.startswith("face pair") and n != TRUE), key=lambda n: told[n]["lost"])
        ends = [(told[a]["lost"], told[b]["lost_interval"]) for a, b in ((pair, other), (other, pair))]
        better = "the face pair is better" if told[pair]["lost"] > told[other]["lost"] else "the face pair loses"
        if any(low <= value <= high for value, (low, high) in ends):
            better = "no difference found"
        lines.append(
            f"- {key[0]}, {key[1]}: {better}. The best face pair ({pair}) is at {told[pair]['lost']:+.2f} dB of the "
            f"true value, the best other ({other}) at {told[other]['lost']:+.2f} dB."
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every fourth photo, three degradations")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=Path, help="keep every photo's rows here, and go on from them")
    parser.add_argument("--earlier", type=Path, help="rows of other heads: what was scored there is not scored again")
    parser.add_argument("--page", type=Path, help="write oracle.md and images/oracle.png here")
    parser.add_argument("--size", type=int, default=256, help="longer side of the photos")
    parser.add_argument("--heads", type=Path, default=REPOSITORY / "checkpoints/fadex/readout.safetensors")
    parser.add_argument("--richardson-lucy", action="store_true", help="as a second deconvolution, slow")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = people(options.size, quick=options.quick)
    rows = measured(chosen, options.quick, options.rows, options.heads, options.richardson_lucy, options.earlier)
    found = summary(rows)
    text = tables(rows, found)
    print(f"{verdict(found)}\n\n{text}")
    if options.json:
        write_json(options.json, {"size": options.size, "photos": len(chosen), **found})
    if options.page:
        about = {"photos": len(chosen), "size": options.size, **STEP}
        save_figure(drawn(found), options.page / "images/oracle")
        (options.page / "images/oracle.svg").unlink()
        with atomic_write(options.page / "oracle.md") as partial_file:
            partial_file.write_text(PAGE.format(tables=text, verdict=verdict(found), **about), encoding="utf-8")


if __name__ == "__main__":
    main()
