"""The trained parts for other programs: FaDeX and MapNet as ONNX and as torch programs, the restorer in one file.

Every file is run once against the module it was made from before it gets its name, at a size that it was not traced
with, and refused where the two differ.
"""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from face2scene.common import model_files
from face2scene.common.files import atomic_write
from face2scene.common.optional import import_optional
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.loading import save_merged
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer.one_step import OneStepRestorer

log = logging.getLogger(__name__)

TOLERANCE = 1e-5  # largest difference of an output, as a share of its largest value, in float32
OPSET = 18
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class _Measured(nn.Module):
    """FaDeX with both of its results.

    restored, degraded (B, 3, H, W) in [0, 1] -> features (B, C, h, w), embedding (B, D) of unit length
    """

    def __init__(self, fadex: FaDeX):
        super().__init__()
        self.fadex = fadex

    def forward(self, restored: Tensor, degraded: Tensor) -> tuple[Tensor, Tensor]:
        features = self.fadex(restored, degraded)
        return features, self.fadex.embed(features)


class _TokensOfAnySize(MapNet):
    """MapNet whose pooling is a product of matrices: ONNX has no adaptive pooling over a size it does not know."""

    @staticmethod
    def pool(features: Tensor, grid: int) -> Tensor:
        rows, columns = (_cell_means(size, grid, features) for size in features.shape[-2:])
        return rows @ features @ columns.T


