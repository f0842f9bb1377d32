"""Small sets of drawn people."""

from pathlib import Path

from colour_identities import SMALL

from face2scene.data.building.build import build
from face2scene.data.sources.generated import DrawnPeople, GeneratedPeople


def drawn_source(*, side: int = 64, **changes) -> GeneratedPeople:
    """Two people of two shots in each split, 32 pixels; every option may be another."""
    people = {"train_people": 2, "train_shots": 2, "val_people": 2, "val_shots": 2}
    options = {"name": "drawn", "size": 32, "licence": "CC0-1.0"} | people | changes
    return GeneratedPeople(lambda: DrawnPeople(side=side), None, **options)


def build_drawn(folder: Path, sources: list | None = None, **options):
    return build(folder, sources or [drawn_source()], **{"settings": {"a": 1}, "space": SMALL} | options)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, by its path there."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
