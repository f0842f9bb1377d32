"""Faces for FaDeX: cut once, from loose and packed sets and mixes; those of Stage I from their own degraded face."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from fake_ref_fr import Negative
from inscene_records import record

from face2scene.data.face_crops import FaceRegions, Stored
from face2scene.data.face_pair_batches import FacePairBatches, RestoredBy
from face2scene.data.mix import Mix
from face2scene.data.precompute import faces_of, fill
from face2scene.data.records import write_manifest
from face2scene.data.shards import pack
from face2scene.degradation import Bank, Space
from face2scene.image_io.arrays import write_png
from face2scene.ref_fr.cache import Cached
from face2scene.train.dataloader import _packed, batches

SPACE = Space(scale=1, no_degradation_prob=0, kernel_sizes=(3, 5))
BATCH = {"operators": 2, "images": 1, "crop": 16, "seed": 3, "margin": 4}


def write_set(folder: Path, count: int, first: int = 0) -> Path:
    rows = []
    for number in range(first, first + count):
        write_png(folder / f"{number}.png", np.random.default_rng(number).random((72, 90, 3), dtype=np.float32))
        write_png(folder / f"r{number}.png", np.full((20, 20, 3), 0.5, np.float32))
        known = {"references": (f"r{number}.png",), "identity": str(number)}
        rows.append(record(folder / f"{number}.png", (30.0, 20.0, 60.0, 52.0), **known))
    write_manifest(folder, rows)
    return folder


@pytest.fixture
def loose(tmp_path) -> Path:
    return write_set(tmp_path / "loose", 5)


@pytest.fixture
def packed(tmp_path, loose) -> Path:
    pack(loose, tmp_path / "packed", per_shard=2)
    return tmp_path / "packed"


def pairs(folder, **options) -> FacePairBatches:
    return FacePairBatches.from_manifest(folder, "train", SPACE, **BATCH | options)


def test_packed_set_gives_the_same_batches(loose, packed):
    one, two = pairs(loose)[4], pairs(packed)[4]
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_mix_is_drawn_by_weight(tmp_path, loose, packed):
    other = write_set(tmp_path / "other", 2, first=10)
    data = pairs([{"folder": packed, "weight": 1}, {"folder": other, "weight": 3}])
    assert len(data.boxes) == data.people == 7
    rng = np.random.default_rng(0)
    drawn = Counter(number for _ in range(1000) for number in data._choose(16, 1, rng))
    assert sum(drawn[number] for number in (5, 6)) / 1000 == pytest.approx(0.75, abs=0.05)
    assert set(drawn) == set(range(7))
    faces = faces_of(data.faces.mix.folders[1], SPACE, size=32, recipes=2, splits=("train",))
    assert len(faces) == 4


def test_precompute_reads_packed_mixes(tmp_path, loose, packed):
    other = write_set(tmp_path / "other", 2, first=10)
    wanted = {"size": 32, "recipes": 2, "splits": ("train", "val")}
    apart = [faces_of(folder, SPACE, **wanted) for folder in (loose, other)]
    mixed = faces_of([{"folder": packed, "weight": 1}, {"folder": other, "weight": 3}], SPACE, **wanted)
    assert len(mixed) == 2 * 7
    for row, expected in zip(mixed, (row for part in apart for row in part), strict=True):
        assert torch.equal(row[0], expected[0]) and row[2] == expected[2]
        assert row[1][0].read_bytes() == expected[1][0].read_bytes()


class Counting(FaceRegions):
    made = 0

    def __getitem__(self, number):
        self.made += 1
        if self.made == 80:
            raise KeyboardInterrupt
        return super().__getitem__(number)


def test_interrupted_store_is_completed(tmp_path, loose):
    parts = [{"folder": loose, "weight": 1}] * 20  # a hundred faces, in two files
    images = Counting(Mix(parts), 8)
    stored = Stored(images, tmp_path / "store")
    with pytest.raises(KeyboardInterrupt):
        stored.fill()
    assert [path.is_file() for path in stored.files] == [True, False]
    images.made = 100
    stored.fill(rank=1, processes=2)
    assert images.made == 100 + 36, "what was there is not made again"
    plain = FaceRegions(Mix(parts), 8)
    assert all(np.array_equal(stored[number], plain[number]) for number in (0, 63, 64, 99))
    assert plain[0].shape == (61, 61, 3) and plain.boxes[0] == [8, 8, 53, 53]
    stored.files[1].write_bytes(b"cut")
    with pytest.raises(ValueError, match="corrupt"):
        stored[64]


def test_stored_faces_belong_to_content(tmp_path, loose, packed):
    def keep(images):
        stored = Stored(images, tmp_path / "store")
        stored.fill()
        return stored

    first = pairs(loose, keep=keep)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    again = pairs(packed, keep=keep)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    plain = pairs(loose)[1]
    assert all(torch.equal(data[1][name], plain[name]) for data in (first, again) for name in plain)
    pairs(loose, keep=keep, margin=6)
    assert len(list((tmp_path / "store").rglob("*.safetensors"))) == 2


def test_small_crops_show_whole_faces_too():
    ramp = np.broadcast_to(np.arange(160, dtype=np.uint8)[None, :, None], (160, 160, 3))
    data = FacePairBatches([ramp] * 4, [(0, 0, 160, 160)] * 4, SPACE, **BATCH | {"margin": 0})
    spans = [np.ptp(data._tile(0, 16, np.random.default_rng(seed)).numpy()) * 255 for seed in range(60)]
    assert min(spans) < 16 and max(spans) > 130
    assert np.ptp(data._tile(0, 96, np.random.default_rng(0)).numpy()) * 255 == pytest.approx(95, abs=0.1)


def test_images_leave_workers_as_bytes(loose):
    data = pairs(loose)
    packed = _packed(data.in_bytes, data[2])
    assert {name for name, tensor in packed.items() if tensor.dtype == torch.uint8} == set(data.in_bytes)
    number, batch = next(batches(data, Accelerator(cpu=True), 2, 1))
    assert number == 2
    for name, tensor in data[2].items():
        assert batch[name].dtype == tensor.dtype
        torch.testing.assert_close(batch[name], tensor, atol=1e-6, rtol=0)  # 256 values, divided anew


@dataclass(frozen=True)
class Shade:
    """A degradation to one grey, which differs between operators and, less, between noise seeds."""

    value: float
    noise_seed: int = field(default=0, compare=False)
    error: ClassVar[float] = 0.0  # of this processor

    @property
    def key(self) -> str:
        return f"{round(self.value * 1e6):016x}"

    def with_noise_seed(self, noise_seed):
        return replace(self, noise_seed=noise_seed)

    def apply(self, image):
        return torch.full_like(image, 0.1 + 0.6 * self.value + self.noise_seed % 16 / 255 + self.error)


class Shades:
    def draw(self, rng):
        return Shade(float(rng.random()))


@pytest.fixture
def restored(tmp_path, loose, monkeypatch):
    """A training that reads what Stage I restored on a processor whose degraded pixels differ."""
    inner, space, recipes = Negative(), Bank(Shades(), 2), 8
    faces = faces_of(loose, space, size=32, recipes=recipes, splits=("train",))
    assert not fill(Cached(inner, tmp_path / "cache"), faces, batch=8).problems
    calls = list(inner.calls)
    monkeypatch.setattr(Shade, "error", 2 / 255)
    reader = Cached(inner, tmp_path / "cache", missing="refuse")

    def keep(images):
        stored = Stored(images, tmp_path / "store")
        stored.fill()
        return stored

    def make(**options):
        stage_one = RestoredBy(reader, options.pop("gt_share", 0.0))
        given = BATCH | {"images": 2, "recipes": recipes, "restore": stage_one, "keep": keep} | options
        return FacePairBatches.from_manifest(loose, "train", space, **given)

    yield make
    assert inner.calls == calls, "a training restored a face"


def test_stage_one_restores_own_degraded_face(restored):
    batch = restored()[0]
    assert len(batch["labels"].unique()) == 2
    for view in ("query", "key"):
        face, degraded = batch[f"{view}_restored"], batch[f"{view}_degraded"]
        assert face.shape == (4, 3, 16, 16)
        # the negative of this very face, which was 2 levels darker where it was restored
        torch.testing.assert_close(face, 1 - degraded + 2 / 255, atol=1.01 / 255, rtol=0)
    greys = batch["query_degraded"].flatten(1).mean(1)
    assert greys.std() > 0.01
    clean = restored(gt_share=1.0)[0]["query_restored"]
    assert clean.flatten(1).std(1).min() > 0.1


def test_bank_of_restored_faces_is_checked(restored):
    with pytest.raises(ValueError, match=r"Of 2 operators 2 have 4 faces.*degradation=paper_bank"):
        restored(operators=3)
    with pytest.raises(ValueError, match=r"train\.fadex\.augment=false"):
        restored(augment=True)
