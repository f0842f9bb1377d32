"""The report of a rehearsal: memory, time, loaders, disk, and whether the run fits."""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from face2scene.eval.cost.cards import CONTEXT, FRAGMENTS, LAUNCH, STREAMING, Card
from face2scene.eval.cost.rehearsal import Rehearsed, fits
from face2scene.eval.cost.simulation import PARTS
from face2scene.eval.tables.render import plain_markdown

_FACE_BYTES = 0.4e6  # of a restored face in Stage I's cache (configs/precompute_ref_fr.yaml)


@dataclass
class Findings:
    """What a rehearsal found."""

    size: tuple[int, int]  # height and width of a training image
    images: int | None  # of the training set, None where unknown
    image_bytes: int  # of an image file
    programs: list[Rehearsed] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # sentences, each with the option to change
    places: dict[str, Path] = field(default_factory=dict)  # data and runs
    faces: float = 0.0  # restored ahead of time, in all


def report(found: Findings, card: Card, gpus: int, efficiency: float) -> tuple[str, bool]:
    """The report as Markdown, and whether the run fits."""
    lines = [f"# Rehearsal on {gpus} x {card.name}\n"]
    images = "an unknown number of" if found.images is None else f"{found.images:,}"
    lines.append(f"Training set: {images} images of {found.size[1]} x {found.size[0]} pixels.\n")
    lines += ["## Memory of a card, GiB\n", _memory(found, card, gpus)]
    lines.append(
        f"Counted on tensors; 'in all' adds {FRAGMENTS:.0%} for what the allocator cannot use, {CONTEXT / 2**30:.1f} "
        f"GiB for CUDA and its libraries{' and a copy of the gradients for their sum' if gpus > 1 else ''} (assumed).\n"
    )
    lines += ["## Arithmetic and time\n", _stages(found)]
    lines.append(
        f"Roofline of the card: {efficiency:.0%} of {card.half:g} TFLOP/s in half precision, {card.tf32:g} in TF32, "
        f"{card.single:g} in float32; {STREAMING:.0%} of {card.bandwidth:g} GB/s; at least "
        f"{LAUNCH * 1e6:g} us a kernel. The shares are assumed, not measured.\n"
    )
    lines += ["## Loaders\n", _loaders(found, gpus)]
    lines += ["## Disk, GB\n", _disk(found)]
    lines += ["## The run\n", _hours(found, gpus)]
    problems = [*found.problems, *_problems(found, card, gpus)]
    hours = sum(program.hours(gpus) for program in found.programs)
    if problems:
        lines.append("This run does not fit as it is:\n\n" + "\n".join(f"- {line}" for line in problems))
    else:
        lines += [
            *_waiting(found, gpus),
            f"This run fits and takes about {hours:.0f} hours ({hours * gpus:.0f} GPU hours).",
        ]
    return "\n".join(lines), not problems


def record(found: Findings, card: Card, gpus: int) -> dict[str, Any]:
    """The figures for a JSON file; bytes, seconds and hours."""
    programs = {
        program.name: {
            "unit": program.unit,
            "peak": program.peak,
            "memory": program.memory(gpus),
            "stages": {name: asdict(work) for name, work in program.work.items()},
            "seconds": program.seconds(gpus),
            "loader_seconds": program.loader,
            "hours": program.hours(gpus),
        }
        for program in found.programs
    }
    problems = [*found.problems, *_problems(found, card, gpus)]
    return {"card": card.name, "gpus": gpus, "images": found.images, "programs": programs, "problems": problems}


def _memory(found: Findings, card: Card, gpus: int) -> str:
    rows = []
    for one in found.programs:
        parts = [f"{one.peak.get(part, 0) / 2**30:.2f}" for part in PARTS]
        verdict = "fits" if fits(one, card, gpus) else "does not fit"
        rows.append([one.name, *parts, f"{one.memory(gpus) / 2**30:.1f} of {card.memory / 1.073741824:.1f}", verdict])
    return plain_markdown(["program", *PARTS, "in all", ""], rows)


