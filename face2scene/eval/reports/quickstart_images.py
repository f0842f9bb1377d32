"""The images of the quickstart's page with their scores: portraits, and scenes at three degradations.

Whole image, face and background of a scene are scored apart, so that the page can say whether the background gains too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from face2scene.data.records import Record, read_manifest
from face2scene.eval.scoring.pairing import boxes_of
from face2scene.eval.scoring.regions import REGIONS, Region
from face2scene.eval.scoring.score import score_folders
from face2scene.eval.tables.render import html_table, row_from_scores
from face2scene.image_io.arrays import read_image, write_png
from face2scene.inference.log import RESTORATION_LOG

SCENE_METRICS = ("psnr", "lpips")  # two of the fast ones: every image is scored three times
DEGRADATIONS = {  # folders of the run, and of the sets
    "tiny": "strong: blur, noise or blocks, as in the portraits (degradation=tiny)",
    "paper_same_size": "the paper's training degradation at full size (degradation=paper_same_size)",
    "phone": "a phone at ISO 800 to 3200: lens, hand shake, sensor noise, upload (degradation=phone)",
}
_ROWS = {"input": "degraded input", "restored": "restored, weights that restore photos by default"}


@dataclass(frozen=True)
class ImageGroup:
    """Images of one set, in several versions."""

    title: str
    dataset: Path  # the InScene folder, with the ground truth
    folders: Mapping[str, Path]  # view -> folder with `images`, scores and log; `input` and `restored` among them
    records: Mapping[str, Record]  # by name

    @classmethod
    def read(cls, title: str, dataset: Path, folders: Mapping[str, Path], split: str = "val") -> "ImageGroup":
        """The pairs of a set; writes their degraded images as those of the view `input`."""
        records = {Path(record.image).stem: record for record in read_manifest(dataset, split=split) if record.lq}
        for name, record in records.items():  # written again, so that they are of this set
            write_png(folders["input"] / "images" / f"{name}.png", read_image(dataset / str(record.lq)))
        return cls(title, dataset, folders, records)

    def images(self, name: str) -> dict[str, Path]:
        """Files of an image by view."""
        made = {view: folder / "images" / f"{name}.png" for view, folder in self.folders.items()}
        return made | {"truth": self.dataset / self.records[name].image}

    def scored(self, metrics: Sequence[str], device: str, regions: Sequence[Region] = ("whole",)) -> dict[str, Any]:
        """The contents of scores.json of every view's folder, which is scored where it is not yet."""
        gts = {name: self.images(name)["truth"] for name in self.records}
        rows = {view: (folder, folder) for view, folder in self.folders.items()}
        return score_folders(rows, gts, metrics, device=device, boxes=boxes_of(self.dataset), regions=regions)

    def region_table(self) -> Markup:
        """Means and 95 % intervals of the input and the restoration in each region."""
        rows = [
            row_from_scores(f"{region}: {title}", folder / "scores.json", SCENE_METRICS)
            for region in REGIONS
            for view, title in _ROWS.items()
            for folder in [self.folders[view] / ("" if region == "whole" else region)]
        ]
        return html_table(rows, SCENE_METRICS, contenders=[])


def scored_scenes(run: Path, scenes: Path, device: str) -> tuple[list[ImageGroup], dict[str, Any]]:
    """The restorations in `run`/scenes/NAME of the sets `scenes`/NAME, for each of `DEGRADATIONS` that was restored.

    Returns:
        The groups; and their means, by name, region, view and metric.
    """
    groups, means = [], {}
    for name, title in DEGRADATIONS.items():
        folder = run / "scenes" / name
        if (folder / RESTORATION_LOG).is_file():
            group = ImageGroup.read(title, scenes / name, {"input": folder / "input", "restored": folder})
            found = group.scored(SCENE_METRICS, device, tuple(REGIONS))
            parts = {view: {"whole": one, **one["regions"]} for view, one in found.items()}
            means[name] = {region: {view: parts[view][region]["means"] for view in parts} for region in REGIONS}
            groups.append(group)
    return groups, means
