"""Stage I for a whole set: precomputed once, read in training and validation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_ref_fr import Negative
from inscene_records import record

from face2scene.data.precompute import faces_of, fill
from face2scene.data.records import write_manifest
from face2scene.data.scene_batches import SceneBatches, held_out
from face2scene.degradation import Space
from face2scene.image_io.arrays import write_png
from face2scene.ref_fr import FaceRestorationError
from face2scene.ref_fr.cache import Cached


@pytest.fixture
def inscene(tmp_path) -> Path:
    """Four training images, two of one content, and a fixed pair; every face in the middle."""
    folder, rng = tmp_path / "set", np.random.default_rng(0)
    landmarks = np.zeros((68, 2))
    landmarks[36:42], landmarks[42:48] = (40, 44), (56, 44)
    landmarks[30], landmarks[48], landmarks[54] = (48, 54), (42, 60), (54, 60)
    records = []
    for number in range(5):
        image = folder / f"{number}.png"
        if number == 3:
            image.write_bytes((folder / "2.png").read_bytes())
        else:
            write_png(image, rng.random((96, 96, 3), dtype=np.float32))
        reference = folder / f"r{number}.png"
        write_png(reference, np.full((40, 30, 3), 0.5, np.float32))
        known = {"split": "val" if number == 4 else "train", "references": (reference.name,)}
        points = tuple(map(tuple, landmarks)) if number else None
        records.append(record(image, (36.0, 36.0, 60.0, 64.0), landmarks_68=points, **known))
    write_png(folder / "lq.png", rng.random((96, 96, 3), dtype=np.float32))
    records[4] = replace(records[4], lq="lq.png", recipe={"operators": []})
    write_manifest(folder, records)
    return folder


def test_scene_batches_read_precomputed(tmp_path, inscene):
    space, inner = Space(), Negative()
    cache = Cached(inner, tmp_path / "cache")
    everything = {"size": 32, "recipes": 2, "splits": ("train", "val", "test")}
    shares = [faces_of(inscene, space, **everything, rank=rank, processes=2) for rank in range(2)]
    assert sum(map(len, shares)) == 2 * 4 + 1
    summaries = [fill(cache, share, batch=3) for share in shares]
    assert sum(s.new for s in summaries) == 2 * 3 + 1, "two images of one content need one restoration"
    again = [fill(cache, share, batch=2) for share in shares]
    assert sum(s.new for s in again) == 0 and not any(s.problems for s in again)
    before = list(inner.calls)
    reader = Cached(inner, tmp_path / "cache", missing="refuse")
    options = {"crop": 64, "batch": 4, "negative_prob": 0.2, "token_dropout": 0.0, "seed": 3}
    batches = SceneBatches(inscene, space, reader, **options, recipes=2)
    for index in range(4):
        batch = batches[index]
        assert not batch["drop"].any()
        for restored, degraded in zip(batch["restored"], batch["degraded"], strict=True):
            # a negative of the degraded face, to what warping there and back takes away
            assert restored.shape == degraded.shape and (restored + degraded - 1).abs().mean() < 0.25
    (pair,) = held_out(inscene, reader, count=1, seed=0)
    assert pair.pair.notes == ("1 references",) and inner.calls == before
    with pytest.raises(FileNotFoundError, match=r"train\.restorer\.batches\.recipes"):
        fresh = SceneBatches(inscene, space, reader, **options)
        fresh[0]


def test_refused_face_drops_tokens(inscene):
    class Never(Negative):
        def restore_aligned(self, faces, references):
            raise FaceRestorationError("no")

    options = {"crop": 64, "batch": 3, "negative_prob": 0.0, "token_dropout": 0.0, "seed": 3}
    batch = SceneBatches(inscene, Space(), Never(), **options)[0]
    assert batch["drop"].all() and torch.equal(batch["restored"][0], batch["degraded"][0])


def test_fill_counts_refusals(tmp_path, inscene):
    class Never(Negative):
        def restore_aligned(self, faces, references):
            raise FaceRestorationError("no face in them")

    cache = Cached(Never(), tmp_path / "cache")
    jobs = faces_of(inscene, Space(), size=32, recipes=1, splits=("val",))
    summary = fill(cache, jobs, batch=4)
    assert (summary.seen, dict(summary.reasons)) == (1, {"no face in them": 1})
