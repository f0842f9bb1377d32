"""Export for other programs: FaDeX and MapNet as ONNX and as `torch.export` programs, the restorer as one file.

Before a file gets its name, its output is compared with the module's, at another input size than it was traced with; a
file that differs is not written.
"""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping
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

TOLERANCE = 1e-5  # largest difference of an output relative to its largest value, float32
OPSET = 18
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class _FeaturesAndEmbedding(nn.Module):
    """FaDeX with both of its outputs.

    restored, degraded (B, 3, H, W) in [0, 1] -> features (B, C, h, w), embedding (B, D) of unit length
    """

    def __init__(self, fadex: FaDeX):
        super().__init__()
        self.fadex = fadex

    def forward(self, restored: Tensor, degraded: Tensor) -> tuple[Tensor, Tensor]:
        features = self.fadex(restored, degraded)
        return features, self.fadex.embed(features)


class _MatrixPooledMapNet(MapNet):
    """MapNet with pooling as a matrix product: ONNX has no adaptive pooling for sizes unknown at export."""

    @staticmethod
    def pool(features: Tensor, grid: int) -> Tensor:
        rows, columns = (_pooling_matrix(size, grid, features) for size in features.shape[-2:])
        return rows @ features @ columns.T


def _pooling_matrix(size: int, cells: int, like: Tensor) -> Tensor:
    """(cells, size): row i averages from floor(i size / cells) to ceil((i + 1) size / cells), as torch pools."""
    cell = torch.arange(cells, device=like.device)[:, None]
    pixel = torch.arange(size, device=like.device)[None]
    inside = (pixel >= cell * size // cells) & (pixel < -(-(cell + 1) * size // cells))
    return inside.to(like) / inside.sum(1, keepdim=True).to(like)


def load_mapnet(restorer_weights: str | Path, *, onnx: bool = False) -> MapNet:
    """The MapNet of a restorer's weights file; the base model is not needed.

    Args:
        onnx: the variant that can be exported to ONNX; same weights, same outputs.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a restorer's.
    """
    tensors, config, _ = model_files.load_weights(restorer_weights, kind="restorer")
    mapnet = (_MatrixPooledMapNet if onnx else MapNet)(**config["mapnet"])
    own = {name.removeprefix("mapnet."): t for name, t in tensors.items() if name.startswith("mapnet.")}
    model_files.fit(mapnet, own, expected=set(mapnet.state_dict()), source=restorer_weights)
    return mapnet.eval().requires_grad_(False)


def export_fadex(fadex: FaDeX, folder: str | Path) -> dict[str, float]:
    """Write `fadex.onnx` and `fadex.pt2`: (restored, degraded) -> (features, embedding); any batch and size from 16.

    Returns:
        largest difference from the module's output, relative to its largest value, by file name.

    Raises:
        ModuleNotFoundError: without the packages of the extra `export`.
        ValueError: the output of an exported file differs from the module's.
    """
    module, generator = _FeaturesAndEmbedding(fadex).eval(), torch.Generator().manual_seed(0)
    traced, other = (tuple(torch.rand(2, *size, generator=generator)) for size in ((2, 3, 68, 84), (1, 3, 33, 51)))
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

    `models.loading.load_merged` reads it. The base model's licence applies to the file.

    Args:
        base: the base model, if not the one that the restorer's header names.
        dtype: `fp32`, `fp16` or `bf16`, of VAE and UNet; the LoRAs are merged in float32 before.

    Raises:
        ValueError: an unknown dtype; weights that are not a restorer's.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    restorer = OneStepRestorer.from_file(restorer_weights, source=base).merged(DTYPES[dtype])
    save_merged(restorer, path, about={"merged_from": Path(restorer_weights).name, "dtype": dtype})


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
    """Write both files of a module; `other` are inputs of another size, for the comparison."""
    import_optional("onnxscript", "export", why="ONNX export")
    with torch.inference_mode():
        expected = _tuple(module(*other))
    differences = {}
    for file in (f"{name}.pt2", f"{name}.onnx"):
        with tempfile.TemporaryDirectory(prefix="export") as scratch:
            partial = Path(scratch) / file
            if partial.suffix == ".pt2":
                _write_program(partial, module, inputs, traced)
                given = _run_program(partial, other)
            else:
                _write_onnx(partial, onnx_module, inputs, outputs, traced)
                given = _run_onnx(partial, dict(zip(inputs, other, strict=True)))
            relative = [(g - e).abs().max() / e.abs().max() for g, e in zip(given, expected, strict=True)]
            differences[file] = float(max(relative))
            if not differences[file] <= TOLERANCE:
                raise ValueError(
                    f"{file} gives values that differ from the module's by {differences[file]:.2g}, "
                    f"more than {TOLERANCE}: it was not written. Another version of torch or onnxruntime may help."
                )
            with atomic_write(folder / file) as target:
                shutil.copyfile(partial, target)
        log.info("%s differs from the module by at most %.1e.", folder / file, differences[file])
    return differences


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _write_program(path: Path, module: nn.Module, inputs: tuple[str, ...], traced: tuple[Tensor, ...]) -> None:
    sizes = {name: dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO) for name in inputs}
    torch.export.save(torch.export.export(module, traced, dynamic_shapes=sizes), path)


def _run_program(path: Path, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        return _tuple(torch.export.load(path).module()(*given))


def _write_onnx(
    path: Path, module: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...], traced: tuple[Tensor, ...]
) -> None:
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
    assert program is not None  # with dynamo=True
    program.save(path, external_data=False)


def _run_onnx(path: Path, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    onnxruntime = import_optional("onnxruntime", "export", why="Checking an ONNX file")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return tuple(map(torch.from_numpy, session.run(None, {name: t.numpy() for name, t in given.items()})))
