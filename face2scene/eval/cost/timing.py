"""The protocol of the paper's Figure 5: images of 1024 x 1024 one by one, the two stages timed separately.

Stage I is the work before FaDeX (face detection and restoration), Stage II is FaDeX, MapNet and the restorer. Models
are loaded and images are in memory before the time is taken; nothing is written.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from scipy.stats import iqr
from torch import Tensor
from tqdm.auto import tqdm

from face2scene.common.files import read_json, write_json
from face2scene.common.provenance import machine, versions
from face2scene.common.reproducibility import commit, seed_from
from face2scene.common.types import Box, Scene
from face2scene.eval.cost.complexity import synchronise
from face2scene.eval.tables.render import plain_markdown
from face2scene.image_io.arrays import resize, write_png
from face2scene.inference.pipeline import Face2ScenePipeline


def drawn_scene(number: int, side: int) -> Tensor:
    """A smooth random image (3, side, side); the content changes no time where the face box is given."""
    generator = torch.Generator().manual_seed(seed_from("figure 5", number))
    return resize(torch.rand(3, 16, 16, generator=generator), (side, side))


def time_pipeline(
    pipeline: Face2ScenePipeline, scenes: Sequence[Scene], *, box: Box | None = None, warmup: int = 2
) -> dict[str, Any]:
    """Seconds of every scene by stage.

    Args:
        box: the face's, for images that show none; None runs the detector.
        warmup: how many times the first scene is restored before the time is taken.

    Returns:
        `stage_1`, `stage_2`, `total`: mean, median and spread (interquartile range); numbers of scenes and of scenes
        without a face pair, whose Stage I is a detection alone.
    """
    order = tqdm([*scenes[:1] * warmup, *scenes], desc="figure 5", unit="image")
    first, second, pairs = zip(*[_seconds(pipeline, scene, box) for scene in order][warmup:], strict=True)
    found: dict[str, Any] = {"pictures": len(pairs), "without_pair": pairs.count(False), "warmup": warmup}
    total = [sum(stages) for stages in zip(first, second, strict=True)]
    for key, values in (("stage_1", first), ("stage_2", second), ("total", total)):
        mean = statistics.fmean(values)
        found[key] = {"mean": mean, "median": statistics.median(values), "spread": float(iqr(values))}
    return found


def _seconds(pipeline: Face2ScenePipeline, scene: Scene, box: Box | None) -> tuple[float, float, bool]:
    device = pipeline.device
    marks = []

    def mark(*_: Any) -> None:
        synchronise(device)
        marks.append(perf_counter())

    handle = pipeline.fadex.register_forward_pre_hook(mark)  # Stage II begins where FaDeX does
    try:
        synchronise(device)
        start = perf_counter()
        estimate = pipeline.estimate(scene, box=box)
        pipeline.restore(scene, estimate)
        synchronise(device)
        end = perf_counter()
    finally:
        handle.remove()
    between = marks[0] if marks else start
    return between - start, end - between, estimate.pair is not None


def figure_5(
    load: Callable[[], tuple[Face2ScenePipeline, str]],
    folder: str | Path,
    printed: Mapping[str, Any],
    *,
    side: int = 1024,
    images: int = 100,
    face: int = 256,
    records: Sequence[Path] = (),
    asked: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Time the pipeline and write `folder`/figure_5.json, with the times of other methods and of the paper.

    Args:
        load: returns the pipeline and a description of its weights; its time is reported separately.
        printed: the bars of the paper, the contents of `configs/eval/figure_5.yaml`.
        face: side of the face in pixels, which decides the time of Stage I and FaDeX.
        records: baseline.json of methods that were run with scripts/run_baseline.py.
        asked: the options as JSON, kept with the times.
    """
    folder = Path(folder)
    start = perf_counter()
    pipeline, weights = load()
    loading = perf_counter() - start
    scenes = list(drawn(images, side, folder))
    middle = (side - face) // 2
    box = (float(middle), float(middle), float(middle + face), float(middle + face))
    methods = {"Face2Scene": time_pipeline(pipeline, scenes, box=box) | {"weights": weights}}
    for path in records:
        record = read_json(path)
        title, launches = record["adapter"]["title"], [one for one in record["launches"] if one["pictures"]]
        if launches:
            seconds, count = sum(one["seconds"] for one in launches), sum(one["pictures"] for one in launches)
            loading_too = record["adapter"]["kind"] == "command"
            methods[title] = {"pictures": count, "total": {"mean": seconds / count}, "with_loading": loading_too}
    result = {
        "protocol": f"{side} x {side}, {images} images one by one, models loaded, face of {face} pixels given",
        "asked": dict(asked or {}),
        "seconds_to_load": loading,
        "methods": methods,
        "printed": {
            name: {key: float(seconds) for key, seconds in row.items()} for name, row in printed["methods"].items()
        },
        "printed_on": printed["device"],
        "machine": machine(pipeline.device),
        "commit": commit(),
        "versions": versions(),
    }
    write_json(folder / "figure_5.json", result)
    return result


def drawn(count: int, side: int, folder: Path) -> Iterator[Scene]:
    """Random scenes, with reference images written to `folder` for Stage I."""
    references = []
    for number in range(2):
        path = folder / f"references/{number}.png"
        if not path.is_file():
            write_png(path, drawn_scene(1000 + number, 512))
        references.append(path)
    for number in range(count):
        yield Scene(f"drawn_{number:03d}", drawn_scene(number, side), people={"person": tuple(references)})


def table(result: Mapping[str, Any]) -> str:
    """Our times and the paper's, which were measured on another machine, as Markdown."""
    lines = []
    for title in dict.fromkeys([*result["printed"], *result["methods"]]):
        ours, printed = result["methods"].get(title, {}), result["printed"].get(title, {})
        cells = [f"{ours[key]['mean']:.3f}" if key in ours else "-" for key in ("stage_1", "stage_2", "total")]
        paper = f"{printed['total']}" if printed else "-"
        if "stage_1" in printed:
            paper += f" ({printed['stage_1']} + {printed['stage_2']})"
        lines.append([title, *cells, paper])
    rows = plain_markdown(["method", "Stage I, s", "Stage II, s", "total, s", "printed, s"], lines)
    where = result["machine"].get("card", result["machine"]["device"])
    machines = f"Ours on {where}, printed on {result['printed_on']}: compare the proportions, not the values."
    return f"{result['protocol']}\n\n{rows}\n{machines}\n"
