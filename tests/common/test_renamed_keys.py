"""Configuration keys of earlier versions: every one is refused with its new name, wherever it comes from."""

from fnmatch import fnmatchcase

import pytest
from composed_configs import compose_config
from omegaconf import OmegaConf

from face2scene.common.renamed_keys import REMOVED, RENAMED, RenamedKey, keys_of, refuse_renamed, with_new_names
from face2scene.common.reproducibility import REPOSITORY

COMPOSED = [
    *(("restore",), ("app",), ("run_baseline",), ("eval", "probe=fadex"), ("sweep", "sweep=spatially_varying")),
    *(("train_fadex", "train=paper"), ("train_fadex", "train=fadex_shipped"), ("train_restorer", "train=paper")),
    *(
        ("train_tiny_base",),
        ("build_inscene", "data=inscene_web"),
        ("build_inscene", "data=inscene_released"),
        ("export",),
        ("redegrade",),
        ("precompute_ref_fr",),
    ),
]


@pytest.fixture(scope="module")
def keys_in_use():
    """Dotted keys of the composed configurations of all scripts."""
    keys = set()
    for root, *overrides in COMPOSED:
        keys |= set(keys_of(OmegaConf.to_container(compose_config(root, *overrides))))
    return keys


@pytest.mark.parametrize("old", RENAMED)
@pytest.mark.parametrize("form", ["{}=1", "+{}.below=1", "~{}", "++{}=null"])
def test_old_key_is_refused_with_its_new_name(old, form):
    word = form.format(old.replace("*", "a row"))
    with pytest.raises(RenamedKey) as refused:
        refuse_renamed([word])
    assert f"{old} is now {RENAMED[old]}" in str(refused.value)


@pytest.mark.parametrize("old", REMOVED)
def test_removed_key_is_refused_with_a_reason(old):
    with pytest.raises(RenamedKey) as refused:
        refuse_renamed([f"+{old}=1"], source="mine.yaml")
    assert str(refused.value) == f"Keys of mine.yaml have changed: {old} is gone ({REMOVED[old]})."


def test_new_keys_exist(keys_in_use):
    for new in RENAMED.values():
        assert any(fnmatchcase(f"{key}.", f"{new}.*") for key in keys_in_use), new


def test_no_key_in_use_is_refused(keys_in_use):
    assert len(keys_in_use) > 300
    refuse_renamed(keys_in_use)


def test_changelog_lists_every_key():
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [old for old, new in RENAMED.items() if f"| `{old}` | `{new}` |" not in text] == []
    assert [old for old in REMOVED if f"| `{old}` | gone: " not in text] == []


def test_keys_that_only_look_alike_are_accepted():
    refuse_renamed(["train.fadex.whitening=1", "slack=1", "tokens=1", "data.truth=1", "truths=1", "train=paper"])


def test_stored_options_get_their_new_names():
    stored = {"tokens": "mean", "slack": 0.1, "colour": "adain", "truth": 1}
    expected = {"token_aggregation": "mean", "identity_tolerance": 0.1, "colour": "adain", "truth": 1}
    assert with_new_names(stored, "pipeline") == expected
