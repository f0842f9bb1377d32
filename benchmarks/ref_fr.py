"""Effect of Stage I's quality on FaDeX's embedding and on the restored scene; and FaceMe's quality against its time.

The table has the form of the paper's Table 6 at tiny scale. Packaged portraits are reduced to 256 pixels and degraded
by configs/degradation/tiny.yaml; each restorer of configs/ref_fr is Stage I, and checkpoints/tiny restores the scene.
`code` is the cosine of FaDeX's embedding with that of the ground truth face. The last rows have the learned null tokens
and the tokens of the next image's degradation. No reference photos are given.

`--curve NAME` runs configs/ref_fr/NAME.yaml (faceme, or faceme_tiny to try the tool) over steps and schedulers on
portraits of a person whose other photos are the references: seconds per face and the distance to the clean face.

    python benchmarks/ref_fr.py [--quick] [--json FILE] [--curve NAME] [--images N]
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from face2scene.assets import catalogue
from face2scene.common.files import write_json
from face2scene.common.memory import keep_freed_memory
from face2scene.common.reproducibility import REPOSITORY, seed_from
from face2scene.common.types import DegradationTokens, Face, Scene
from face2scene.eval.metrics.registry import METRICS, Scorer
from face2scene.faces.align import crop, square_crop_box
from face2scene.image_io.arrays import read_tensor, resize, to_array
from face2scene.inference.pipeline import DegradationEstimate, Face2ScenePipeline
from face2scene.ref_fr.base import aligned_face, in_bytes

CONFIGS = REPOSITORY / "configs"
RESTORERS = ("copy", "real_esrgan", "perturbed_bad", "perturbed_medium", "perturbed_good", "perturbed", "ground_truth")
KEYS = ("dists", "lpips", "psnr")
PORTRAITS = {
    "photos_face_recognition": ("obama.jpg", "biden.jpg", "obama2.jpg", "obama3.jpg"),
    "photos_face_api": ("sample2.jpg", "sample4.jpg", "sample1.jpg", "sample3.jpg", "sample5.jpg", "sample6.jpg"),
}
PERSON = ("obama.jpg", "obama2.jpg", "obama3.jpg")
SIDE = 256


def option(name: str, **changes: object) -> object:
    """configs/ref_fr/NAME.yaml, made."""
    return instantiate(OmegaConf.merge(OmegaConf.load(CONFIGS / "ref_fr" / f"{name}.yaml"), changes))


def portraits(count: int) -> list[tuple[str, Tensor, Face]]:
    """Squares of SIDE pixels around the largest face of packaged photos: name, image, face in it."""
    finder, found = instantiate(OmegaConf.load(CONFIGS / "faces/open.yaml"), identities=False), []
    for asset, names in PORTRAITS.items():
        for name in names:
            image = read_tensor(catalogue.folder(asset) / name)
            (x0, y0, x1, y1), (height, width) = finder.find(to_array(image))[0].box, image.shape[-2:]
            side = int(min(2.2 * max(x1 - x0, y1 - y0), height, width))
            left = int(np.clip((x0 + x1 - side) / 2, 0, width - side))
            top = int(np.clip((y0 + y1 - side) / 2, 0, height - side))
            square = in_bytes(resize(image[:, top : top + side, left : left + side], (SIDE, SIDE)))
            if faces := finder.find(to_array(square)):
                found.append((Path(name).stem, square, faces[0]))
            if len(found) == count:
                return found
    return found


def scored(scorers: Mapping[str, Scorer], image: Tensor, gt: Tensor) -> list[float]:
    with torch.inference_mode():
        return [float(torch.as_tensor(s(in_bytes(image)[None], gt[None])).mean()) for s in scorers.values()]


def degraded(images: list[tuple[str, Tensor, Face]]) -> list[Tensor]:
    """Every image under an operator of its own."""
    space = instantiate(OmegaConf.load(CONFIGS / "degradation/tiny.yaml"), _convert_="all")
    rngs = [np.random.default_rng(seed_from(0, name)) for name, _, _ in images]
    drawn = zip(images, rngs, strict=True)
    return [in_bytes(space.draw(rng).apply(gt)) for (_, gt, _), rng in drawn]


def quality_table(scorers: Mapping[str, Scorer], count: int) -> dict[str, list[float]]:
    """Row name to face dists, lpips, psnr, cosine of the code, scene dists, lpips, psnr; NaN where there is none."""
    images = portraits(count)
    scenes = degraded(images)
    pipeline = Face2ScenePipeline.from_pretrained(REPOSITORY / "checkpoints/tiny", colour="wavelet")
    seen: dict[str, list[DegradationEstimate]] = {}
    for name in RESTORERS:
        pipeline.ref_fr = option(name)
        seen[name] = []
        for (image, gt, face), scene in zip(images, scenes, strict=True):
            seen[name].append(pipeline.estimate(Scene(image, scene), gt=gt, box=face.box))

    def code(estimate: DegradationEstimate) -> Tensor:
        pair = estimate.pair
        with torch.inference_mode():
            return pipeline.fadex.embed(pipeline.fadex(pair.restored[None], pair.degraded[None]))[0]

    def restored(estimates: list[DegradationEstimate]) -> list[float]:
        rows = []
        for (name, gt, _), scene, estimate in zip(images, scenes, estimates, strict=True):
            with torch.inference_mode():
                rows.append(scored(scorers, pipeline.restore(Scene(name, scene), estimate).image, gt))
        return np.mean(rows, axis=0).tolist()

    nothing, table = [float("nan")] * (len(KEYS) + 1), {}
    codes = [code(m) for m in seen["ground_truth"]]
    for name, estimates in seen.items():
        faces = [
            scored(scorers, m.pair.restored, crop(t, m.pair.box))
            for m, (_, t, _) in zip(estimates, images, strict=True)
        ]
        cosine = np.mean([float(code(m) @ known) for m, known in zip(estimates, codes, strict=True)])
        table[name] = [*np.mean(faces, axis=0).tolist(), float(cosine), *restored(estimates)]
    with torch.inference_mode():
        null = DegradationEstimate(DegradationTokens(pipeline.restorer.tokens(None, 1), "null"))
    table["null tokens"] = nothing + restored([null] * len(images))
    others = seen["ground_truth"][1:] + seen["ground_truth"][:1]
    apart = np.mean([float(a @ b) for a, b in zip(codes, codes[1:] + codes[:1], strict=True)])
    table["another's tokens"] = [*nothing[:-1], float(apart), *restored(others)]
    unrestored = np.mean([scored(scorers, s, t) for s, (_, t, _) in zip(scenes, images, strict=True)], axis=0)
    table["input"] = nothing + unrestored.tolist()
    return table


def curve(scorers: Mapping[str, Scorer], name: str, quick: bool) -> dict[tuple[str, int], list[float]]:
    """(scheduler, steps) to seconds per face, dists, lpips, psnr of the aligned face."""
    images = [one for one in portraits(len(PERSON) + 1) if f"{one[0]}.jpg" in PERSON]
    scenes = degraded(images)
    place = catalogue.folder("photos_face_recognition")
    rows: dict[tuple[str, int], list[float]] = {}
    for scheduler in ("ddpm",) if quick else ("ddpm", "ddim", "dpmpp", "unipc"):
        for steps in (10, 20, 30, 50):
            restorer = option(name, scheduler=scheduler, steps=steps)
            restorer.ready()
            measured = []
            for (image, gt, face), scene in zip(images, scenes, strict=True):
                given = [place / n for n in PERSON if Path(n).stem != image]
                box = square_crop_box(face.box, (SIDE, SIDE))
                low, known = (aligned_face(x, box, face.landmarks_5, restorer.size)[0] for x in (scene, gt))
                restorer.reference_tokens(given)  # computed once per person: not part of a face's time
                start = time.perf_counter()
                made = restorer.restore_aligned(low[None], [given])[0].image
                measured.append([time.perf_counter() - start, *scored(scorers, made, known)])
            rows[scheduler, steps] = np.mean(measured, axis=0).tolist()
            print(
                f"| {scheduler} | {steps} | " + " | ".join(f"{v:.3f}" for v in rows[scheduler, steps]) + " |",
                flush=True,
            )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--quick", action="store_true", help="two images; of the curve the released scheduler alone")
    parser.add_argument("--curve", metavar="NAME", help="of configs/ref_fr: faceme or faceme_tiny")
    parser.add_argument("--images", type=int, default=6, help="1 to 10")
    options = parser.parse_args()
    keep_freed_memory()  # both sides alike
    scorers = {key: METRICS[key].build("cpu") for key in KEYS}
    if options.curve:
        print("| scheduler | steps | s / face | DISTS | LPIPS | PSNR |\n|---|---|---|---|---|---|")
        rows = curve(scorers, options.curve, options.quick)
        released, measures = rows["ddpm", 50], {}
        for (scheduler, steps), row in rows.items():
            note = f"ours {scheduler} in {steps} steps, other ddpm in 50; LPIPS {row[2]:.4f} and {released[2]:.4f}"
            ratio = {"ours": row[0], "other": released[0], "ratio": released[0] / row[0], "unit": "s / face"}
            measures[f"{scheduler}_{steps}"] = ratio | {"note": note}
    else:
        table = quality_table(scorers, 2 if options.quick else options.images)
        print("| Stage I | face DISTS | LPIPS | PSNR | code | scene DISTS | LPIPS | PSNR |")
        print("|---|---|---|---|---|---|---|---|")
        for name, row in table.items():
            cells = (("" if np.isnan(v) else f"{v:.2f}" if n in (2, 6) else f"{v:.3f}") for n, v in enumerate(row))
            print(f"| {name} | " + " | ".join(cells) + " |")
        plain, measures = table["null tokens"][5], {}
        for name in RESTORERS:
            lpips = {"ours": table[name][5], "other": plain, "ratio": plain / table[name][5], "unit": "scene LPIPS"}
            measures[name] = lpips | {"note": f"ours ref_fr={name}, other the null tokens; code {table[name][3]:.3f}"}
    if options.json:
        write_json(options.json, measures)


if __name__ == "__main__":
    main()
