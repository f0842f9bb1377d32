"""What tests share: fetched assets by name, and one real photo."""

import logging
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest

from face2scene.assets.catalogue import folder
from face2scene.common.memory import keep_freed_memory

keep_freed_memory()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """File names that are not UTF-8 appear escaped in captured output: pytest-xdist cannot send them otherwise."""
    report = yield
    escaped = ((name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections)
    report.sections = list(escaped)
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is known to take minutes has no limit of time."""
    for item in items:
        if any(item.get_closest_marker(name) for name in ("slow", "chaos", "fuzz", "gpu", "browser")):
            item.add_marker(pytest.mark.timeout(0))


def _restore_log_levels() -> None:
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("face2scene.models").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def restored_log_level():
    """A run changes levels of loggers for its process; the next test starts without that."""
    _restore_log_levels()  # a fixture of a whole module may have run one too
    yield
    _restore_log_levels()


@pytest.fixture(scope="session")
def weights() -> Callable[[str], Path]:
    """The ready folder of an asset by its catalogue name; a missing one fails, naming its command."""
    return folder


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A real photo with one face: float32 (512, 512, 3) in [0, 1]; read-only, since all tests share it."""
    from skimage import data

    image = data.astronaut().astype(np.float32) / 255
    image.flags.writeable = False
    return image


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A random base model in diffusers' layout, smaller than the one that ships; its tokenizer is the shipped one."""
    import torch
    from tiny_text_encoder import tiny_text_encoder

    from face2scene.common.reproducibility import REPOSITORY
    from face2scene.train import tiny_base as make

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    make.tiny_vae(channels=[8, 16], latent_channels=4).save_pretrained(folder / "vae")
    unet = make.tiny_unet(channels=[8, 16, 16], latent_channels=4, text_width=32, heads=2)
    unet.save_pretrained(folder / "unet")
    tiny_text_encoder(text_width=32).save_pretrained(folder / "text_encoder")
    make.tiny_schedule().save_pretrained(folder / "scheduler")
    shutil.copytree(REPOSITORY / "checkpoints/tiny/base/tokenizer", folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_base, tmp_path_factory) -> Path:
    """A folder as `Face2ScenePipeline.from_pretrained` reads it: a restorer with random LoRAs, and a FaDeX."""
    from tiny_restorer import randomise_loras, tiny_restorer

    from face2scene.models.fadex.encoder import FaDeX

    restorer = randomise_loras(tiny_restorer(tiny_base))
    folder = tmp_path_factory.mktemp("pipeline")
    restorer.save(folder / "restorer.safetensors", about={})
    FaDeX(widths=(8, 8), strides=(2, 1), embedding=8).save(folder / "fadex.safetensors")
    return folder


@pytest.fixture(scope="session")
def make_pipeline(tiny_pipeline) -> Callable:
    """Pipelines of that folder with any options; loaded once, so what changes the networks loads its own."""
    from face2scene.inference.pipeline import Face2ScenePipeline

    loaded = Face2ScenePipeline.from_pretrained(tiny_pipeline)
    return lambda **options: Face2ScenePipeline(loaded.restorer, loaded.fadex, **options)


@pytest.fixture
def photo_files(tmp_path) -> list[Path]:
    """Two plain images, as references of somebody."""
    from face2scene.image_io.arrays import write_png

    for number in range(2):
        write_png(tmp_path / f"photos/{number}.png", np.full((40, 30, 3), 0.3 + 0.3 * number, np.float32))
    return sorted((tmp_path / "photos").glob("*.png"))


@pytest.fixture
def face_files(tmp_path) -> list[Path]:
    """Six images of noise, 44 x 40 pixels, one for each identity of a small FaDeX training."""
    from face2scene.image_io.arrays import write_png

    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        write_png(path, rng.random((40, 44, 3), dtype=np.float32))
    return paths


@pytest.fixture
def no_accelerator_of_another_test():
    """For tests that train in this process."""
    from accelerate_processes import forget_processes

    forget_processes()
    yield
    forget_processes()


@pytest.fixture(scope="session")
def chromium():
    """For tests marked `browser`: Debian's or Google's Chromium, and `pip install playwright`."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
