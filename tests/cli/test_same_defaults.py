"""The command line, Python and the page: one set of defaults, the same bytes, and what was named works or fails."""

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from dng import write_dng
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from repository_scripts import load_script

from face2scene.assets import catalogue
from face2scene.cli.app import AppController
from face2scene.cli.command_line import CONFIGS
from face2scene.faces.backends.yunet_dlib import OpenBackend
from face2scene.faces.detect import Detector
from face2scene.image_io.raw import Development
from face2scene.inference.degradation_estimator import PipelineOptions
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.ref_fr import Copy


@pytest.fixture
def restore(monkeypatch, tiny_pipeline, tmp_path):
    """Runs scripts/restore.py with a tiny model and returns its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> int:
        weights = [f"restorer_weights={tiny_pipeline}/restorer.safetensors"]
        weights.append(f"fadex_weights={tiny_pipeline}/fadex.safetensors")
        monkeypatch.setattr(sys, "argv", ["restore.py", f"output={tmp_path}/out", *weights, *words])
        try:
            load_script("restore").main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


@pytest.fixture
def face(photo, tmp_path) -> Path:
    Image.fromarray((photo[:192, 128:320] * 255).round().astype(np.uint8)).save(tmp_path / "face.png")
    return tmp_path / "face.png"


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out/restore.jsonl").read_text().splitlines()]


def test_configuration_and_classes_have_one_set_of_defaults():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("restore")
    assert dict(cfg.pipeline) == asdict(PipelineOptions())
    chosen, plain = vars(instantiate(cfg.faces)), vars(Detector(OpenBackend()))
    assert vars(chosen.pop("backend")) == vars(plain.pop("backend"))
    assert {name: tuple(v) if name in ("rotations", "retries") else v for name, v in chosen.items()} == {
        name: tuple(v) if name in ("rotations", "retries") else v for name, v in plain.items()
    }
    assert Development(**cfg.develop) == Development()


@pytest.mark.parametrize("ref_fr", ["none", "copy"])
def test_three_ways_give_the_same_bytes(restore, face, tiny_pipeline, tmp_path, ref_fr):
    assert restore(f"input={face}", f"ref_fr={ref_fr}") == 0
    (line,) = lines(tmp_path)
    assert line["tokens"] == ("pair" if ref_fr == "copy" else "null")
    options = {"ref_fr": Copy()} if ref_fr == "copy" else {}
    pipeline = Face2ScenePipeline.from_pretrained(tiny_pipeline, **options)
    pipeline(face).save(tmp_path / "python.png")
    controller = AppController(pipeline)  # its files go with it
    *_, page = controller.restore(str(face), None, pipeline.restorer.guidance, 1, lambda *_: None)
    expected = (tmp_path / "out/images/face.png").read_bytes()
    assert (tmp_path / "python.png").read_bytes() == expected
    assert Path(page).read_bytes() == expected


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """As on a machine where nothing was fetched."""
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path / "nothing"))
    assert not catalogue.is_ready(catalogue.catalogue()["yunet"])


def test_missing_detector_matters_only_when_needed(restore, face, no_weights, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO, "face2scene")
    assert restore(f"input={face}") == 0  # the default detector, and no Stage I that could use a face
    assert "yunet" not in str(lines(tmp_path)) and caplog.text.count("face2scene fetch yunet") == 1
    assert restore(f"input={face}", f"references={face}", "overwrite=true") == 0
    warning = lines(tmp_path)[-1]["warnings"][0]
    assert "Faces were not looked for" in warning and "yunet" in warning
    assert capsys.readouterr().out.rstrip().endswith("because there is no Stage I (ref_fr=none).")
    for words in (["faces=open"], ["ref_fr=copy"], ["faces.min_face=20"]):
        assert restore(f"input={face}", "overwrite=true", *words) == 1
        assert "fetch yunet" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["ref_fr=faceme"], "fetch"),
        (["ref_fr=real_esrgan"], "fetch real_esrgan_x4plus"),
        (["ref_fr=codeformer"], "codeformer"),
        (["ref_fr=ground_truth"], "gt=FOLDER"),
        (["ref_fr=copy", "faces=none"], "faces=open"),
        (["faces=insightface"], "buffalo_l"),
        (["device=cuda:99"], "device=cuda:99 cannot be used here"),
        (["device=gpu"], "device=gpu cannot be used here"),
        (["dtype=half"], "fp32, bf16, fp16"),
        (["pipeline.colour=sepia"], "pipeline.colour"),
        (["develop.highlights=burn"], "develop.highlights"),
        (["restorer_weights=gone.safetensors"], "gone.safetensors"),
        (["base=gone"], "gone"),
    ],
)
def test_named_option_works_or_fails(restore, face, no_weights, tmp_path, capsys, words, reason):
    assert restore(f"input={face}", *words) in (1, 2)  # 2: a value that the key cannot have
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert reason in sentence, sentence
    assert not list(tmp_path.glob("out/images/*"))


def test_page_refuses_keys_it_does_not_use(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["app.py", "tokens_from=null", "format=jpeg"])
    with pytest.raises(SystemExit):
        load_script("app").main()
    assert "does not use format, tokens_from" in capsys.readouterr().err


def test_brightening_of_raw_is_named_in_the_log(restore, tmp_path):
    write_dng(tmp_path / "in/a.dng", np.full((96, 128, 3), 0.06))
    assert restore(f"input={tmp_path}/in") == 0
    assert "Developed" not in str(lines(tmp_path)[0]["warnings"])
    assert restore(f"input={tmp_path}/in", "develop.auto_bright=true") == 1  # other settings: overwrite=true is needed
    assert restore(f"input={tmp_path}/in", "develop.auto_bright=true", "overwrite=true") == 0
    assert lines(tmp_path)[0]["warnings"][0] == "Developed with automatic brightness."