def _stages(found: Findings) -> str:
    rows = []
    for one in found.programs:
        for name, work in one.work.items():
            cells = [f"{work.flops / 1e12:.2f}", f"{work.bytes / 1e9:.1f}", f"{work.seconds:.3f}"]
            rows.append([f"{one.name}, a {one.unit}", name, *cells])
        total = sum(work.seconds for work in one.work.values())
        flops = sum(work.flops for work in one.work.values())
        rows.append([f"{one.name}, a {one.unit}", "in all", f"{flops / 1e12:.2f}", "", f"{total:.3f}"])
    return plain_markdown(["", "stage", "TFLOP", "GB moved", "seconds"], rows)


def _loaders(found: Findings, gpus: int) -> str:
    rows = [
        [
            one.name,
            f"{one.loader:.2f}",
            f"{one.seconds(gpus):.2f}",
            str(one.workers),
            str(one.workers_needed(gpus)),
            str(one.workers_needed(gpus) * gpus),
        ]
        for one in found.programs
        if one.loader
    ]
    header = [
        "program",
        "core seconds a step",
        "card's seconds a step",
        "workers",
        "needed for each card",
        "cores in all",
    ]
    return plain_markdown(header, rows) + "\nMeasured on one core of this machine, on generated images.\n"


def _disk_rows(found: Findings) -> list[tuple[str, str, float]]:
    rows = [("images", "data", (found.images or 0) * found.image_bytes)]
    rows.append(("faces of Stage I", "data", found.faces * _FACE_BYTES))
    rows += [(f"states, {one.name}", "runs", float(one.state * one.states)) for one in found.programs if one.state]
    return rows


def _disk(found: Findings) -> str:
    rows = [[name, place, f"{size / 1e9:.2f}"] for name, place, size in _disk_rows(found)]
    rows += [[f"free at {place}", place, f"{_free(path) / 1e9:.1f}"] for place, path in found.places.items()]
    return plain_markdown(["", "folder", "GB"], rows)


def _hours(found: Findings, gpus: int) -> str:
    rows = []
    for one in (one for one in found.programs if one.units):
        limit = "loader" if one.fed(gpus) > one.seconds(gpus) else "card"
        hours = one.hours(gpus)
        cells = [f"{one.units:,.0f}", f"{one.fed(gpus):.2f}", limit, f"{hours:.1f}", f"{hours * gpus:.0f}"]
        rows.append([f"{one.name}, {one.unit}s", *cells])
    return plain_markdown(["", "on each card", "seconds each", "limited by the", "hours", "GPU hours"], rows)


def _problems(found: Findings, card: Card, gpus: int) -> list[str]:
    lines = []
    for one in found.programs:
        if not fits(one, card, gpus):
            need, there = one.memory(gpus) / 2**30, card.memory / 1.073741824
            lines.append(f"{one.name} needs {need:.1f} GiB and a {card.name} has {there:.1f}: {one.advice['memory']}.")
    for place, path in found.places.items():
        need = sum(size for _, where, size in _disk_rows(found) if where == place)
        if need > _free(path):
            lines.append(
                f"{path} has {_free(path) / 1e9:.0f} GB free and {need / 1e9:.0f} are needed: set paths.{place}."
            )
    return lines


def _waiting(found: Findings, gpus: int) -> list[str]:
    return [
        f"{one.name} waits for its loader: set {one.advice['workers']}={one.workers_needed(gpus)}, on "
        f"{one.workers_needed(gpus) * gpus} cores, and it takes {one.units * one.seconds(gpus) / 3600:.1f} hours.\n"
        for one in found.programs
        if one.fed(gpus) > one.seconds(gpus)
    ]


def _free(path: Path) -> int:
    return shutil.disk_usage(next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())).free
