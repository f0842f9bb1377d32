"""People of photos in prompted scenes: accepted and rejected images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from face2scene.common.types import Face
from face2scene.data.building.build import BuildError, build, rejected_rows
from face2scene.data.generators.base import GeneratorError, JobFailed
from face2scene.data.records import read_manifest
from face2scene.data.sources.prompted import PromptedPeople, celebref_split
from face2scene.data.verify import verify
from face2scene.faces.detect import Detector


class ColourDetector(Detector):
    """A face in every image that is not uniform; identity and cosine follow from the red of the first pixel."""

    def __init__(self):
        super().__init__(None)
        self.same_threshold = 0.5

    def find(self, image):
        if image.std() < 1e-4:
            return []
        angle = image[0, 0, 0] * np.pi / 2
        height, width = image.shape[:2]
        small = Face((0, 0, 4, 4), 0.9, np.zeros((5, 2)), None, np.array([0.0, 1.0]), "colour")
        vector = np.array([np.cos(angle), np.sin(angle)])
        return [small, Face((5, 5, width + 3, height - 5), 0.9, np.zeros((5, 2)), np.zeros((68, 2)), vector, "colour")]


class ScriptedGenerator:
    """Images by a list: the cosine to the reference, None for no face, an error for a failure."""

    def __init__(self, script):
        self.script, self.jobs = script, []

    def about(self):
        return {"name": "scripted"}

    def draw(self, job):
        self.jobs.append(job)
        wanted = self.script[job.number]
        if isinstance(wanted, Exception):
            raise wanted
        if wanted is None:
            return np.full((40, 32, 3), 90, np.uint8)
        image = np.full((40, 32, 3), 90, np.uint8)
        image[20:] = job.seed % 200
        image[0, 0, 0] = round(np.arccos(wanted) / (np.pi / 2) * 255)
        return image


@pytest.fixture
def celebrities(tmp_path) -> Path:
    for person in ("00002", "00003"):
        for number in (1, 2, 3):
            image = np.full((30, 30, 3), 50 + number, np.uint8)
            image[0, 0] = 0
            (tmp_path / "celebs" / person).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "celebs" / person / f"{number}.png")
    return tmp_path / "celebs"


def make_source(folder, script, **changes) -> PromptedPeople:
    options = {"prompts_per_person": 2, "licence": "none", "reference_size": 16} | changes
    return PromptedPeople(folder, ScriptedGenerator(script), ColourDetector(), **options)


def test_accepts_three_and_counts_rejects(celebrities, tmp_path):
    script = [0.2, None, 0.9, JobFailed("no face"), 0.5, 0.8, *[0.99] * 4]
    source = make_source(celebrities, script)
    summary = build(tmp_path / "set", [source], settings={}, space=None)
    records = read_manifest(tmp_path / "set")
    assert len(records) == 2 * 2 * 2  # of three accepted, one is between 0.45 and 0.55
    assert [job.number for job in source.generator.jobs[:7]] == [0, 1, 2, 3, 4, 5, 0]  # and no try after the third
    assert dict(summary.rejected) == {
        "another person": 4,
        "no face found": 4,
        "the generator failed": 4,
        "not similar enough to keep": 4,
    }
    first = records[0]
    photo = first.generator["photo"].split(".")[0]
    assert Path(first.image).name == f"iden_00002_img_{photo}_sample_0_repeat_1.png"
    assert first.identity == "00002" and first.prompt.count(".") == 4 and first.shot in ("mid-up", "full-body")
    assert first.similarity == pytest.approx(0.9, abs=0.01)
    assert first.generator["seed"] == source.generator.jobs[2].seed and first.generator["try"] == 3
    assert len({job.seed for job in source.generator.jobs}) == len(source.generator.jobs)
    assert len(first.references) == 3 and first.references[0].endswith(f"people/00002/{photo}.png")
    assert first.face_box == (5.0, 5.0, 32.0, 35.0)  # of the largest face, inside the image
    assert (first.width, first.height) == (32, 40)
    assert {r.identity: r.split for r in records} == {"00002": "train", "00003": "val"}
    with Image.open(tmp_path / "set" / first.references[0]) as reference:
        assert reference.size == (16, 16)
    assert list(verify(tmp_path / "set")) == []


def test_prompt_is_dropped_after_ten_tries(celebrities):
    source = make_source(celebrities, [0.1] * 20)
    made = source.make(("00002", 0))
    assert not made.candidates and len(made.rejected) == len(source.generator.jobs) == 10


def test_unusable_photos_are_quarantined(celebrities, tmp_path):
    (celebrities / "00003" / "1.png").write_text("cut")
    Image.new("RGB", (30, 30), "grey").save(celebrities / "00003" / "2.png")
    (celebrities / "00009").mkdir()
    summary = build(tmp_path / "set", [make_source(celebrities, [0.9] * 10)], settings={}, space=None)
    left = {row["name"]: row["reason"].split(":")[0] for row in rejected_rows(tmp_path / "set")}
    assert left["00003/1.png"] == "unreadable" and left["00003/2.png"] == "no face found on this photo of a person"
    assert left["synthetic_00009_0000"] == "no photo of this person is usable" and summary.quarantined == 3
    with pytest.raises(BuildError, match="no sub-folder per person"):
        make_source(celebrities / "00009", []).items()


def test_generator_is_checked_before_build(celebrities, tmp_path):
    source = make_source(celebrities, [])
    source.generator.check = lambda: (_ for _ in ()).throw(GeneratorError("no weights"))
    with pytest.raises(GeneratorError, match="no weights"):
        build(tmp_path / "set", [source], settings={}, space=None)
    assert not (tmp_path / "set" / "parts").exists() and source.generator.jobs == []


def test_celebref_val_split_has_100_people():
    split = celebref_split()
    assert len(split) == 100 and set(split.values()) == {"val"}
    assert {"00003", "01003"} <= split.keys() and all(len(name) == 5 for name in split)
