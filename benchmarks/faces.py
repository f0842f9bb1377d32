"""Speed of face detection, and with `--recall` what is still found as photos get worse.

Speed: a 12-megapixel photo on one core by `faces=open` against the same network run once on the whole photo, the usual
way; landmarks and identity per face; and an image without a face, for which every retry runs. Both sides run in this
process, in turns, and the fastest of several runs counts.

Recall: the packaged photos, reduced to 512 pixels, are degraded by the spaces of configs/degradation and by low light.
Ground truth are the detections of one search by the network, or by that of `--gt`, in the clean photo with a score of
0.8 or more. A face counts as found when the mean of its five landmarks is off by less than a third of the face's side;
its landmark error is the mean distance of the five in percent of that side. Every other detection is a false positive;
images without people are included.

    python benchmarks/faces.py [--quick] [--json FILE] [--recall FOLDER] [--faces CONFIG] [--photos FOLDER]
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.nn import functional as F
from tqdm import tqdm

from face2scene.assets import catalogue
from face2scene.common.files import atomic_write, write_json
from face2scene.common.optional import import_optional
from face2scene.common.types import Face
from face2scene.faces.detect import Detector
from face2scene.faces.identity import cosine
from face2scene.image_io.arrays import list_images, read_image, resize, to_array, to_tensor

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SIDE = 512  # of the images of the recall table
SPACES = ("clean", "mild", "paper", "severe", "low_light")


def detector(name: str, **options: object) -> Detector:
    """The detector of configs/faces/NAME.yaml, with some options changed."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(f"faces/{name}").faces
    OmegaConf.set_struct(config, False)  # so that options missing in the config can be changed too
    return instantiate(OmegaConf.merge(config, options))


def photos(folder: Path | None) -> dict[str, np.ndarray]:
    """The packaged photos with people by name, and those of `folder`."""
    data = import_optional("skimage.data", "dev", why="The astronaut photo")
    found = {"astronaut": data.astronaut().astype(np.float32) / 255}
    places = [catalogue.folder(name) for name in ("photos_face_recognition", "photos_face_api")]
    places += [catalogue.folder("photos_unsplash_people") / "scenes", *([folder] if folder else [])]
    for place in places:
        for path in list_images(place):
            found[f"{place.name}/{path.name}"] = read_image(path)
    return found


def scenery() -> dict[str, np.ndarray]:
    """Images without people."""
    data = import_optional("skimage.data", "dev", why="Images without people")
    return {name: getattr(data, name)().astype(np.float32) / 255 for name in ("coffee", "chelsea", "rocket")}


def within(image: np.ndarray, side: int) -> np.ndarray:
    factor = side / max(image.shape[:2])
    size = [max(1, round(length * factor)) for length in image.shape[:2]]
    return to_array(resize(to_tensor(image), tuple(size))) if factor < 1 else image


# --- recall -------------------------------------------------------------------------------------------------


def degraded(image: np.ndarray, space: str, seed: int) -> np.ndarray:
    """One draw of a space; the same for every detector."""
    rng = np.random.default_rng([seed, *image.shape])
    if space == "clean":
        return image
    if space == "low_light":
        # A three-hundredth to a fiftieth of the light, with the noise of a small sensor, written as 8 bit.
        linear = np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
        linear = linear * np.exp(rng.uniform(np.log(0.003), np.log(0.02)))
        linear = linear + rng.normal(size=image.shape) * np.sqrt(linear * 4e-4 + 2e-6)
        linear = linear.clip(0, 1)
        dark = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
        return ((dark * 255).round() / 255).astype(np.float32)
    recipe = instantiate(OmegaConf.load(CONFIGS / "degradation" / f"{space}.yaml")).draw(rng)
    return to_array(recipe.apply(to_tensor(image))).clip(0, 1)


@dataclass
class Tally:
    """Counts over the images of one space."""

    faces: int = 0
    found: int = 0
    false: int = 0
    described: int = 0
    same: int = 0
    images: int = 0
    seconds: float = 0.0
    errors: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float | int | None]:
        return {
            "faces": self.faces,
            "recall": self.found / max(self.faces, 1),
            "false_positives": self.false,
            "pictures": self.images,
            "landmark_error_percent": 100 * float(np.median(self.errors)) if self.errors else None,
            "identity_kept": self.same / self.described if self.described else None,
            "ms_per_picture": 1000 * self.seconds / max(self.images, 1),
        }


