"""An optimizer step has as many images on any number of cards."""

import pytest
import yaml

from face2scene.common.reproducibility import REPOSITORY
from face2scene.train.schedule import share_batch

LAUNCHES = sorted(p.stem for p in (REPOSITORY / "configs/accelerate").glob("*.yaml") if not p.stem.startswith("cpu"))
PAPER = yaml.safe_load((REPOSITORY / "configs/train/paper.yaml").read_text())["restorer"]


@pytest.mark.parametrize("launch", LAUNCHES)
@pytest.mark.parametrize("batch", [PAPER["batches"]["batch"], 16])
def test_every_launch_file_makes_64_images(launch, batch):
    processes = yaml.safe_load((REPOSITORY / f"configs/accelerate/{launch}.yaml").read_text())["num_processes"]
    given = {name: PAPER[name] for name in ("effective_batch", "accumulate")}
    images, calls = share_batch(batch, processes, **given)
    assert images * calls * processes == 64


def test_paper_batch_needs_checkpointing_on_48_gb():
    assert PAPER["gradient_checkpointing"] is True


def test_without_effective_batch_numbers_stay():
    assert share_batch(3, 5) == (3, 1)
    assert share_batch(3, 5, accumulate=2) == (3, 2)


@pytest.mark.parametrize(
    ("batch", "processes", "accumulate", "remedy"), [(8, 3, None, 72), (6, 4, None, 72), (8, 4, 3, 96)]
)
def test_indivisible_batch_is_refused_with_remedy(batch, processes, accumulate, remedy):
    with pytest.raises(ValueError, match=f"set train.restorer.effective_batch={remedy}, another"):
        share_batch(batch, processes, effective_batch=64, accumulate=accumulate)
    assert share_batch(batch, processes, effective_batch=remedy, accumulate=accumulate)
