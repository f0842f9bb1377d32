"""Files of ours that were cut or edited end in a sentence that names them, or count as not there."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from inscene_records import record
from PIL import Image
from safetensors.torch import save_file

from face2scene.common.files import read_seconds
from face2scene.common.ledger import Ledger
from face2scene.data.records import METADATA, SUMS, ManifestError, read_manifest, write_manifest, write_sums
from face2scene.data.verify import verify
from face2scene.inference import tasks
from face2scene.inference.pretrained import OPTIONS, read_options
from face2scene.models.fadex import FaDeX

CONFIG = {"widths": [4, 4], "strides": [2, 1], "embedding": 4}


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"config": None},
        {"config": "["},
        {"config": "[1]"},
        {"config": "5"},
        {"config": "[" * 5000},
        {"config": json.dumps(CONFIG | {"widths": "many"})},
        {"config": json.dumps(CONFIG | {"widths": None})},
        {"config": json.dumps(CONFIG | {"unknown": 1})},
        {"config": json.dumps(CONFIG | {"embedding": -4})},
        {"config": json.dumps(CONFIG | {"strides": {"a": 1}})},
        {"about": "["},
    ],
)
def test_damaged_header_is_one_sentence(tmp_path, header):
    path = tmp_path / "fadex.safetensors"
    whole = {"kind": "fadex", "config": json.dumps(CONFIG), "about": "{}"} if header else {"kind": "fadex"}
    given = {key: value for key, value in (whole | header).items() if value is not None}
    save_file({"a": torch.zeros(1)}, path, metadata=given)
    with pytest.raises(ValueError, match=r"fadex\.safetensors"):
        FaDeX.from_file(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "{}", '{"options": []}', '{"options": null}', "[" * 5000, "\0"])
def test_damaged_pipeline_options_name_their_file(tmp_path, text):
    (tmp_path / OPTIONS).write_text(text)
    with pytest.raises(ValueError, match=OPTIONS):
        read_options(tmp_path)


@pytest.mark.parametrize("text", ["", '{"tr', "[1]", '{"train": "long"}', "null"])
def test_damaged_seconds_count_as_none(tmp_path, text, caplog):
    (tmp_path / "seconds.json").write_text(text)
    assert read_seconds(tmp_path / "seconds.json") == {}
    assert "is damaged" in caplog.text


def test_log_reads_an_escape_that_json_lacks(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"name": "a\\q.png", "x\n{"name": "b.png"}\n' + b"[" * 5000)
    log = Ledger(tmp_path / "a.jsonl").read()
    assert set(log.lines) == {"b.png"} and log.corrupt


@pytest.fixture
def small_set(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (16, 16)).save(path)
    write_sums(tmp_path, [])
    write_manifest(tmp_path, [record(path, (1, 1, 9, 9), landmarks_68=((1.0, 2.0),) * 68)])
    return tmp_path


WRONG = [
    *[
        (name, pa.array([None], pa.string()))
        for name in ("image", "split", "identity", "sha256", "generator", "source")
    ],
    *[(name, pa.array([None], pa.int32())) for name in ("width", "height")],
    ("image", pa.array([["a.png"]])),
    ("width", pa.array(["wide"])),
    ("height", pa.array([2**40])),
    ("similarity", pa.array(["near"])),
    ("face_box", pa.array([None], pa.list_(pa.float64()))),
    ("face_box", pa.array([[1.0, 2.0]])),
    ("face_box", pa.array([[1.0, 2.0, None, 4.0]])),
    ("face_box", pa.array(["1 2 3 4"])),
    ("landmarks_68", pa.array([[[1.0]]])),
    ("landmarks_68", pa.array([[None]], pa.list_(pa.list_(pa.float64())))),
    ("references", pa.array([None], pa.list_(pa.string()))),
    ("references", pa.array([[None]], pa.list_(pa.string()))),
    ("generator", pa.array(["{"])),
    ("generator", pa.array(["[1]"])),
    ("recipe", pa.array(["nonsense"])),
    ("recipe", pa.array(["[" * 5000])),
]


@pytest.mark.parametrize(("field", "column"), WRONG)
def test_damaged_metadata_is_one_sentence(small_set, field, column):
    table = pq.read_table(small_set / METADATA)
    pq.write_table(table.set_column(table.schema.get_field_index(field), field, column), small_set / METADATA)
    for read in (lambda: read_manifest(small_set), lambda: list(verify(small_set))):
        with pytest.raises(ManifestError, match=METADATA):
            read()


@pytest.mark.parametrize("text", ["", "\n", "x  metadata.parquet\n", "\xff\0"])
def test_empty_or_broken_checksums_are_not_sound(small_set, text):
    assert list(verify(small_set)) == []
    (small_set / SUMS).write_text(text, encoding="latin-1")
    assert f"{METADATA} is not in {SUMS}." in list(verify(small_set))


def test_shared_references_are_hashed_once(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).write_text(name)
    people = {"Ann": tuple(tmp_path / name for name in "ab")}
    jobs = [tasks.RestorationTask(tmp_path / "c", people, gt=tmp_path / "c", label=str(n)) for n in range(5)]
    expected, asked, content = [job.contents for job in jobs], [], tasks.content
    monkeypatch.setattr(tasks, "content", lambda path: asked.append(path) or content(path))
    contents = tasks.shared_contents()
    assert [contents(job) for job in jobs] == expected
    assert sum(path.name != "c" for path in asked) == 2
