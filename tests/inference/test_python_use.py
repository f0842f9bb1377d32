"""What the package is like in Python and in a notebook."""

import io
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from PIL import Image

import face2scene
from face2scene.common.types import Scene
from face2scene.image_io.arrays import to_bytes
from face2scene.inference.named_parts import with_parts
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.ref_fr import Copy
from face2scene.ref_fr.no_reference import RealESRGAN


@pytest.fixture
def result(make_pipeline):
    return make_pipeline(ref_fr=Copy())(Scene("a", torch.rand(3, 40, 48)), box=(8.0, 8.0, 32.0, 32.0))


def test_package_offers_the_pipeline_lazily():
    ask = "import sys, face2scene; print('torch' in sys.modules, hasattr(face2scene, 'nothing'))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "False"] and face2scene.Face2ScenePipeline is Face2ScenePipeline


def test_parts_are_found_by_name(tiny_pipeline):
    pipeline = Face2ScenePipeline.from_pretrained(tiny_pipeline, ref_fr="real_esrgan", detector="open_sface")
    assert isinstance(pipeline.ref_fr, RealESRGAN) and pipeline.detector.backend.identity.source == "sface"
    assert Face2ScenePipeline.from_pretrained(tiny_pipeline, ref_fr="none", detector="none").ref_fr is None


def test_names_need_no_command_line(monkeypatch):
    """Whose resolvers of configs/ are those of a process that imports it, such as this one."""
    monkeypatch.setattr(BaseContainer, "_resolvers", {**BaseContainer._resolvers})
    OmegaConf.clear_resolver("shipped")
    parts = with_parts({"ref_fr": "copy", "detector": "none"})
    assert parts["ref_fr"].name == "copy" and parts["detector"].backend is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ref_fr": "real_esgan"}, r"no ref_fr='real_esgan': choose codeformer, .* Did you mean 'real_esrgan'\?"),
        ({"detector": "opn"}, r"no detector='opn': choose antelopev2, .* Did you mean 'open'\?"),
        ({"ref_fr": "external"}, r"ref_fr='external' has no ref_fr\.command, ref_fr\.version"),
    ],
)
def test_wrong_names_are_refused_before_loading(options, said):
    with pytest.raises(ValueError, match=said):
        Face2ScenePipeline.from_pretrained("no/such/folder", **options)


def test_reprs_are_short(result):
    assert repr(result).startswith("Restoration(48 x 40, tokens=pair, 0 faces, 0 warnings, ")
    assert "Tensor(1, 21, 32)" in repr(result.estimate.tokens) and "Tensor(3, 40, 48)" in repr(Scene("a", result.image))
    for value in (result, result.estimate, result.estimate.face_estimates[0], result.estimate.pair):
        assert len(repr(value)) < 600


def test_notebooks_show_the_picture(result):
    with Image.open(io.BytesIO(result._repr_png_())) as shown:
        assert shown.format == "PNG" and np.array_equal(np.asarray(shown), to_bytes(result.image))


def test_compare_shows_input_and_result(result):
    both = np.asarray(result.compare())
    assert np.array_equal(both[:, :48], to_bytes(result.scene)) and np.array_equal(both[:, 48:], to_bytes(result.image))


def test_push_to_hub_uploads_folder_and_card(make_pipeline, monkeypatch):
    calls = []

    class Hub:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, name, *, private, exist_ok):
            calls.append(("repository", name, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            from pathlib import Path

            files = sorted(path.name for path in Path(folder_path).iterdir())
            calls.append((repo_id, files, Path(folder_path, "README.md").read_text()))
            return f"https://hub.test/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert make_pipeline().push_to_hub("ann/scenes", private=True, token="t") == "https://hub.test/ann/scenes"
    assert calls[:2] == [("token", "t"), ("repository", "ann/scenes", True, True)]
    name, files, card = calls[2]
    assert name == "ann/scenes" and files == [
        "README.md",
        "face2scene.json",
        "fadex.safetensors",
        "restorer.safetensors",
    ]
    assert 'from_pretrained("ann/scenes"' in card and "library_name: face2scene" in card
