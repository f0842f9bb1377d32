"""Whole photos cut into squares, as a source of images for a training that needs content and no faces."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from face2scene.data.building.build import BuildResult, RecordCandidate
from face2scene.data.building.prompts import plain_prompt
from face2scene.data.sources.photo_folder import photo_folder
from face2scene.image_io.arrays import ImageError, read_image, resize, to_array, to_tensor


class Textures:
    """Squares of photos that do not overlap, as a build source. One item is one file.

    FaDeX learns from crops and does not ask what is on them: a photo's background serves as well as its face. The face
    box of such an image is the image. Nothing here looks for faces, so photos of held-out people do not belong here.

    Args:
        where: see `data.real.photo_folder`.
        files: names in that folder, and how many times smaller each is taken.
        name: of the source; images are called `name_FILE_NUMBER`.
        split: `train`, `val` or `test`.
        size: side of the squares in pixels; smaller photos are left out by name.
        licence: recorded with every image.
        reference_size, detector: not used; every source is given them.
    """

    def __init__(
        self,
        where: str | Path,
        files: Mapping[str, float],
        *,
        name: str,
        split: str = "train",
        size: int,
        licence: str,
        reference_size: int | None = None,
        detector: Any = None,
    ):
        self.where, self.files, self.name, self.split = where, dict(files), name, split
        self.size, self.licence = size, licence

    @cached_property
    def folder(self) -> Path:
        return photo_folder(self.where)

    def listing(self) -> Any:
        """The names: a finished set needs no photos."""
        return sorted(self.files)

    def items(self) -> Sequence[str]:
        return list(self.files)

    def key(self, item: str) -> str:
        return f"{self.name}_{item.replace('/', '-').rsplit('.', 1)[0]}"

    def make(self, item: str) -> BuildResult:
        try:
            photo = read_image(self.folder / item)
        except (ImageError, OSError) as error:
            return BuildResult(rejected=[(f"{self.name}/{item}", f"unreadable: {error}")])
        shrink = self.files[item]
        height, width = (round(side / shrink) for side in photo.shape[:2])
        rows, columns = height // self.size, width // self.size
        if not rows or not columns:
            reason = f"too small: {width} x {height} pixels, data.size is {self.size}"
            return BuildResult(rejected=[(f"{self.name}/{item}", reason)])
        if shrink != 1:
            photo = to_array(resize(to_tensor(photo), (height, width)))
        top, left = (height - rows * self.size) // 2, (width - columns * self.size) // 2
        drafts = []
        for number in range(rows * columns):
            y, x = top + number // columns * self.size, left + number % columns * self.size
            drafts.append(
                RecordCandidate(
                    name=f"{self.key(item)}_{number}",
                    image=photo[y : y + self.size, x : x + self.size],
                    reference=None,
                    split=self.split,
                    identity=f"{self.key(item)}_{number}",
                    prompt=plain_prompt("close-up"),
                    shot="close-up",
                    face_box=(0.0, 0.0, float(self.size), float(self.size)),
                    landmarks_68=None,
                    vector=None,
                    source=self.name,
                    licence=self.licence,
                    generator={"name": "photo", "file": item, "shrink": shrink, "crop": [x, y, self.size]},
                )
            )
        return BuildResult(drafts)
