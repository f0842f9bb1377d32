"""RAW files: development settings, EXIF data, and the developed images."""

import numpy as np
import pytest
from dng import write_dng
from image_measures import psnr

from face2scene.common.types import Face
from face2scene.data.building.build import build, rejected_rows
from face2scene.data.records import read_manifest
from face2scene.data.sources.raw_photos import MotionBlurFilter, RawPhotos
from face2scene.data.verify import verify
from face2scene.faces.detect import Detector
from face2scene.image_io.photos import read_photo
from face2scene.image_io.raw import Development, RawError, develop

SRGB_OPTIONS = {"gamma": (2.4, 12.92), "auto_bright": False}


def test_dng_round_trip_psnr(tmp_path, photo):
    made = develop(write_dng(tmp_path / "a.dng", photo), Development(**SRGB_OPTIONS))
    height, width = made.image.shape[:2]
    inner = photo[:height, :width]
    assert psnr(made.image, inner) > 33.5  # what is lost is demosaicing; benchmarks and notes name the figure
    flat = np.full((64, 64, 3), (0.6, 0.4, 0.3), np.float32)
    made = develop(write_dng(tmp_path / "flat.dng", flat), Development(**SRGB_OPTIONS))
    assert psnr(made.image[8:-8, 8:-8], flat[8:-8, 8:-8]) > 45  # colours, levels and white balance alone


def test_every_develop_option_has_effect(tmp_path, photo):
    path = write_dng(tmp_path / "a.dng", photo[100:260, 150:310])
    base = develop(path, Development(**SRGB_OPTIONS)).image
    for change in (
        *({"white_balance": "auto"}, {"white_balance": (1.0, 1.0, 1.0, 1.0)}, {"demosaic": "LINEAR"}),
        *({"gamma": (1, 1)}, {"auto_bright": True}, {"brightness": 2.0}, {"exposure_shift": 0.5}),
        *({"colour": "XYZ"}, {"median_passes": 3}, {"black": 0}, {"white": 8000}),
        *({"output_bps": 8}, {"flip": 3}),
    ):
        other = develop(path, Development(**SRGB_OPTIONS | change)).image
        assert other.shape == base.shape and np.abs(other - base).max() > 0, change
    assert develop(path, Development(half_size=True)).image.shape[0] == base.shape[0] // 2
    for wrong in ({"white_balance": "moon"}, {"demosaic": "BEST"}, {"output_bps": 12}, {"highlights": "no"}):
        with pytest.raises(ValueError, match=f"develop.{next(iter(wrong))}"):
            Development(**wrong)


def test_exif_facts_are_read(tmp_path, photo):
    facts = develop(write_dng(tmp_path / "a.dng", photo[:64, :64], iso=3200, exposure=(1, 40))).facts
    assert facts["camera"] == "Synthetic Camera" and facts["iso"] == 3200
    assert facts["exposure_s"] == pytest.approx(1 / 40, abs=1e-6)


def test_sony_raw_is_developed_with_exif(weights):
    path = weights("sony_raw") / "_DSC2164.ARW"
    made = develop(path, Development(half_size=True))
    assert made.image.shape == (1724, 2584, 3) or min(made.image.shape[:2]) > 1700
    assert 0.02 < made.image.mean() < 0.6 and made.image.max() <= 1
    assert made.facts["camera"] == "SONY ILCE-7RM3" and made.facts["iso"] == 3200
    assert made.facts["exposure_s"] == pytest.approx(1 / 640, abs=1e-6)
    assert made.facts["lens"] == "E 55-210mm F4.5-6.3 OSS" and made.facts["time"].startswith("2018-07-11T01:18")
    blue = develop(path, Development(half_size=True, white_balance="camera")).image.mean((0, 1))
    natural = develop(path, Development(half_size=True, white_balance="auto")).image.mean((0, 1))
    assert blue[2] / blue[0] > 1.2 * natural[2] / natural[0]  # stage light: the camera's balance leaves it blue


def test_unknown_raw_is_refused(tmp_path):
    (tmp_path / "odd.nef").write_bytes(b"MM\0*" + bytes(3000))
    with pytest.raises(RawError, match=r"odd\.nef cannot be developed"):
        develop(tmp_path / "odd.nef")
    (tmp_path / "fine.dng").write_bytes(b"")
    with pytest.raises(RawError):
        develop(tmp_path / "fine.dng")


def test_read_photo_equals_develop(tmp_path, photo):
    path = write_dng(tmp_path / "a.dng", photo[:64, :64])
    assert np.array_equal(read_photo(path).image, develop(path).image)


