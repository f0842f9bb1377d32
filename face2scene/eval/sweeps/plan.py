"""A sweep as data, and the commands that carry it out.

    sweep (configs/sweep/*.yaml) + options -> steps: commands with what each needs and what it leaves

Variants that do not differ in a step share it: FaDeX is trained once for five LoRA ranks. Nothing is started here.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from face2scene.common.reproducibility import REPOSITORY
from face2scene.eval.tables.render import slug
from face2scene.inference.tasks import variant_folder

TRAININGS = ("fadex", "restorer")
KINDS = (*TRAININGS, "degradation", "restore")
_SCRIPTS = {
    "fadex": "train_fadex.py",
    "restorer": "train_restorer.py",
    "degradation": "redegrade.py",
    "restore": "restore.py",
}
TOGETHER = {"guidance": "guidance", "tokens": "pipeline.max_tokens"}  # setting -> the option of restore.py
_ONE_PROCESS = ("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")


class SweepError(ValueError):
    """A sweep that cannot be run as asked; the message names the option to change."""


@dataclass(frozen=True)
class Variant:
    """One row of a sweep.

    Args:
        label: as printed.
        overrides: kind of step -> overrides of its configuration.
        value: of the setting that a sweep's variants are restored together for.
        place: its folder below the sweep's.
        only_with: a key of `use` without which the row is left out.
    """

    label: str
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    value: float | None = None
    only_with: str | None = None
    place: str | None = None

    @property
    def folder(self) -> str:
        return self.place or slug(self.label)


@dataclass(frozen=True)
class Sweep:
    """A file of configs/sweep.

    Args:
        chosen: label of the paper's own choice, marked in table and plot.
        train: which of FaDeX and the restorer are trained before restoring.
        together: a key of `TOGETHER`; one command restores all variants, each with a value of it.
    """

    key: str
    title: str
    source: str
    axis: str
    variants: tuple[Variant, ...]
    chosen: str | None = None
    train: tuple[str, ...] = ()
    together: str | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Sweep":
        """From the plain containers of the YAML file.

        Raises:
            SweepError: an unknown key, a row without a name of its own, an unknown `chosen`.
        """
        data = dict(data)
        rows = []
        for label, row in data.pop("variants").items():
            row = dict(row or {})
            overrides = {kind: tuple(row.pop(kind)) for kind in KINDS if kind in row}
            unknown = set(row) - {"value", "only_with"}
            if unknown:
                raise SweepError(f"Variant {label!r} of the sweep has the unknown keys {sorted(unknown)}.")
            if data.get("together") in TOGETHER and "value" in row:
                row["place"] = variant_folder(data["together"], row["value"])
            rows.append(Variant(str(label), overrides, **row))
        unknown = set(data) - {"key", "title", "source", "axis", "chosen", "train", "together"}
        if unknown or set(data.get("train", ())) - set(TRAININGS):
            raise SweepError(f"The sweep has unknown keys or trainings: {sorted(unknown) or data['train']}.")
        folders = [row.folder for row in rows]
        if len(set(folders)) < len(folders) or "" in folders:
            raise SweepError(f"The variants of sweep {data['key']} need different names; their folders are {folders}.")
        if data.get("chosen") is not None and data["chosen"] not in {row.label for row in rows}:
            raise SweepError(f"The sweep marks {data['chosen']!r}, which is none of its variants.")
        if data.get("together", "guidance") not in TOGETHER:
            raise SweepError(f"together is {data['together']!r}: choose {', '.join(TOGETHER)}.")
        if data.get("together") and any(row.place is None or row.overrides for row in rows):
            raise SweepError(f"All variants of sweep {data['key']} need a value and nothing else.")
        return cls(**data | {"train": tuple(data.get("train", ())), "variants": tuple(rows)})


@dataclass(frozen=True)
class Step:
    """One command of a sweep: its own process group.

    Args:
        name: unique in the sweep, a path below its folder; markers and logs are called so.
        words: the command.
        needs: names of the steps that come before.
        product: what is there afterwards.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...]
    product: Path


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep comes to under the options given."""

    folder: Path
    steps: tuple[Step, ...]
    variants: tuple[Variant, ...]
    datasets: Mapping[str, Path]  # label -> the InScene folder whose pairs it restores
    left_out: Mapping[str, str]  # label -> the key of `use` it waits for
    data: Path | None = None  # the InScene folder that all of it is made from


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
        use: `fadex`, `restorer`, `s3diff` -> weights that are there, instead of training them.
        launch: file of configs/accelerate; None trains in one process.
        limit: restore the first so many images.
        device: of restoring; None is the script's own choice.

    Raises:
        SweepError: weights were given for what the sweep trains differently for every variant.
    """
    use = {key: str(value) for key, value in (use or {}).items() if value is not None}
    folder = Path(runs) / name
    left_out = {v.label: v.only_with for v in sweep.variants if v.only_with and v.only_with not in use}
    variants = tuple(v for v in sweep.variants if v.label not in left_out)
    for kind in sweep.train:
        if kind in use and any(v.overrides.get(kind) for v in variants):
            raise SweepError(f"sweep={sweep.key} trains a {kind} for each of its variants: leave use.{kind} out.")
    draw = _Drawing(folder, name, variants, tuple(common), dict(each or {}), launch)
    datasets = {}
    for variant in variants:
        needs: list[Step] = []
        weights = {f"{kind}_weights": use[kind] for kind in TRAININGS if kind in use}
        for kind in sweep.train:
            if kind not in use:
                given = [f"{key}={value}" for key, value in weights.items() if kind == "restorer"]
                needs.append(draw.shared(kind, variant, given, needs, f"weights/{kind}.safetensors"))
                weights[f"{kind}_weights"] = str(needs[-1].product)
        datasets[variant.label] = Path(data)
        if "degradation" in variant.overrides:
            needs.append(draw.shared("degradation", variant, [], [], "metadata.parquet"))
            datasets[variant.label] = needs[-1].product.parent
        given = [f"input={datasets[variant.label]}", *(f"{key}={value}" for key, value in weights.items())]
        given += [f"limit={limit}"] if limit else []
        given += [f"device={device}"] if device else []
        draw.restore(variant, given, needs, together=sweep.together)
    return SweepPlan(folder, tuple(draw.steps.values()), variants, datasets, left_out, Path(data))


