"""The folder app/, which becomes a Hugging Face Space as it is."""

import re
import runpy

import pytest
import yaml
from toml_files import read_toml

from face2scene.assets import catalogue
from face2scene.cli.pipeline_config import best_ref_fr
from face2scene.common.reproducibility import REPOSITORY

SPACE = REPOSITORY / "app"


def test_header_has_what_a_space_needs():
    header = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "app_file"} <= set(header)
    assert (SPACE / header["app_file"]).is_file()
    assert len(header["short_description"]) <= 60


def test_requirements_are_extras_of_the_package():
    extras = read_toml(REPOSITORY / "pyproject.toml")["project"]
    named = re.findall(r"^face2scene\[([\w,]+)\]$", (SPACE / "requirements.txt").read_text(encoding="utf-8"), re.M)
    assert set(named[0].split(",")) <= set(extras["optional-dependencies"])


def test_app_fetches_and_serves(monkeypatch):
    asked = []
    monkeypatch.setattr("face2scene.cli.main.main", lambda words: asked.append(words) or 0)
    monkeypatch.setattr("sys.argv", ["app.py", "seed=1"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    assert end.value.code == 0
    fetch, app = asked
    assert fetch[0] == "fetch" and catalogue.resolve(fetch[1:])
    assert app[0] == "app" and "host=0.0.0.0" in app and app[-1] == "seed=1"


@pytest.mark.parametrize(
    ("ready", "cuda", "best"),
    [
        ((), True, "none"),
        (("real_esrgan_x4plus",), False, "none"),  # no detector
        (("yunet", "dlib"), False, "none"),
        (("yunet", "dlib", "real_esrgan_x4plus"), True, "real_esrgan"),
        (("yunet", "dlib", "faceme", "realvisxl_v3", "photomaker", "antelopev2"), True, "faceme"),
        (("yunet", "dlib", "faceme", "realvisxl_v3", "photomaker", "antelopev2"), False, "none"),  # hours a face
    ],
)
def test_best_stage_one_is_what_is_here(monkeypatch, ready, cuda, best):
    monkeypatch.setattr(catalogue, "is_ready", lambda asset: asset.name in ready)
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    assert best_ref_fr() == best
