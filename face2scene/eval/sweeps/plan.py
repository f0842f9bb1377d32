"""A sweep as data, and the commands that carry it out.

    sweep (configs/sweep/*.yaml) + options -> steps: commands, each with the steps it needs and its product

Variants with the same overrides of a step share it: FaDeX is trained once for five LoRA ranks. Nothing is started here.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from face2scene.eval.tables.render import slug
from face2scene.inference.tasks import variant_folder

TRAININGS = ("fadex", "restorer")
COMMANDS = {
    "fadex": "train-fadex",
    "restorer": "train-restorer",
    "degradation": "redegrade",
    "restore": "restore",
}
TOGETHER = {"guidance": "guidance", "tokens": "pipeline.max_tokens"}  # setting -> the option of restore.py
_ONE_PROCESS = ("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")


class SweepError(ValueError):
    """A sweep that cannot be run as asked; the message names the option to change."""


@dataclass(frozen=True)
class Variant:
    """One row of a sweep."""

    label: str  # its name in tables
    folder: str  # below the sweep's
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # kind of step -> of its configuration
    value: float | None = None  # of the setting, in a sweep whose variants are restored together
    only_with: str | None = None  # a key of `use` without which the row is left out


@dataclass(frozen=True)
class Sweep:
    """A file of configs/sweep."""

    key: str
    title: str
    source: str
    axis: str
    variants: tuple[Variant, ...]
    chosen: str | None = None  # label of the paper's own choice, marked in table and plot
    train: tuple[str, ...] = ()  # which of FaDeX and the restorer are trained before restoring
    together: str | None = None  # a key of `TOGETHER`; one command restores all variants, each with a value of it

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Sweep":
        """From the plain containers of the YAML file.

        Raises:
            SweepError: an unknown key, two rows of one name, an unknown `chosen`.
        """
        data = dict(data)
        together = data.get("together")
        rows = []
        for label, row in data.pop("variants").items():
            row = dict(row or {})
            overrides = {kind: tuple(row.pop(kind)) for kind in COMMANDS if kind in row}
            if unknown := set(row) - {"value", "only_with"}:
                raise SweepError(f"Variant {label!r} of the sweep has the unknown keys {sorted(unknown)}.")
            folder = variant_folder(together, row["value"]) if together in TOGETHER and "value" in row else slug(label)
            rows.append(Variant(str(label), folder, overrides, **row))
        unknown = set(data) - {"key", "title", "source", "axis", "chosen", "train", "together"}
        if unknown or set(data.get("train", ())) - set(TRAININGS):
            raise SweepError(f"The sweep has unknown keys or trainings: {sorted(unknown) or data['train']}.")
        folders = [row.folder for row in rows]
        if len(set(folders)) < len(folders) or "" in folders:
            raise SweepError(f"The variants of sweep {data['key']} need different names; their folders are {folders}.")
        if data.get("chosen") is not None and data["chosen"] not in {row.label for row in rows}:
            raise SweepError(f"The sweep marks {data['chosen']!r}, which is none of its variants.")
        if together and together not in TOGETHER:
            raise SweepError(f"together is {together!r}: choose {', '.join(TOGETHER)}.")
        if together and any(row.value is None or row.overrides for row in rows):
            raise SweepError(f"All variants of sweep {data['key']} need a value and nothing else.")
        return cls(**data | {"train": tuple(data.get("train", ())), "variants": tuple(rows)})


@dataclass(frozen=True)
class Step:
    """One command of a sweep, a process group of its own."""

    name: str  # unique in the sweep, a path below its folder; markers and logs are named after it
    words: tuple[str, ...]  # the command
    needs: tuple[str, ...]  # names of the steps that come before
    product: Path  # the file or folder that it leaves


@dataclass(frozen=True)
class SweepPlan:
    """The steps of a sweep under the options given."""

    folder: Path
    steps: tuple[Step, ...]
    variants: tuple[Variant, ...]
    datasets: Mapping[str, Path]  # label -> the InScene folder whose pairs it restores
    left_out: Mapping[str, str]  # label -> the key of `use` that it needs
    data: Path | None = None  # the InScene folder that the sweep reads


def plan(
    sweep: Sweep,
    *,
    name: str,
    runs: str | Path,
    data: str | Path,
    common: Sequence[str] = (),
    each: Mapping[str, Sequence[str]] | None = None,
    use: Mapping[str, str | None] | None = None,
    launch: str | None = None,
    limit: int | None = None,
    device: str | None = None,
) -> SweepPlan:
    """Lay out a sweep below `runs`/`name`.

    Args:
        data: the InScene folder whose validation pairs are restored.
        common: overrides for every command.
        each: kind of step -> more overrides for all steps of it.
        use: `fadex`, `restorer`, `s3diff` -> existing weights, instead of training them.
        launch: file of configs/accelerate; None trains in one process.
        limit: restore the first so many images.
        device: of restoring; None is the script's own choice.

    Raises:
        SweepError: weights were given for what the sweep trains differently for every variant.
    """
    use = {key: str(value) for key, value in (use or {}).items() if value is not None}
    left_out = {v.label: v.only_with for v in sweep.variants if v.only_with and v.only_with not in use}
    variants = tuple(v for v in sweep.variants if v.label not in left_out)
    for kind in sweep.train:
        if kind in use and any(v.overrides.get(kind) for v in variants):
            raise SweepError(f"sweep={sweep.key} trains a {kind} for each of its variants: leave use.{kind} out.")
    planner = _Planner(Path(runs) / name, name, variants, tuple(common), dict(each or {}), launch)
    options = [f"limit={limit}"] if limit else []
    options += [f"device={device}"] if device else []
    datasets = {}
    for variant in variants:
        needs: list[Step] = []
        weights = {f"{kind}_weights": use[kind] for kind in TRAININGS if kind in use}
        for kind in sweep.train:
            if kind not in use:
                given = [f"{key}={value}" for key, value in weights.items() if kind == "restorer"]
                needs.append(planner.shared(kind, variant, given, needs, f"weights/{kind}.safetensors"))
                weights[f"{kind}_weights"] = str(needs[-1].product)
        datasets[variant.label] = Path(data)
        if "degradation" in variant.overrides:
            needs.append(planner.shared("degradation", variant, [], [], "metadata.parquet"))
            datasets[variant.label] = needs[-1].product.parent
        given = [f"input={datasets[variant.label]}", *(f"{key}={value}" for key, value in weights.items())]
        planner.restore(variant, [*given, *options], needs, together=sweep.together)
    return SweepPlan(planner.folder, tuple(planner.steps.values()), variants, datasets, left_out, Path(data))


@dataclass
class _Planner:
    """The steps so far, by everything that their products depend on."""

    folder: Path
    name: str
    variants: Sequence[Variant]
    common: tuple[str, ...]
    each: dict[str, Sequence[str]]
    launch: str | None
    steps: dict[tuple, Step] = field(default_factory=dict)

    def shared(self, kind: str, variant: Variant, given: Sequence[str], needs: Sequence[Step], product: str) -> Step:
        """A step that all variants with the same overrides share; it lies in the folder of the first of them."""
        own = variant.overrides.get(kind, ())
        identity = (kind, own, tuple(given))
        if identity not in self.steps:
            alike = all(v.overrides.get(kind, ()) == own for v in self.variants)
            alike = alike and all("/" not in step.name for step in needs)
            place = kind if alike else f"{variant.folder}/{kind}"
            where = f"name={self.name}/{place}" if kind in TRAININGS else f"output={self.folder / place}"
            self.steps[identity] = self._step(kind, place, [*given, *own, where], needs, self.folder / place / product)
        return self.steps[identity]

    def restore(self, variant: Variant, given: Sequence[str], needs: Sequence[Step], *, together: str | None) -> None:
        """The last command of a variant, or of all of them together."""
        own = list(variant.overrides.get("restore", ()))
        place, output = f"{variant.folder}/restore", self.folder / variant.folder
        product = output / "images"
        if together:
            place, output = "restore", self.folder
            own = [f"{TOGETHER[together]}=[{','.join(str(v.value) for v in self.variants)}]"]
        step = self._step("restore", place, [*given, *own, f"output={output}", "overwrite=true"], needs, product)
        self.steps.setdefault(("restore", place), step)

    def _step(self, kind: str, place: str, last: Sequence[str], needs: Sequence[Step], product: Path) -> Step:
        program = [sys.executable]
        if kind in TRAININGS:
            options = ["--config_file", self.launch] if self.launch else _ONE_PROCESS
            program += ["-m", "accelerate.commands.launch", *options]
        overrides = [*self.common, *self.each.get(kind, ()), *last]
        # A later override of a key replaces an earlier one, so that every key occurs once in a command.
        by_key = {override.partition("=")[0].lstrip("+"): override for override in overrides}
        words = (*program, "-m", "face2scene", COMMANDS[kind], *by_key.values())
        return Step(place, words, tuple(step.name for step in needs), product)
