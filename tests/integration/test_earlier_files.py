"""Files of the version before the renaming load as they are, or are refused with what changed.

`earlier/` holds what that version wrote: weights, recipes, a pipeline's options, scores and the options of trainings.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from face2scene.common.renamed_keys import RENAMED, RenamedKey
from face2scene.common.reproducibility import REPOSITORY
from face2scene.degradation import Recipe
from face2scene.eval.scoring.results import read_scores
from face2scene.eval.tables.render import row_from_scores
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.models.fadex import FaDeX
from face2scene.models.fadex.linear_readout import LinearProbe
from face2scene.train.run import Run

EARLIER = Path(__file__).parent / "earlier"
TINY = REPOSITORY / "checkpoints/tiny"


@pytest.mark.numerics
def test_weights_load_and_give_the_same_values():
    fadex, probe = (
        FaDeX.from_file(EARLIER / "fadex.safetensors"),
        LinearProbe.from_file(EARLIER / "readout.safetensors"),
    )
    restored = torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    with torch.no_grad():
        embedding = fadex.embed(fadex(restored, restored.flip(1, 2, 3)))
    expected = torch.tensor([[0.3119, -0.4740, 0.2047, -0.5195, -0.0615, -0.5003, 0.1072, -0.3172]])
    torch.testing.assert_close(embedding, expected, atol=1e-4, rtol=0)  # printed with four digits
    assert probe(embedding) == {"blur": 0.0, "noise": 0.0, "jpeg_quality": 1.0, "scale": 1.0}


@pytest.mark.parametrize("name", ["spatially_varying", "phone"])
def test_recipes_load_and_keep_their_keys(name):
    stored = json.loads((EARLIER / "recipes.json").read_text())[name]
    recipe = Recipe.from_dict(stored["recipe"])
    assert recipe.key == stored["key"]
    assert recipe.to_dict() == stored["recipe"]


def test_scores_are_read_into_a_row():
    scores, values = read_scores(EARLIER / "scores")
    assert values == {"a": {"psnr": 30.445213}, "b": {"psnr": 30.639380}}
    row = row_from_scores("earlier", EARLIER / "scores/scores.json", ["psnr"])
    assert row.cells == {"psnr": "30.54"} and row.gt == scores["truth"]["sha256"]


def test_old_pipeline_options_load(tmp_path):
    for name in ("restorer.safetensors", "fadex.safetensors"):
        (tmp_path / name).symlink_to(TINY / name)
    shutil.copy(EARLIER / "face2scene.json", tmp_path)
    options = Face2ScenePipeline.from_pretrained(tmp_path, base=str(TINY / "base")).options
    assert (options.token_aggregation, options.max_faces, options.max_face_size) == ("mean", 3, 256)
    assert options.identity_tolerance == 0.1 and options.max_tokens is None


@pytest.mark.parametrize(
    ("part", "renamed"),
    [
        ("fadex", ["pictures", "probe_pictures", "truth_share", "head.pictures"]),
        (
            "restorer",
            ["critic", "validation_pictures", "batches.negatives", "batches.dropped", "batches.truth_share"],
        ),
    ],
)
def test_run_folder_is_refused_with_all_new_names(tmp_path, part, renamed):
    shutil.copy(EARLIER / f"train_{part}.yaml", tmp_path / "config.yaml")
    (tmp_path / "metrics.jsonl").write_text("")  # it has trained
    with pytest.raises(RenamedKey) as refused:
        Run(tmp_path, {"train": {}})
    sentences = str(refused.value).split(" have changed: ")[1].split("; ")
    expected = {f"train.{part}.{key} is now {RENAMED[f'train.{part}.{key}']}" for key in renamed}
    assert str(tmp_path / "config.yaml") in str(refused.value)
    assert {sentence.rstrip(".") for sentence in sentences if "is now" in sentence} == expected
    assert ("train.restorer.leaks is gone" in str(refused.value)) == (part == "restorer")
    kept = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert kept == yaml.safe_load((EARLIER / f"train_{part}.yaml").read_text())
