"""The ComfyUI nodes, loaded and executed as ComfyUI does, on a stub of its server."""

import json
from types import SimpleNamespace

import pytest
import torch
from comfy_server import LoadImage, SaveImage, execute, load_nodes, problems, read_workflow
from toml_files import read_toml

from face2scene.common.reproducibility import REPOSITORY

FOLDER = REPOSITORY / "integrations/comfyui"


@pytest.fixture(scope="module")
def nodes():
    return load_nodes(FOLDER) | {"LoadImage": LoadImage, "SaveImage": SaveImage}


@pytest.fixture
def workflow(tiny_pipeline, monkeypatch):
    """The packaged one, with a detector and a Stage I that need no weights."""
    images = {name: torch.rand(1, 64, 48, 3) for name in ("degraded.png", "reference.png")}
    monkeypatch.setattr(LoadImage, "files", images)
    workflow = read_workflow(FOLDER / "workflows/restore.json")
    workflow["3"]["inputs"] = {"weights": str(tiny_pipeline), "stage_one": "none", "detector": "none"}
    return workflow


def test_packaged_workflow_is_valid(nodes, monkeypatch):
    monkeypatch.setattr(LoadImage, "files", {"degraded.png": None, "reference.png": None})
    packaged = read_workflow(FOLDER / "workflows/restore.json")
    assert problems(packaged, nodes) == []
    packaged["4"]["inputs"] |= {"guidance": 2.0, "image": ["3", 0]}
    assert problems(packaged, nodes) == ["4: image gets FACE2SCENE, not IMAGE", "4: guidance=2.0 is out of range"]


def test_workflow_restores_as_the_pipeline_does(nodes, workflow, make_pipeline):
    outputs = execute(workflow, nodes)
    restored, degraded_face, restored_face, log = outputs["4"]
    image = LoadImage.files["degraded.png"]
    expected = make_pipeline()(image[0].movedim(-1, 0).contiguous()).image
    assert torch.allclose(restored[0], expected.movedim(0, -1), atol=1e-4)  # the same weights, merged once more
    assert restored.shape == image.shape
    assert degraded_face.shape == restored_face.shape == (1, 1, 1, 3)  # there is no face
    assert json.loads(log)[0]["tokens"] == "null"
    assert torch.equal(outputs["5"]["ui"]["images"], restored)


def test_batch_keeps_order_and_full_fidelity_is_the_input(nodes, workflow):
    LoadImage.files["degraded.png"] = torch.rand(3, 32, 40, 4)  # with transparency, as some nodes send it
    workflow["4"]["inputs"]["fidelity"] = 1.0
    restored = execute(workflow, nodes)["4"][0]
    assert torch.allclose(restored, LoadImage.files["degraded.png"][..., :3], atol=1e-6)


def test_names_references_and_options_are_handed_on(nodes, monkeypatch):
    asked = []

    class Pipeline:
        @classmethod
        def from_pretrained(cls, weights, **options):
            asked.append((weights, options))
            return cls()

        def to(self, device):
            return self

        def __call__(self, image, references, **options):
            asked.append({name: [one.shape for one in photos] for name, photos in references.items()} | options)
            face = torch.ones(3, 16, 16)
            pair = SimpleNamespace(degraded=face, restored=face / 2)
            return SimpleNamespace(image=image, estimate=SimpleNamespace(pair=pair), notes={"warnings": []})

    loader, restorer = nodes["LoadFace2Scene"](), nodes["RestoreWithFace2Scene"]()
    monkeypatch.setitem(loader.load.__globals__, "Face2ScenePipeline", Pipeline)
    (pipeline,) = loader.load("OWNER/NAME", "real_esrgan", "none")
    image = torch.rand(1, 20, 24, 3)
    _, degraded, restored, _ = restorer.restore(pipeline, image, 1.05, -1.0, 7, person_2=torch.rand(2, 8, 8, 3))
    assert asked[0] == ("OWNER/NAME", {"ref_fr": "real_esrgan", "detector": None})
    assert asked[1].pop("progress")
    assert asked[1] == {"person 2": [(3, 8, 8)] * 2, "guidance": 1.05, "seed": 7}
    assert torch.equal(degraded / 2, restored) and restored.shape == (1, 16, 16, 3)


def test_comfy_registry_fields():
    project = read_toml(FOLDER / "pyproject.toml")
    assert {"PublisherId", "DisplayName", "Icon"} <= set(project["tool"]["comfy"])
    assert "face2scene" in project["project"]["dependencies"][0]