def add(tally: Tally, gt: list[Face], found: list[Face], same_threshold: float) -> None:
    """Pair detections with ground truth faces, each once, the nearest first."""
    tally.faces += len(gt)
    tally.images += 1
    free = set(range(len(found)))
    for face in gt:
        middle = face.landmarks_5.mean(0)
        near = {n: np.linalg.norm(found[n].landmarks_5.mean(0) - middle) / face.size for n in free}
        best = min(near, key=near.__getitem__, default=None)
        if best is None or near[best] > 1 / 3:
            continue
        free.remove(best)
        tally.found += 1
        tally.errors.append(
            float(np.linalg.norm(found[best].landmarks_5 - face.landmarks_5, axis=1).mean() / face.size)
        )
        if face.identity is not None and found[best].identity is not None:
            tally.described += 1
            tally.same += cosine(face, found[best]) >= same_threshold
    tally.false += len(free)


def recall(
    variants: Mapping[str, Detector],
    reference: Detector,
    images: Mapping[str, np.ndarray],
    empty: Mapping[str, np.ndarray],
    spaces: Sequence[str],
    draws: int,
) -> dict:
    """{variant: {space: row}}; every variant sees the same images."""
    gt = {name: [f for f in reference.find(image) if f.score >= 0.8] for name, image in images.items()}
    gt |= {name: [] for name in empty}
    tallies = {name: {space: Tally() for space in spaces} for name in variants}
    for name, image in tqdm([*images.items(), *empty.items()], desc="photos"):
        for space in spaces:
            for draw in range(1 if space == "clean" else draws):
                shown = degraded(image, space, draw)
                for variant, finder in variants.items():
                    start = time.process_time()
                    found = finder.find(shown)
                    tallies[variant][space].seconds += time.process_time() - start
                    add(tallies[variant][space], gt[name], found, finder.same_threshold)
    return {name: {space: tally.row() for space, tally in rows.items()} for name, rows in tallies.items()}


