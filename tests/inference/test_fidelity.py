"""The share of the input in the result, and tokens estimated from the image alone."""

import pytest
import torch
from torch import nn

from face2scene.image_io.arrays import write_png
from face2scene.inference.batch import restore_folder
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.inference.tasks import find_tasks
from face2scene.models.scene_estimator import SceneEstimator


@pytest.fixture
def image():
    return torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))


def estimator(fidelity=0.0):
    """With a constant fidelity: the logit of the head's last bias."""
    torch.manual_seed(0)
    made = SceneEstimator(widths=[8, 8], strides=[2, 1], width=32).eval()
    nn.init.constant_(made.head[-1].bias, torch.logit(torch.tensor(fidelity), eps=1e-6).item())
    return made


def test_fidelity_blends_with_the_input(make_pipeline, image):
    result = make_pipeline(fidelity=0.25)(image)
    full = make_pipeline(fidelity=0)(image)
    torch.testing.assert_close(result.image, 0.75 * full.image + 0.25 * image)
    assert result.notes["fidelity"] == 0.25
    assert torch.equal(full.at_fidelity(0.25).image, result.image)
    assert torch.equal(result.at_fidelity(0).image, full.image) and torch.equal(result.at_fidelity(1).image, image)
    with pytest.raises(ValueError, match="from 0 to 1"):
        result.at_fidelity(1.5)


def test_auto_is_zero_without_an_estimator(make_pipeline, image):
    result = make_pipeline()(image)
    assert result.notes["fidelity"] == 0 and result.token_source == "null"


def test_auto_returns_an_undegraded_image_as_it_was(make_pipeline, image, monkeypatch):
    pipeline = make_pipeline(estimator=estimator(0.99))
    monkeypatch.setattr(pipeline.restorer, "restore_tiled", None)  # no network runs
    result = pipeline(image)
    assert torch.equal(result.image, image) and result.notes["fidelity"] == 1
    assert "returned as it was" in result.notes["warnings"][-1]


def test_tokens_are_estimated_without_a_face(make_pipeline, image):
    result = make_pipeline(estimator=estimator(0.3))(image)
    assert result.token_source == "estimated" and result.notes["fidelity"] == pytest.approx(0.3, abs=1e-4)
    assert "of the image alone, because there is no Stage I" in result.notes["warnings"][0]
    assert make_pipeline(estimator=estimator(), fallback="null")(image).token_source == "null"
    assert make_pipeline(estimator=estimator())(torch.rand(3, 5, 9)).token_source == "null"  # too small


def test_null_tokens_say_nothing_of_the_image(make_pipeline, image):
    pipeline = make_pipeline(estimator=estimator(0.3), fallback="null")
    assert pipeline(image).notes["fidelity"] == 0  # the estimator has never seen them


def test_no_tokens_restore_beside_an_estimator(make_pipeline, image, tmp_path):
    write_png(tmp_path / "in/a.png", image)
    pipeline = make_pipeline(estimator=estimator(0.3))
    result = restore_folder(pipeline, find_tasks(tmp_path / "in"), tmp_path / "out", token_counts=[0, 1])
    assert result.failed == {} and (tmp_path / "out/tokens_0/images/a.png").is_file()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"fallback": "estimated"}, r"needs estimator\.safetensors"),
        ({"fidelity": 2}, "a number from 0 to 1"),
        ({"fidelity": "high"}, "give auto or"),
        ({"estimator": SceneEstimator(widths=[4], strides=[2], width=32)}, "of another restorer"),
    ],
)
def test_wrong_options_are_refused(make_pipeline, options, reason):
    with pytest.raises(ValueError, match=reason):
        make_pipeline(**options)


def test_estimator_beside_the_restorer_is_used(tiny_pipeline, image, tmp_path):
    whole = Face2ScenePipeline.from_files(tiny_pipeline / "restorer.safetensors", tiny_pipeline / "fadex.safetensors")
    alone = whole.fingerprint
    folder = tmp_path / "with"
    folder.mkdir()
    for name in ("restorer.safetensors", "fadex.safetensors"):
        (folder / name).symlink_to(tiny_pipeline / name)
    estimator(0.4).save(folder / "estimator.safetensors")
    pipeline = Face2ScenePipeline.from_pretrained(folder)
    assert pipeline(image).token_source == "estimated" and pipeline.fingerprint != alone
    pipeline.save_pretrained(tmp_path / "saved")
    again = Face2ScenePipeline.from_pretrained(tmp_path / "saved")
    assert again(image).notes["fidelity"] == pytest.approx(0.4, abs=1e-4)


def test_estimator_is_part_of_the_fingerprint(make_pipeline):
    """So that finished photos are those of this estimator, also where no weights file was read."""
    found = {make_pipeline(estimator=one).fingerprint for one in (None, estimator(0.2), estimator(0.8), estimator(0.8))}
    assert len(found) == 3