class _Drawing:
    """The steps so far, by everything that their products depend on."""

    def __init__(
        self,
        folder: Path,
        name: str,
        variants: Sequence[Variant],
        common: tuple[str, ...],
        each: dict[str, Sequence[str]],
        launch: str | None,
    ):
        self.folder, self.name, self.variants = folder, name, variants
        self.common, self.each, self.launch = common, each, launch
        self.steps: dict[tuple, Step] = {}

    def shared(self, kind: str, variant: Variant, given: Sequence[str], needs: Sequence[Step], product: str) -> Step:
        """A step that all variants with the same overrides have in common; it lies with the first of them."""
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
        """The last command of a variant, or of all of them."""
        own = list(variant.overrides.get("restore", ()))
        place, output = f"{variant.folder}/restore", self.folder / variant.folder
        product = output / "images"
        if together:
            place, output = "restore", self.folder
            own = [f"{TOGETHER[together]}=[{','.join(str(v.value) for v in self.variants)}]"]
        step = self._step("restore", place, [*given, *own, f"output={output}", "overwrite=true"], needs, product)
        self.steps.setdefault(("restore", place), step)

    def _step(self, kind: str, place: str, last: Sequence[str], needs: Sequence[Step], product: Path) -> Step:
        words = _last_of_each_key([*self.common, *self.each.get(kind, ()), *last])
        return Step(place, (*_program(kind, self.launch), *words), tuple(step.name for step in needs), product)


def _last_of_each_key(overrides: Sequence[str]) -> list[str]:
    """A later override of a key replaces an earlier one, so that a command says everything once."""
    return list({override.partition("=")[0].lstrip("+"): override for override in overrides}.values())


def _program(kind: str, launch: str | None) -> list[str]:
    script = str(REPOSITORY / "scripts" / _SCRIPTS[kind])
    if kind not in TRAININGS:
        return [sys.executable, script]
    options = ["--config_file", launch] if launch else list(_ONE_PROCESS)
    return [sys.executable, "-m", "accelerate.commands.launch", *options, script]