def _cell_means(size: int, cells: int, like: Tensor) -> Tensor:
    """(cells, size): row i averages from floor(i size / cells) to ceil((i + 1) size / cells), as torch pools."""
    cell = torch.arange(cells, device=like.device)[:, None]
    place = torch.arange(size, device=like.device)[None]
    relative_dir = (place >= cell * size // cells) & (place < -(-(cell + 1) * size // cells))
    return relative_dir.to(like) / relative_dir.sum(1, keepdim=True).to(like)


def load_mapnet(restorer_weights: str | Path, *, onnx: bool = False) -> MapNet:
    """The MapNet of a restorer's weights file; the base model is not needed.

    Args:
        onnx: the variant that ONNX can express; same weights, same results.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a restorer's.
    """
    tensors, config, _ = model_files.load_weights(restorer_weights, kind="restorer")
    mapnet = (_TokensOfAnySize if onnx else MapNet)(**config["mapnet"])
    own = {name.removeprefix("mapnet."): t for name, t in tensors.items() if name.startswith("mapnet.")}
    model_files.fit(mapnet, own, expected=set(mapnet.state_dict()), source=restorer_weights)
    return mapnet.eval().requires_grad_(False)


def export_fadex(fadex: FaDeX, folder: str | Path) -> dict[str, float]:
    """Write `fadex.onnx` and `fadex.pt2`: (restored, degraded) -> (features, embedding); any batch and size from 16.

    Returns:
        largest difference to the module as a share of its largest value, by file name.

    Raises:
        ModuleNotFoundError: without the packages of the extra `export`.
        ValueError: an exported file gives other values than the module.
    """
    module = _Measured(fadex).eval()
    traced, other = (_pairs(2, 68, 84, seed=0), _pairs(1, 33, 51, seed=1))
    inputs, outputs = ("restored", "degraded"), ("features", "embedding")
    return _export(module, module, "fadex", inputs, outputs, traced, other, Path(folder))


def export_mapnet(restorer_weights: str | Path, folder: str | Path) -> dict[str, float]:
    """Write `mapnet.onnx` and `mapnet.pt2`: features (B, C, h, w) -> tokens (B, N, D); see `export_fadex`."""
    mapnet = load_mapnet(restorer_weights)
    channels, smallest = mapnet.config["in_channels"], 2 * max(mapnet.grids)
    generator = torch.Generator().manual_seed(0)
    traced = (torch.randn(2, channels, smallest + 9, smallest + 14, generator=generator),)
    other = (torch.randn(1, channels, smallest, smallest + 5, generator=generator),)
    onnx = load_mapnet(restorer_weights, onnx=True)
    return _export(mapnet, onnx, "mapnet", ("features",), ("tokens",), traced, other, Path(folder))


def export_merged(
    restorer_weights: str | Path, path: str | Path, *, base: str | Path | None = None, dtype: str = "fp16"
) -> None:
    """Write the restorer with its LoRAs folded in, base model and encoded prompts included, as one safetensors file.

    `restorer.merged.load_merged` reads it back. The base model's licence goes with the file.

    Args:
        base: the base model, where it is not where the restorer's header says.
        dtype: `fp32`, `fp16` or `bf16`, of VAE and UNet; the LoRAs are added in float32 before.

    Raises:
        ValueError: an unknown dtype; weights that are not a restorer's.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    restorer = OneStepRestorer.from_file(restorer_weights, source=base).merged(DTYPES[dtype])
    save_merged(restorer, path, about={"merged_from": Path(restorer_weights).name, "dtype": dtype})


def _pairs(batch: int, height: int, width: int, *, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(batch, 3, height, width, generator=generator) for _ in range(2))


def _export(
    module: nn.Module,
    onnx_module: nn.Module,
    name: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    traced: tuple[Tensor, ...],
    other: tuple[Tensor, ...],
    folder: Path,
) -> dict[str, float]:
    """Both files of a module; `other` are inputs of other sizes, for the comparison."""
    with torch.inference_mode():
        expected = module(*other)
    expected = expected if isinstance(expected, tuple) else (expected,)
    differences = {}
    for file, write, run in (
        (f"{name}.pt2", _program_writer(module, inputs, traced), _run_program),
        (f"{name}.onnx", _onnx_writer(onnx_module, inputs, outputs, traced), _run_onnx),
    ):
        with _checked(folder / file) as partial:
            write(partial)
            given = run(partial, dict(zip(inputs, other, strict=True)))
            differences[file] = max(_difference(g, e) for g, e in zip(given, expected, strict=True))
            if not differences[file] <= TOLERANCE:
                raise ValueError(
                    f"{file} gives values that differ from the module's by {differences[file]:.2g}, "
                    f"more than {TOLERANCE}: it was not written. Another version of torch or onnxruntime may help."
                )
        log.info("%s: at most %.1e from the module.", folder / file, differences[file])
    return differences


def _difference(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).abs().max() / expected.abs().max())


@contextmanager
def _checked(path: Path) -> Iterator[Path]:
    """A file of the right suffix in a folder of its own, that gets its name only when the block has ended well."""
    with tempfile.TemporaryDirectory(prefix="export") as folder:
        partial = Path(folder) / path.name
        yield partial
        with atomic_write(path) as target:
            shutil.copyfile(partial, target)


def _program_writer(module: nn.Module, inputs: tuple[str, ...], traced: tuple[Tensor, ...]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        sizes = {
            name: {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO} for name in inputs
        }
        torch.export.save(torch.export.export(module, traced, dynamic_shapes=sizes), path)

    return write


def _run_program(path: Path, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        found = torch.export.load(path).module()(*given.values())
    return found if isinstance(found, tuple) else (found,)


def _onnx_writer(
    module: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...], traced: tuple[Tensor, ...]
) -> Callable[[Path], None]:
    import_optional("onnxscript", "export", why="ONNX export")

    def write(path: Path) -> None:
        sizes = {name: {0: "batch", 2: "height", 3: "width"} for name in inputs}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # several inputs share the names of their axes on purpose
            program = torch.onnx.export(
                module,
                traced,
                input_names=inputs,
                output_names=outputs,
                dynamo=True,
                dynamic_shapes=sizes,
                opset_version=OPSET,
                verbose=False,
            )
        program.save(path, external_data=False)

    return write


def _run_onnx(path: Path, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    session = import_optional("onnxruntime", "export", why="Checking an ONNX file").InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    return tuple(map(torch.from_numpy, session.run(None, {name: t.numpy() for name, t in given.items()})))
