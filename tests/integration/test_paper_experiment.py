"""`experiment=paper` composes for every script, and its values are the paper's."""

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from face2scene.common.reproducibility import REPOSITORY
from face2scene.models.restorer.one_step import NEGATIVE, POSITIVE
from face2scene.train.schedule import Schedule, share_batch

RUNS = {
    "fadex": ("train_fadex", "paper"),
    "stage_1": ("precompute_ref_fr", "paper"),
    "restorer": ("train_restorer", "paper"),
    "s3diff": ("train_restorer", "paper_s3diff"),
    "restore": ("restore", "paper"),
    "eval": ("eval", "paper"),
}


@pytest.fixture(scope="module")
def runs() -> dict[str, DictConfig]:
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        return {name: compose(root, [f"experiment={experiment}"]) for name, (root, experiment) in RUNS.items()}


def test_data_is_57449_images(runs):
    for name in ("fadex", "stage_1", "restorer", "s3diff"):
        assert [part.weight for part in runs[name].data.mix] == [11_266, 16_486, 29_697]  # main paper
    assert sum(part.weight for part in runs["restorer"].data.mix) == 57_449


@pytest.mark.parametrize("launch", ["one_gpu", "four_gpu", "eight_gpu", "fsdp", "two_nodes"])
@pytest.mark.parametrize("run", ["restorer", "s3diff"])
def test_step_has_64_images_on_every_launch_file(runs, run, launch):
    processes = yaml.safe_load((REPOSITORY / f"configs/accelerate/{launch}.yaml").read_text())["num_processes"]
    train = runs[run].train.restorer
    limits = {"effective_batch": train.effective_batch, "accumulate": train.accumulate}
    batch, calls = share_batch(train.batches.batch, processes, **limits)
    assert batch * calls * processes == 64  # main paper


@pytest.mark.parametrize("run", ["restorer", "s3diff"])
def test_optimisation_is_the_published_one(runs, run):
    train = runs[run].train.restorer
    schedule = Schedule(**train.schedule)
    assert schedule.steps == 20_000 and train.lr == 2e-5  # main paper
    assert {schedule.rate(step) for step in (0, 100, 19_999)} == {1.0}  # S3Diff: constant, no warm-up
    assert (train.order, schedule.max_norm, train.weight_decay) == ("published", 1.0, 1e-2)  # S3Diff
    assert train.tokens_lr is None and train.ema is None
    weights = (train.loss.l2_weight, train.loss.lpips_weight, train.loss.gan_weight)
    assert weights == (2.0, 5.0, 0.5)  # main paper
    assert (train.batches.crop, train.batches.negative_prob) == (512, 0.05)  # S3Diff
    assert train.gradient_checkpointing is True


def test_restorer_is_the_supplements(runs):
    restorer = runs["restorer"].restorer
    assert restorer.base.source == "sd_turbo" and restorer.base.unet_dtype == "fp32"
    adapters = restorer.adapters
    assert (adapters.vae_rank, adapters.unet_rank) == (16, 32)  # Table 2
    assert adapters.guidance == pytest.approx(1.10)  # section 2.2
    assert adapters.timestep == 999 and not (adapters.full or adapters.skips or adapters.residual)
    assert POSITIVE == "a high-resolution, 8K, ultra-realistic sharp image, vibrant colors, and natural lighting"
    assert NEGATIVE.startswith("oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution")
    mapnet = runs["restorer"].mapnet
    assert (mapnet.in_channels, mapnet.channels, mapnet.heads, mapnet.width) == (256, 512, 8, 1024)  # section 2.2
    assert sum(side**2 for side in mapnet.grids) == 21  # Table 3


def test_s3diff_is_the_released_code(runs):
    restorer = runs["s3diff"].restorer
    assert restorer.adapters.guidance == pytest.approx(1.07) and restorer.adapters.score_reduction == 4
    assert runs["s3diff"].degradation.scale == 4
    baseline = yaml.safe_load((REPOSITORY / "configs/baseline/s3diff_retrained.yaml").read_text())
    assert f"/{runs['s3diff'].name}/weights/" in baseline["pipeline"]["restorer_weights"]


def test_runs_hand_over_to_each_other(runs):
    fadex = f"{runs['fadex'].paths.runs}/{runs['fadex'].name}/weights/fadex.safetensors"
    assert runs["restorer"].fadex_weights == runs["restore"].fadex_weights == fadex
    restorer = f"{runs['restorer'].paths.runs}/{runs['restorer'].name}/weights/restorer.safetensors"
    assert runs["restore"].restorer_weights == restorer
    counts = (
        runs["stage_1"].recipes,
        runs["restorer"].train.restorer.batches.recipes,
        runs["fadex"].train.fadex.recipes,
    )
    assert counts == (4, 4, 4)
    caches = {runs[name].ref_fr.folder for name in ("fadex", "stage_1", "restorer", "restore")}
    assert len(caches) == 1
    wanted = {name: runs[name].ref_fr.missing for name in ("fadex", "stage_1", "restorer", "restore")}
    assert wanted == {"fadex": "refuse", "stage_1": "compute", "restorer": "refuse", "restore": "compute"}
    assert runs["fadex"].degradation == runs["stage_1"].degradation == runs["restorer"].degradation
    assert runs["restorer"].degradation.space == runs["s3diff"].degradation


@pytest.mark.parametrize("option", ["ground_truth", "copy", "faceme"])
def test_another_stage_one_fits_the_experiment(option):
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        ref_fr = compose("restore", ["experiment=paper", f"ref_fr={option}"]).ref_fr
    assert "missing" not in ref_fr  # is of faceme_cached alone


def test_scores_are_the_tables_columns(runs):
    table = yaml.safe_load((REPOSITORY / "configs/eval/table_5.yaml").read_text())
    assert list(runs["eval"].metrics) == table["parts"]["synthetic"]["columns"]
