"""What configuration keys may be: their own files' values, and none of another kind."""

import math

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import PrecisionType
from code_choices import code_choices

from face2scene.cli.config_text import CONFIGS, _entries, in_group, keys
from face2scene.cli.options import NAMES, PATHS
from face2scene.cli.value_rules import choices, problem, problems
from face2scene.data.records import SPLITS
from face2scene.image_io.raw import _BALANCES, _HIGHLIGHTS

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


def commented():
    """Every key of the files in configs/ whose comment lists names: (key, names)."""
    for path in sorted(CONFIGS.rglob("*.yaml")):
        group = "".join(f"{part}." for part in path.relative_to(CONFIGS).parts[:-1])
        for key, entry in _entries(path).items():
            if names := choices(entry.comment):
                yield group + key, {*names}


def test_comments_list_what_the_code_allows():
    checked = code_choices()
    last = {option.rpartition(".")[2]: option for option in checked}
    own = {"split": SPLITS, "photos_split": SPLITS, "highlights": _HIGHLIGHTS, "white_balance": [*_BALANCES, "four"]}
    # of other packages, which allow more
    other = {"mixed_precision": PrecisionType.list(), "kind": LOGGER_TYPE_TO_CLASS}
    other["mode"] = ("online", "offline", "disabled", "shared")  # of wandb.init; wandb is in no test environment
    seen = set()
    for key, names in commented():
        name = key.rpartition(".")[2]
        if name in other:
            assert names <= {*other[name]}, key
        elif name in own:
            assert names == {*own[name]}, key
        else:
            short = "dtype" if name.endswith("dtype") else name
            option = next(one for one in (key, short, last.get(short)) if one in checked)
            assert names in checked[option], (key, checked[option])
            seen.add(option)
    assert len(seen) > 25


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
