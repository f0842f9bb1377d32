"""What configuration keys may be: their own files' values, and none of another kind."""

import math

import pytest

from face2scene.cli.config_text import in_group, keys
from face2scene.cli.options import NAMES, PATHS
from face2scene.cli.value_rules import choices, problem, problems

ROOTS = [name.replace("-", "_") for name in NAMES]


def numbers(root):
    """The keys of a root that are a number in all files of their group."""
    for key, entry in keys(root).items():
        if all(type(each.default) in (int, float) for each in (entry, *in_group(key))):
            yield key, entry


@pytest.mark.parametrize("root", ROOTS)
def test_defaults_are_allowed(root):
    known = keys(root)
    assert problems({}, known) == []
    for key, entry in known.items():
        for other in in_group(key):
            assert problem(key, other.default, entry) == "", key
        if (names := choices(entry.comment)) and entry.default is not None and "${" not in str(entry.default):
            assert str(entry.default) in names, key


@pytest.mark.parametrize("root", ROOTS)
def test_numbers_refuse_words_and_nan(root):
    assert all(problem(key, "nope", entry) and problem(key, math.nan, entry) for key, entry in numbers(root))
    assert sum(1 for _ in numbers(root)) > 10


@pytest.mark.parametrize("root", ROOTS)
def test_names_refuse_others(root):
    chosen = {key: entry for key, entry in keys(root).items() if choices(entry.comment) and key not in PATHS}
    assert chosen and all(" is " in problem(key, "nope", entry) for key, entry in chosen.items())


@pytest.mark.parametrize(
    ("root", "key", "wrong", "right"),
    [
        ("restore", "seed", [1.5, -1, True, [1]], [0, 7]),
        ("restore", "scale", [0, -1], [2, 1.5, 1e-3]),
        ("restore", "limit", [0, 1.5, "all"], [None, 3]),
        ("restore", "guidance", [-1, math.inf], [None, 1.1, [1.0, 1.1]]),
        ("train_restorer", "train.restorer.lr", [-1, math.inf], [0, 1e-4]),
        ("train_restorer", "restorer.adapters.vae_rank", [-1, 0.5], [0, 16]),
        ("restore", "pipeline.tile", [0, "foo"], ["auto", None, 256]),
        ("restore", "faces.same_threshold", [2, -2], [None, 0.4]),
        ("train_fadex", "train.fadex.gt_share", [2, -0.1], [0, 1, 0.5]),
        ("train_fadex", "train.fadex.ema", [2], [None, 0.9]),
        ("train_fadex", "train.fadex.lr", [0, -1], [1e-3]),
        ("train_fadex", "train.fadex.mixed_precision", ["bf15", None], ["no", "fp16"]),
        ("train_restorer", "mapnet.grids", [[], [1.5], ["a"], 1], [[1, 2]]),
        ("train_restorer", "train.restorer.workers", [-1, 0.5], [0]),
        ("train_restorer", "restorer.adapters.timestep", [1000], [0, 999]),
        ("eval", "figure", [7, "time"], [5, "fadex", None]),
        ("run_baseline", "metrics", [None, "psnr"], [[], ["psnr"]]),
    ],
)
def test_values_of_one_key(root, key, wrong, right):
    entry = keys(root)[key]
    assert all(problem(key, value, entry) for value in wrong) and not any(problem(key, v, entry) for v in right)
