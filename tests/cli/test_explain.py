"""Every output says where it comes from, and `face2scene explain` finds it."""

import json

import numpy as np
import pytest
from PIL import Image

from face2scene.cli.explain import explain
from face2scene.cli.main import main
from face2scene.common.ledger import content
from face2scene.common.provenance import provenance
from face2scene.common.reproducibility import REPOSITORY, commit
from face2scene.eval.reports.gallery import write_report
from face2scene.eval.scoring.score import score_folder
from face2scene.inference.batch import restore_folder
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.inference.tasks import find_tasks
from face2scene.models.fadex import FaDeX

TINY = REPOSITORY / "checkpoints/tiny"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A photo restored, scored and shown in a report, and the pipeline saved."""
    place = tmp_path_factory.mktemp("outputs")
    (place / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(place / "in/a.png")
    pipeline = Face2ScenePipeline.from_pretrained(TINY)
    restore_folder(pipeline, find_tasks(place / "in"), place / "out")
    score_folder(place / "out", place / "in", ("psnr",), place / "scored")
    write_report(place / "report", {"ours": place / "scored"}, place / "in", title="a report")
    pipeline.save_pretrained(place / "saved")
    return place


def weights_of(record) -> dict[str, str]:
    return {name: one["sha256"] for name, one in record["weights"].items()}


SHIPPED = {name: content(TINY / f"{name}.safetensors") for name in ("restorer", "fadex")}


def test_image_names_weights_and_settings(outputs):
    found = explain(outputs / "out/images/a.png")
    record = found["provenance"]
    assert found["unchanged"]
    assert weights_of(record) == SHIPPED
    assert record["commit"] == commit()
    assert record["versions"]["torch"] and record["machine"]["processor"]
    assert len(record["config"]) == 16
    assert found["input"]["sha256"] == content(outputs / "in/a.png")


def test_changed_image_is_told(outputs, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "restore.jsonl").write_bytes((outputs / "out/restore.jsonl").read_bytes())
    Image.new("RGB", (48, 48)).save(tmp_path / "images/a.png")
    assert explain(tmp_path / "images/a.png")["unchanged"] is False


@pytest.mark.parametrize("name", ["scored/scores.json", "scored/scores.csv", "scored"])
def test_scores_name_what_made_the_images(outputs, name):
    found = explain(outputs / name)
    (made_by,) = found["provenance"]["predictions"]
    assert weights_of(made_by) == SHIPPED
    assert found["provenance"]["data"] == found["truth"]["sha256"]


def test_report_foot_has_the_record(outputs):
    row = explain(outputs / "report/report.html")["provenance"]["rows"]["ours"]
    assert weights_of(row["predictions"][0]) == SHIPPED


@pytest.mark.parametrize("name", ["saved", "saved/README.md", "saved/face2scene.json"])
def test_model_card_names_hashes(outputs, name):
    restorer = content(outputs / "saved/restorer.safetensors")
    assert weights_of(explain(outputs / name)["provenance"])["restorer"] == restorer
    assert restorer in (outputs / "saved/README.md").read_text(encoding="utf-8")


def test_weights_show_their_header(tmp_path, capsys):
    FaDeX(widths=[8, 8], strides=[2, 1], embedding=8).save(tmp_path / "a.safetensors", about={"run": "x", "steps": 3})
    assert main(["explain", str(tmp_path / "a.safetensors")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "fadex" and found["about"]["steps"] == 3
    assert found["about"]["versions"] == provenance()["versions"]
    assert found["sha256"] == content(tmp_path / "a.safetensors")


def test_run_folder_and_its_files_are_explained(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "commit.txt").write_text("abc\n")
    (tmp_path / "metrics.jsonl").write_text("")
    for path in (tmp_path, tmp_path / "metrics.jsonl"):
        found = explain(path)
        assert (found["is"], found["commit"]) == ("a run", "abc")
        assert found["config_sha256"] == content(tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["nothing.png", "unknown.bin"])
def test_unknown_file_is_one_sentence(tmp_path, capsys, name):
    (tmp_path / "unknown.bin").write_bytes(b"x")
    assert main(["explain", str(tmp_path / name)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_damaged_weights_beside_a_file_are_said(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"no weights")
    (tmp_path / "photo.png").write_bytes(b"")
    beside = explain(tmp_path / "photo.png")["weights"]["cut.safetensors"]
    assert beside["is"] == "damaged" and "not a whole safetensors file" in beside["reason"]
