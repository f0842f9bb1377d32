"""Stage I: the stand-ins, and the cache of restored faces."""

import os

import numpy as np
import pytest
import torch
from fake_ref_fr import Negative, faces
from PIL import Image

from face2scene.faces.align import FFHQ_512, Similarity
from face2scene.image_io.arrays import read_tensor, write_png
from face2scene.ref_fr import CalibratedPerturbation, Copy, FaceRestorationError, GroundTruth, Perturbed, face_pair
from face2scene.ref_fr.base import RestorerUnavailableError, covered_box, in_bytes
from face2scene.ref_fr.cache import Cached
from face2scene.ref_fr.faceme.model import FaceMe
from face2scene.ref_fr.no_reference import SpandrelFace

# --- stand-ins


def test_copy_and_ground_truth_are_exact():
    degraded, gt = faces(2)
    rng = np.random.default_rng(0)
    assert torch.equal(Copy().restore(degraded, (), gt=gt, rng=rng), degraded)
    assert torch.equal(GroundTruth().restore(degraded, (), gt=gt, rng=rng), gt)


def test_perturbation_blends_blurs_and_shifts():
    gt = torch.zeros(3, 64, 64)
    gt[:, 32, :] = 1
    given = {"gt": gt, "rng": np.random.default_rng(0)}
    assert torch.equal(CalibratedPerturbation(0, 2, 2, 0.1).restore(gt, (), **given), gt)
    places = torch.linspace(0, 1, 128)
    ramps = torch.stack([places.expand(128, 128), places[:, None].expand(128, 128), torch.full((128, 128), 0.5)])
    moved = CalibratedPerturbation(1, 0, 3, 0).restore(ramps, (), gt=ramps, rng=np.random.default_rng(0))
    path = ((moved - ramps) * 127)[:, 8:-8, 8:-8].square().sum(0).mean().sqrt()
    assert path == pytest.approx(3, rel=0.25)
    soft = CalibratedPerturbation(1, 2, 0, 0).restore(gt, (), **given)
    assert soft[0, 32, 32] == pytest.approx(1 / (2 * (2 * np.pi) ** 0.5), abs=0.01)
    with pytest.raises(ValueError, match="give gt=FOLDER"):
        CalibratedPerturbation(1, 0, 0, 0).restore(gt, (), gt=None, rng=np.random.default_rng(0))


TABLE_6 = {"good": (0.219, 0.375, 25.65), "medium": (0.227, 0.403, 24.73), "bad": (0.238, 0.452, 22.98)}


