"""Every option of every group composes, and names only arguments that exist."""

import dataclasses
import inspect
import pickle

import numpy as np
import pytest
from composed_configs import CONFIGS, compose_config, unknown_arguments
from hydra.utils import instantiate
from repository_scripts import load_script

from face2scene.common.reproducibility import REPOSITORY
from face2scene.data.scene_batches import SceneBatches
from face2scene.inference.degradation_estimator import PipelineOptions
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.s3diff.model import S3Diff
from face2scene.train.loop import Schedule

ROOTS = sorted(p.stem for p in CONFIGS.glob("*.yaml") if p.stem != "base")
GROUPS = [
    "data",
    "degradation",
    "faces",
    "ref_fr",
    "fadex",
    "mapnet",
    "restorer",
    "train",
    "experiment",
    "paths",
    "tracker",
]
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml"))]


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("experiment", [None, *sorted(p.stem for p in (CONFIGS / "experiment").glob("*.yaml"))])
def test_root_composes_with_experiment(root, experiment):
    overrides = [] if experiment is None else [f"experiment={experiment}"]
    assert unknown_arguments(compose_config(root, *overrides)) == []


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_has_only_known_arguments(group, option):
    assert unknown_arguments(compose_config("train_restorer", f"{group}={option}")) == []


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONFIGS / "sweep").glob("*.yaml")))
def test_sweep_composes(option):
    assert compose_config("sweep", f"sweep={option}").sweep.key == option


@pytest.mark.parametrize("option", [o for g, o in OPTIONS if g == "train"])
def test_train_option_has_valid_schedule(option):
    train = compose_config("train_restorer", f"train={option}").train
    for part in ("fadex", "restorer"):
        Schedule(**train[part].schedule)
    assert set(train.restorer.batches) <= inspect.signature(SceneBatches).parameters.keys()


@pytest.mark.parametrize("option", [o for g, o in OPTIONS if g == "restorer"])
def test_restorer_option_has_valid_adapters(option):
    config = compose_config("train_restorer", f"restorer={option}").restorer
    kind = S3Diff if "score_net" in config else OneStepRestorer
    assert set(config.adapters) <= inspect.signature(kind).parameters.keys()


def test_pipeline_options_match_their_dataclass():
    given = set(compose_config("restore").pipeline)
    assert given == {field.name for field in dataclasses.fields(PipelineOptions)}


@pytest.mark.parametrize("name", ["paper", "tiny"])
def test_mapnet_width_matches_fadex(name):
    config = compose_config("train_restorer", f"mapnet={name}", f"fadex={name}")
    mapnet: MapNet = instantiate(config.mapnet)
    assert mapnet.config["in_channels"] == config.fadex.encoder.widths[-1]


def test_training_takes_a_mixture_of_spaces(tmp_path, monkeypatch):
    script = load_script("train_restorer")
    given = []

    def take(folder, space, ref_fr, **options):
        given.extend([space, ref_fr])
        raise InterruptedError

    monkeypatch.setattr(script, "SceneBatches", take)
    monkeypatch.setattr(script.preflight, "refuse", lambda *_: None)  # there is no set
    tiny = [f"{group}=tiny" for group in ("data", "fadex", "mapnet", "restorer", "train")]
    files = [f"paths.runs={tmp_path}", f"fadex_weights={REPOSITORY}/checkpoints/tiny/fadex.safetensors"]
    cfg = compose_config("train_restorer", "degradation=fadex", "ref_fr=mixed", *tiny, *files)
    with pytest.raises(InterruptedError):
        script.main.__wrapped__(cfg)
    space, ref_fr = (pickle.loads(pickle.dumps(one)) for one in given)  # as a loader's process gets them
    assert type(space.spaces) is dict and set(space.spaces) == set(space.shares)
    assert [type(space.draw(np.random.default_rng(seed))).__name__ for seed in range(4)] == ["Recipe"] * 4
    assert type(ref_fr.restorers) is dict and set(ref_fr.restorers) == set(ref_fr.shares)


def test_misspelt_argument_is_reported():
    config = compose_config("train_restorer", "+mapnet.widht=3")
    assert unknown_arguments(config) == ["mapnet: face2scene.models.mapnet.MapNet has no ['widht']"]
