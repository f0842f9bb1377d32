"""Squares of whole photos, as a source of images for a training that needs content but no faces."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from face2scene.data.building.build import BAD_INPUT, BuildResult, RecordCandidate, Rejection
from face2scene.data.building.prompts import plain_prompt
from face2scene.data.sources.photo_folder import photo_folder
from face2scene.image_io.arrays import ImageError, read_image, resize, to_array, to_tensor


@dataclass(eq=False)
class Textures:
    """Squares of photos that do not overlap. One item is one file.

    FaDeX learns from crops of any content. The face box of such an image is the whole image. No face detection takes
    place, so photos of held-out people must not be used.
    """

    where: str | Path  # see `photo_folder`
    files: Mapping[str, float]  # names in that folder, and the factor by which each is reduced
    _: KW_ONLY
    name: str  # of the source; images are called `name_FILE_NUMBER`
    split: str = "train"
    size: int  # side of the squares in pixels; smaller photos are left out
    licence: str
    reference_size: int | None = None  # not used; every source is given these two
    detector: Any = None

    def listing(self) -> Any:
        """The names: a finished set needs no photos."""
        return sorted(self.files)

    def items(self) -> Sequence[str]:
        return list(self.files)

    def key(self, item: str) -> str:
        return f"{self.name}_{item.replace('/', '-').rsplit('.', 1)[0]}"

    def make(self, item: str) -> BuildResult:
        try:
            photo = read_image(photo_folder(self.where) / item)
        except (ImageError, OSError) as error:
            return BuildResult(rejected=[Rejection(f"{self.name}/{item}", f"unreadable: {error}", BAD_INPUT)])
        shrink = self.files[item]
        height, width = (round(side / shrink) for side in photo.shape[:2])
        rows, columns = height // self.size, width // self.size
        if not rows or not columns:
            reason = f"too small: {width} x {height} pixels, data.size is {self.size}"
            return BuildResult(rejected=[Rejection(f"{self.name}/{item}", reason, "resolution")])
        if shrink != 1:
            photo = to_array(resize(to_tensor(photo), (height, width)))
        top, left = (height - rows * self.size) // 2, (width - columns * self.size) // 2
        candidates = []
        for number in range(rows * columns):
            y, x = top + number // columns * self.size, left + number % columns * self.size
            candidates.append(
                RecordCandidate(
                    name=f"{self.key(item)}_{number}",
                    image=photo[y : y + self.size, x : x + self.size],
                    split=self.split,
                    identity=f"{self.key(item)}_{number}",
                    prompt=plain_prompt("close-up"),
                    shot="close-up",
                    face_box=(0.0, 0.0, float(self.size), float(self.size)),
                    source=self.name,
                    licence=self.licence,
                    generator={"name": "photo", "file": item, "shrink": shrink, "crop": [x, y, self.size]},
                )
            )
        return BuildResult(candidates)