class CentreDetector(Detector):
    """A face in the middle, whose identity vector follows from the hue."""

    def __init__(self):
        super().__init__(None)
        self.same_threshold = 0.9

    def find(self, image):
        height, width = image.shape[:2]
        vector = image.mean((0, 1)) - image.mean() + 1e-6
        box = (width * 0.2, height * 0.2, width * 0.8, height * 0.8)
        return [Face(box, 0.9, np.zeros((5, 2)), None, vector / np.linalg.norm(vector), "hue")]


def tint_crop(photo: np.ndarray, colour) -> np.ndarray:
    return (photo[100:228, 150:278] * 0.4 + np.array(colour, np.float32) * 0.6).astype(np.float32)


def test_raw_folder_becomes_test_set(tmp_path, photo):
    from PIL import Image

    red, blue = tint_crop(photo, (0.8, 0.1, 0.1)), tint_crop(photo, (0.1, 0.1, 0.8))
    for person, image in (("ann", red), ("ben", blue)):
        (tmp_path / "gallery" / person).mkdir(parents=True)
        for number in range(2):
            shown = (image * (1 - 0.1 * number) * 255).astype(np.uint8)
            Image.fromarray(shown).save(tmp_path / "gallery" / person / f"{number}.png")
    (tmp_path / "gallery/ann/cut.png").write_bytes(b"cut")
    write_dng(tmp_path / "raws/ben/IMG_1.dng", blue, iso=1600, exposure=(1, 30))
    write_dng(tmp_path / "raws/IMG_2.dng", red, iso=800)  # in no folder: matched
    (tmp_path / "raws/IMG_3.dng").write_bytes(b"cut")
    (tmp_path / "raws/notes.txt").write_text("10 people")
    source = RawPhotos(
        *(tmp_path / "raws", CentreDetector()),
        **{"name": "raws", "licence": "mine", "gallery": tmp_path / "gallery", "reference_size": 64},
        develop={"white_balance": "camera", **SRGB_OPTIONS},
        motion_blur={"listed": ["ben/*"]},
    )
    summary = build(tmp_path / "set", [source], settings={}, space=None)
    records = {record.generator["file"]: record for record in read_manifest(tmp_path / "set", "test")}
    assert {file: record.identity for file, record in records.items()} == {
        "ben/IMG_1.dng": "raws_ben",
        "IMG_2.dng": "raws_ann",
    }
    record = records["ben/IMG_1.dng"]
    assert (
        record.generator["develop"]["gamma"] == [2.4, 12.92]
        and record.generator["develop"].keys() == Development().as_record().keys()
    )
    assert record.generator["exif"]["iso"] == 1600 and record.generator["exif"]["exposure_s"] == pytest.approx(
        1 / 30, abs=1e-6
    )
    assert record.generator["motion_blur"] == {"flag": True, "by": "list"}
    assert not records["IMG_2.dng"].generator["motion_blur"]["flag"]
    assert [record.generator["person_by"], records["IMG_2.dng"].generator["person_by"]] == ["folder", "gallery"]
    assert len(record.references) == 2 and record.similarity > 0.9 and record.lq is None
    assert summary.quarantined == 2 and list(verify(tmp_path / "set")) == []
    left = {row["name"]: row["reason"].split(":")[0] for row in rejected_rows(tmp_path / "set")}
    assert left == {
        "gallery/ann/cut.png": "unreadable",
        "raws/IMG_3.dng": "unreadable",
        "raws/notes.txt": "not a RAW file",
    }


def test_motion_blur_flag_from_edges(photo):
    from scipy import ndimage

    from face2scene.data.building.photo_filtering import Candidate, CropSpec

    def flag(image, exposure=0.02):
        face = Face((0, 0, image.shape[1], image.shape[0]), 0.9, np.zeros((5, 2)))
        notes = {"exif": {"exposure_s": exposure}}
        candidate = Candidate("x", image.astype(np.float32), CropSpec(None), face, notes=notes)
        assert MotionBlurFilter(min_exposure_s=0.008)(candidate) == ""
        return candidate.notes["motion_blur"]["flag"]

    head = photo[40:240, 130:330]
    moved = ndimage.uniform_filter1d(head, 15, axis=1)
    assert [flag(head), flag(moved), flag(moved, exposure=0.001)] == [False, True, False]
    assert not flag(ndimage.gaussian_filter(head, (3, 3, 0)))  # out of focus is not moved
