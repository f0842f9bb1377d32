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
from face2scene.common.choices import one_of
from face2scene.common.files import atomic_write
from face2scene.common.optional import import_optional
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.loading import save_merged
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer.base_model import precision
from face2scene.models.restorer.one_step import OneStepRestorer

log = logging.getLogger(__name__)

TOLERANCE = 1e-5  # largest difference of an output relative to its largest value, float32
OPSET = 18


class _FeaturesAndEmbedding(nn.Module):
    # restored, degraded (B, 3, H, W) in [0, 1] -> features (B, C, h, w), embedding (B, D) of unit length
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
    traced, other = (
        dict(zip(("restored", "degraded"), torch.rand(2, *size, generator=generator), strict=True))
        for size in ((2, 3, 68, 84), (1, 3, 33, 51))
    )
    return _export(module, module, Path(folder) / "fadex", traced, other, ("features", "embedding"))


def export_mapnet(restorer_weights: str | Path, folder: str | Path) -> dict[str, float]:
    """Write `mapnet.onnx` and `mapnet.pt2`: features (B, C, h, w) -> tokens (B, N, D); see `export_fadex`."""
    mapnet = load_mapnet(restorer_weights)
    channels, smallest = mapnet.config["in_channels"], 2 * max(mapnet.grids)
    generator = torch.Generator().manual_seed(0)
    traced = {"features": torch.randn(2, channels, smallest + 9, smallest + 14, generator=generator)}
    other = {"features": torch.randn(1, channels, smallest, smallest + 5, generator=generator)}
    onnx = load_mapnet(restorer_weights, onnx=True)
    return _export(mapnet, onnx, Path(folder) / "mapnet", traced, other, ("tokens",))


def export_merged(
    restorer_weights: str | Path,
    path: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str = "fp16",
    file_dtype: str | None = None,
) -> None:
    """Write the restorer with its LoRAs folded in, base model and encoded prompts included, as one safetensors file.

    `models.loading.load_merged` reads it. The base model's licence applies to the file.

    Args:
        base: the base model, if not the one that the restorer's header names.
        dtype: `fp32`, `fp16` or `bf16`, of VAE and UNet; the LoRAs are merged in float32 before.
        file_dtype: of the file alone, which is read back as `dtype`; None is the same.

    Raises:
        ValueError: an unknown dtype; weights that are not a restorer's.
    """
    one_of("dtype", dtype, ("fp32", "fp16", "bf16"))
    one_of("file_dtype", file_dtype or dtype, ("fp32", "fp16", "bf16"))
    restorer = OneStepRestorer.from_file(restorer_weights, source=base).merged(precision(dtype))
    about = {"merged_from": Path(restorer_weights).name, "dtype": dtype}
    save_merged(restorer, path, about=about, dtype=precision(file_dtype, "file_dtype") if file_dtype else None)


def _export(
    module: nn.Module,
    onnx_module: nn.Module,
    path: Path,
    traced: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    outputs: tuple[str, ...],
) -> dict[str, float]:
    """Write both files of a module, named `path` and a suffix; `other` are inputs of another size, to compare with."""
    import_optional("onnxscript", "export", why="ONNX export")
    with torch.inference_mode():
        expected = _tuple(module(*other.values()))
    differences = {}
    for file in (f"{path.name}.pt2", f"{path.name}.onnx"):
        with tempfile.TemporaryDirectory(prefix="export") as scratch:
            partial = Path(scratch) / file
            if partial.suffix == ".pt2":
                sizes = {name: dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO) for name in traced}
                program = torch.export.export(module, tuple(traced.values()), dynamic_shapes=sizes)
                torch.export.save(program, partial)
                given = _run_program(partial, other)
            else:
                _write_onnx(partial, onnx_module, traced, outputs)
                given = _run_onnx(partial, other)
            relative = [(g - e).abs().max() / e.abs().max() for g, e in zip(given, expected, strict=True)]
            differences[file] = float(max(relative))
            if not differences[file] <= TOLERANCE:
                raise ValueError(
                    f"{file} gives values that differ from the module's by {differences[file]:.2g}, "
                    f"more than {TOLERANCE}: it was not written. Another version of torch or onnxruntime may help."
                )
            with atomic_write(path.parent / file) as target:
                shutil.copyfile(partial, target)
        log.info("%s differs from the module by at most %.1e.", path.parent / file, differences[file])
    return differences


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _run_program(path: Path, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        return _tuple(torch.export.load(path).module()(*given.values()))


def _write_onnx(path: Path, module: nn.Module, traced: Mapping[str, Tensor], outputs: tuple[str, ...]) -> None:
    sizes = {name: {0: "batch", 2: "height", 3: "width"} for name in traced}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # several inputs share the names of their axes on purpose
        program = torch.onnx.export(
            module,
            tuple(traced.values()),
            input_names=tuple(traced),
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