def as_markdown(results: Mapping[str, Mapping[str, Mapping]]) -> str:
    lines = [
        "| detector | degradation | faces | recall | false positives | landmark error | identity kept | ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant, spaces in results.items():
        for space, row in spaces.items():
            error = "-" if row["landmark_error_percent"] is None else f"{row['landmark_error_percent']:.1f} %"
            kept = "-" if row["identity_kept"] is None else f"{100 * row['identity_kept']:.0f} %"
            lines.append(
                f"| {variant} | {space} | {row['faces']} | {100 * row['recall']:.1f} % | {row['false_positives']} in "
                f"{row['pictures']} | {error} | {kept} | {row['ms_per_picture']:.0f} |"
            )
    return "\n".join(lines) + "\n"


# --- speed --------------------------------------------------------------------------------------------------


def best_of(runs: int, *sides: Callable[[], object]) -> list[float]:
    """Processor seconds of the fastest run of each side, the sides in turns; the first round is the warm-up.

    With one thread these are the wall seconds of an idle core.
    """
    seconds = [[] for _ in sides]
    for number in range(runs + 1):
        for taken, side in zip(seconds, sides, strict=True):
            start = time.process_time()
            side()
            if number:
                taken.append(time.process_time() - start)
    return [min(taken) for taken in seconds]


def peak_mib(*, reset: bool = False) -> float:
    """Peak memory of this process; Linux only, 0 elsewhere."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def twelve_megapixels(image: np.ndarray) -> np.ndarray:
    """A photo enlarged to 4000 x 3000 (cut to the shape first), as a stand-in for a phone's image."""
    height = min(image.shape[0], image.shape[1] * 3 // 4)
    cut = image[:height, : height * 4 // 3]
    large = F.interpolate(to_tensor(cut)[None], (3000, 4000), mode="bilinear", align_corners=False)
    return to_array(large[0])


def speed(name: str, runs: int) -> dict[str, dict]:
    photo = read_image(catalogue.folder("photos_face_api") / "sample5.jpg")
    large = twelve_megapixels(photo)
    finder = detector(name, landmarks=False, identities=False)
    plain = (large * 255).round().astype(np.uint8)
    finder.find(photo)
    memory = {}
    for side, run in (("ours", lambda: finder.find(large)), ("other", lambda: finder.backend.search(plain))):
        before = peak_mib(reset=True)
        run()
        memory[side] = peak_mib() - before
    ours, other = best_of(runs, lambda: finder.find(large), lambda: finder.backend.search(plain))
    found = len(finder.find(large))
    results = {
        "detect_12mp": {
            "ours": ours,
            "other": other,
            "ratio": other / ours,
            "unit": "s",
            "note": f"one core, {found} faces found by ours, {len(finder.backend.search(plain))} by one run of the "
            "same network at full size",
        },
        "detect_12mp_memory": {
            "ours": memory["ours"],
            "other": memory["other"],
            "ratio": memory["other"] / max(memory["ours"], 1e-9),
            "unit": "MiB",
            "note": "peak above the float photo (ours) and its bytes (other), Linux only",
        },
    }
    blank = twelve_megapixels(scenery()["rocket"])
    (empty,) = best_of(max(1, runs // 2), lambda: finder.find(blank))
    results["detect_12mp_no_face"] = {
        "ours": empty,
        "other": None,
        "ratio": None,
        "unit": "s",
        "note": "a photo without a face takes every retry; no other side",
    }
    whole = detector(name)
    one = [face for face in whole.find(photo)]
    with_all, without = best_of(runs, lambda: whole.find(photo), lambda: finder.find(photo))
    results["describe_face"] = {
        "ours": 1000 * (with_all - without) / max(len(one), 1),
        "other": None,
        "ratio": None,
        "unit": "ms",
        "note": f"68 landmarks and identity of one face, over {len(one)} faces; no other side",
    }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the speed table here")
    parser.add_argument("--quick", action="store_true", help="fewer runs, under a minute")
    parser.add_argument("--recall", type=Path, help="write recall.md and recall.json into this folder instead")
    parser.add_argument("--faces", default="open", help="name of a config of configs/faces")
    parser.add_argument("--landmarks-only", action="store_true", help="--recall without identities, much faster")
    parser.add_argument("--gt", help="config of the ground truth, with --landmarks-only (default: --faces)")
    parser.add_argument("--spaces", nargs="+", default=SPACES, choices=SPACES, help="degradations of --recall")
    parser.add_argument("--draws", type=int, default=4, help="of every degradation for --recall")
    parser.add_argument("--photos", type=Path, help="more photos for --recall")
    options = parser.parse_args()
    if options.gt and not options.landmarks_only:
        parser.error("--gt needs --landmarks-only: identities of two networks cannot be compared.")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)

    if options.recall:
        described = {"landmarks": False, "identities": False} if options.landmarks_only else {}
        # One search's score is not a mean of two: 0.7 for open, whose own threshold is lower; others have theirs.
        min_score = min(0.7, detector(options.faces, **described).min_score)
        plain = {"min_score": min_score, "retries": [], "second_look": False}
        variants = {
            f"{options.faces}, one search": detector(options.faces, **plain, **described),
            f"{options.faces}, second look": detector(options.faces, retries=[], **described),
            options.faces: detector(options.faces, **described),
        }
        images = {name: within(image, SIDE) for name, image in photos(options.photos).items()}
        empty = {name: within(image, SIDE) for name, image in scenery().items()}
        reference = detector(options.gt or options.faces, **plain, **described)
        results = recall(
            variants, reference, images, empty, options.spaces, draws=1 if options.quick else options.draws
        )
        table = as_markdown(results)
        print(table)
        write_json(options.recall / "recall.json", results)
        with atomic_write(options.recall / "recall.md") as partial:
            partial.write_text(table, encoding="utf-8")
        return

    results = speed(options.faces, runs=3 if options.quick else 7)
    print(f"{'measure':<22}{'ours':>9}{'other':>9}{'ratio':>8}  unit")
    for name, row in results.items():
        cells = [f"{row[key]:.3f}" if row[key] is not None else "-" for key in ("ours", "other", "ratio")]
        print(f"{name:<22}{cells[0]:>9}{cells[1]:>9}{cells[2]:>8}  {row['unit']} ({row['note']})")
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
