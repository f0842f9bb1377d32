"""Generated people in photos of places: images in which a person is small and a background is large."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from face2scene.common.optional import import_optional
from face2scene.data.building.photo_filtering import resized
from face2scene.data.generators.base import GenerationRequest, Generator
from face2scene.data.sources.photo_folder import photo_folder
from face2scene.image_io.arrays import read_image

_CUT = 256  # side in pixels at which a person is cut out
_SHOWN = 0.88  # of a portrait's height; its lower corners, where the shoulders end at its border, lie below the image


class PeopleInPlaces:
    """Portraits of another generator, set before photos; the images of a person are in the places in turn.

    A place is FOLDER/FILE (the folder as in `photo_folder`), the left border of the square that is cut from the photo,
    as a share of the room for it, and that of the portrait in the square. `height` is the portraits', as a share of it.
    """

    def __init__(self, people: Callable[[], Generator], places: Sequence[tuple[str, float, float]], height: float):
        self.people, self.places, self.height = people(), places, height

    def draw(self, request: GenerationRequest) -> np.ndarray:
        """uint8 (S, S, 3), S the shorter side of the place's photo."""
        place, start, left = self.places[request.number % len(self.places)]
        folder, _, file = place.rpartition("/")
        photo = read_image(Path(photo_folder(folder)) / file)
        side = min(photo.shape[:2])
        y, x = (round(start * (length - side)) for length in photo.shape[:2])
        image = in_front_of(photo[y : y + side, x : x + side], self.people.draw(request), left, self.height)
        return (image * 255).round().astype(np.uint8)


def in_front_of(photo: np.ndarray, portrait: np.ndarray, left: float, height: float) -> np.ndarray:
    """A person before a photo, float32 (H, W, 3) in [0, 1] like the photo; the portrait is as `cut_out` takes it.

    The portrait's left border and height are shares of the photo's width and height.
    """
    rows, columns = photo.shape[:2]
    side, x = round(height * rows), round(left * columns)
    shown, wide = round(_SHOWN * side), min(side, columns - x)
    images = (resized(image, side)[:shown, :wide] for image in (cut_out(portrait), portrait))
    opacity, person = (image.astype(np.float32) / 255 for image in images)
    image = photo.astype(np.float32)  # a copy
    part = image[rows - shown :, x : x + wide]
    part += opacity * (person - part)
    return image


def cut_out(portrait: np.ndarray) -> np.ndarray:
    """The opacity of the person in a portrait with the face in its middle: uint8 (S, S, 3) to uint8 (256, 256, 3).

    By GrabCut (Rother et al. 2004), edges softened. An ellipse about the face and the neck surely are the person, the
    border above the shoulders is not; the rest is decided by colour. Raises ModuleNotFoundError without OpenCV.
    """
    cv2 = import_optional("cv2", "quickstart", why="Cutting people out")
    y, x = np.mgrid[:_CUT, :_CUT] / _CUT
    around, head = (
        ((x - 0.5) / w) ** 2 + ((y - m) / h) ** 2 < 1 for m, w, h in ((0.48, 0.42, 0.46), (0.45, 0.22, 0.33))
    )
    mask = np.full((_CUT, _CUT), cv2.GC_PR_BGD, np.uint8)
    mask[around | (y > 0.84)] = cv2.GC_PR_FGD
    mask[head | ((y > 0.75) & (abs(x - 0.5) < 0.16))] = cv2.GC_FGD
    mask[(y < 0.02) | ((y < 0.75) & (abs(x - 0.5) > 0.47))] = cv2.GC_BGD
    cv2.setRNGSeed(0)  # of its clustering: the same portrait gives the same bytes
    cv2.grabCut(resized(portrait, _CUT), mask, None, np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    inside = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8) * 255
    inside = cv2.erode(cv2.morphologyEx(inside, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)), np.ones((3, 3), np.uint8))
    return np.repeat(cv2.GaussianBlur(inside, (0, 0), 1.2)[..., None], 3, axis=2)