@pytest.mark.slow
def test_perturbations_match_table_6(weights):
    """Half of the faces they were calibrated on; PSNR and LPIPS are near, DISTS is above, all three in order."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from face2scene.common.reproducibility import REPOSITORY
    from face2scene.eval.metrics.registry import METRICS
    from face2scene.faces.align import crop, square_crop_box
    from face2scene.faces.backends.yunet_dlib import OpenBackend
    from face2scene.faces.detect import Detector
    from face2scene.image_io.arrays import resize, to_array

    finder, gts = Detector(OpenBackend(), landmarks=False, identities=False), []
    for name in ("obama.jpg", "obama2.jpg", "obama3.jpg", "biden.jpg"):
        image = read_tensor(weights("photos_face_recognition") / name)
        box = square_crop_box(finder.find(to_array(image))[0].box, tuple(image.shape[-2:]))
        gts.append(resize(crop(image, box), (256, 256)))
    scorers = [METRICS[key].build("cpu") for key in ("dists", "lpips", "psnr")]
    rows = []
    for level in TABLE_6:
        restorer = instantiate(OmegaConf.load(REPOSITORY / f"configs/ref_fr/perturbed_{level}.yaml"))
        results = [restorer.restore(t, (), gt=t, rng=np.random.default_rng(n)) for n, t in enumerate(gts)]
        with torch.no_grad():
            pair = in_bytes(torch.stack(results)), torch.stack(gts)
            rows.append([float(torch.as_tensor(scorer(*pair)).mean()) for scorer in scorers])
    assert rows[0][0] < rows[1][0] < rows[2][0] and rows[0][1] < rows[1][1] < rows[2][1]
    assert rows[0][2] > rows[1][2] > rows[2][2]
    for (dists, lpips, psnr), (dists_6, lpips_6, psnr_6) in zip(rows, TABLE_6.values(), strict=True):
        assert psnr == pytest.approx(psnr_6, abs=1.5), rows
        assert lpips == pytest.approx(lpips_6, rel=0.2), rows
        assert dists_6 * 0.9 < dists < dists_6 * 1.35, rows


# --- the cache


def test_cache_hit_equals_recomputation(tmp_path, photo_files):
    inner = Negative()
    images = faces(3)
    people = [photo_files, photo_files[:1], photo_files]
    first = Cached(inner, tmp_path / "cache").restore_aligned(images, people)
    again = Cached(inner, tmp_path / "cache", missing="refuse").restore_aligned(images.flip(0), people[::-1])[::-1]
    fresh = Negative().restore_aligned(images, people)
    assert inner.calls == [3]
    for result, hit, known in zip(first, again, fresh, strict=True):
        assert torch.equal(result.image, known.image) and torch.equal(hit.image, known.image)
        assert result.notes == hit.notes == known.notes


def test_cache_key_is_content(tmp_path, photo_files):
    inner = Negative()
    other = tmp_path / "elsewhere.png"
    other.write_bytes(photo_files[0].read_bytes())
    image = faces(1)[0]
    cache = Cached(inner, tmp_path / "cache")
    assert cache.fill(torch.stack([image, image, image]), [photo_files[:1], [other], photo_files]) == 2
    assert inner.calls == [2]
    write_png(photo_files[0], np.full((40, 30, 3), 0.9, np.float32))  # a reference that changes is another one
    os.utime(photo_files[0], ns=(1, 1))
    assert cache.fill(image[None], [photo_files[:1]]) == 1


def test_stale_or_empty_cache_raises(tmp_path, photo_files):
    with pytest.raises(FileNotFoundError, match="holds no face of this ref_fr=negative"):
        Cached(Negative(), tmp_path / "cache", missing="refuse")
    Cached(Negative(), tmp_path / "cache").fill(faces(1), [photo_files])
    with pytest.raises(FileNotFoundError, match=r"other weights, settings or code \(negative-1\)"):
        Cached(Negative("2"), tmp_path / "cache", missing="refuse")
    with pytest.raises(FileNotFoundError, match="1 of 2 faces are not in the cache"):
        Cached(Negative(), tmp_path / "cache", missing="refuse").fill(faces(2), [photo_files] * 2)
    with pytest.raises(ValueError, match="cannot be cached"):
        Cached(Perturbed(), tmp_path / "cache")


def test_refusal_is_cached_per_face(tmp_path, photo_files):
    inner = Negative()
    cache = Cached(inner, tmp_path / "cache")
    images = faces(2)
    assert cache.fill(images, [photo_files, []]) == 2
    assert cache.fill(images, [photo_files, []]) == 0 and inner.calls == [1]
    assert torch.equal(cache.restore_aligned(images[:1], [photo_files])[0].image, in_bytes(1 - images[0]))
    with pytest.raises(FaceRestorationError, match="there are no references"):
        cache.restore_aligned(images[1:], [[]])


def test_stage_one_failure_is_retried(tmp_path, photo_files):
    class Busy(Negative):
        busy = True

        def restore_aligned(self, faces, references):
            if self.busy:
                raise RestorerUnavailableError("out of memory")
            return super().restore_aligned(faces, references)

    inner = Busy()
    cache = Cached(inner, tmp_path / "cache")
    with pytest.raises(RestorerUnavailableError, match="out of memory"):
        cache.fill(faces(2), [photo_files] * 2)
    inner.busy = False
    assert cache.fill(faces(2), [photo_files] * 2) == 2


def test_load_failure_is_not_cached(tmp_path, photo_files):
    missing = SpandrelFace("codeformer", str(tmp_path / "no.pth"), device="cpu")
    missing.__dict__["fingerprint"] = "x"
    with pytest.raises(FaceRestorationError, match="cannot be loaded"):
        Cached(missing, tmp_path / "cache").fill(faces(1, 512), [photo_files])
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_corrupt_cache_entry_raises(tmp_path, photo_files):
    cache = Cached(Negative(), tmp_path / "cache")
    cache.fill(faces(1), [photo_files])
    (entry,) = (tmp_path / "cache").rglob("*.png")
    with Image.open(entry) as file:
        pixels, info = np.array(file), file.text
    pixels[0, 0] += 1
    from PIL.PngImagePlugin import PngInfo

    kept = PngInfo()
    for name, value in info.items():
        kept.add_text(name, value)
    Image.fromarray(pixels).save(entry, pnginfo=kept)
    with pytest.raises(ValueError, match="not those written"):
        cache.restore_aligned(faces(1), [photo_files])
    entry.write_bytes(entry.read_bytes()[:60])
    with pytest.raises(ValueError, match="corrupt"):
        cache.restore_aligned(faces(1), [photo_files])


@pytest.mark.numerics
def test_cached_faceme_equals_fresh(tmp_path, photo_files):
    settings = {"size": 64, "steps": 2, "device": "cpu"}
    images = faces(2, 64)
    people = [photo_files, photo_files[:1]]
    Cached(FaceMe.tiny(**settings), tmp_path / "cache").fill(images, people)
    hit = Cached(FaceMe.tiny(**settings), tmp_path / "cache", missing="refuse").restore_aligned(images, people)
    fresh = FaceMe.tiny(**settings).restore_aligned(images, people)
    assert all(torch.equal(a.image, b.image) for a, b in zip(hit, fresh, strict=True))


# --- plain crops and files


def test_unaligned_crop_is_restored(photo_files):
    crop = torch.rand(3, 40, 40)
    restored = Negative().restore(crop, photo_files, gt=None, rng=np.random.default_rng(0))
    assert restored.shape == crop.shape
    pair = face_pair(Negative(), crop, (0, 0, 40, 40), references=photo_files, rng=np.random.default_rng(0))
    assert torch.equal(pair.restored, restored) and pair.notes == ("2 references",)


def test_pair_holds_restored_pixels_only(photo_files):
    roll, scene = np.pi / 4, torch.zeros(3, 200, 200)
    turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    given = {"references": photo_files, "landmarks": (FFHQ_512 - 256) / 4 @ turn.T + 100, "rng": None}
    pair = face_pair(Negative(), scene, (50, 50, 150, 150), **given)
    assert pair.restored.min() > 0.99, "a corner outside the aligned face would say that nothing is degraded"
    x0, y0, x1, y1 = pair.box
    assert x1 - x0 < 100 and pair.restored.shape == pair.degraded.shape == (3, y1 - y0, x1 - x0)


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, -135])
@pytest.mark.parametrize("shift", [0, 30])
def test_covered_box_lies_in_aligned_face(degrees, shift):
    """Around a face whose centre, (99.5, 99.5) of the scene, is the centre of an aligned face of 128 pixels."""
    angle = np.radians(degrees)
    turn = 1.3 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    transform = Similarity(np.column_stack([turn, 63.5 - turn @ [99.5, 99.5]]))
    box = (60 + shift, 60, 140 + shift, 140)
    x0, y0, x1, y1 = covered_box(box, transform, 128)
    inside = transform(np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]]) - 0.5) + 0.5
    assert inside.min() >= 0 and inside.max() <= 128 and x1 - x0 == y1 - y0
    assert x0 + x1 == box[0] + box[2] and y0 + y1 == box[1] + box[3]  # the same centre
    if degrees in (0, 90) and not shift:
        assert x1 - x0 == 80, "a crop inside the aligned face is kept whole"
    with pytest.raises(FaceRestorationError, match="covers too little"):
        covered_box((10, 10, 50, 50), transform, 128)


def test_restored_face_png_round_trip(tmp_path):
    image = faces(1)[0]
    write_png(tmp_path / "x.png", image)
    assert torch.equal(read_tensor(tmp_path / "x.png"), image)
