"""A pipeline in a folder, for sharing: its weights, its options and a model card.

FOLDER/  face2scene.json  restorer.safetensors  fadex.safetensors  [estimator.safetensors]  README.md
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from face2scene import __version__
from face2scene.common.files import atomic_write, read_json, write_json
from face2scene.common.ledger import content, digest
from face2scene.common.model_files import kind_of
from face2scene.common.provenance import provenance
from face2scene.common.renamed_keys import with_new_names
from face2scene.common.shipped import CHECKPOINTS, shipped
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.loading import save_merged
from face2scene.models.restorer.base_model import base_folder
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.restorer_base import WEIGHTS_FILE
from face2scene.models.s3diff.model import S3Diff
from face2scene.models.scene_estimator import FILE as ESTIMATOR
from face2scene.models.scene_estimator import SceneEstimator
from face2scene.ref_fr.fingerprint import files_version

_HERE = "this folder"
NAMES = ("photo", "tiny")  # pipelines that ship
OPTIONS, RESTORER, FADEX, CARD = "face2scene.json", WEIGHTS_FILE, "fadex.safetensors", "README.md"


def find(folder: str | Path) -> Path:
    """The folder of a saved pipeline: a name of `NAMES`, a path, or a hub repository, which is downloaded.

    A name stands for what ships with the package, also where the working folder holds such a folder (`./tiny`).

    Raises:
        FileNotFoundError: no such folder, or files are missing; the message names them.
    """
    name = str(folder)
    path = Path(folder) if name not in NAMES else CHECKPOINTS / name
    if not path.is_dir():
        path = shipped(path) or path
    if not path.is_dir() and name.count("/") == 1 and not name.startswith((".", "/")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, allow_patterns=[OPTIONS, RESTORER, FADEX, ESTIMATOR, CARD]))
        except Exception as error:  # no network, no repository, or no access
            raise FileNotFoundError(
                f"There is no folder {name}, and the hub did not have it ({type(error).__name__})."
            ) from error
    missing = [file for file in (RESTORER, FADEX) if not (path / file).is_file()]
    if missing:
        raise FileNotFoundError(f"There is no {' and no '.join(missing)} in {folder}: name a folder that has both.")
    return path


def read_options(folder: Path) -> dict[str, Any]:
    """The saved options; empty if the folder holds weights alone, as the shipped `tiny` does."""
    file = folder / OPTIONS
    if not file.is_file():
        return {}
    saved = read_json(file)
    options = saved.get("options") if isinstance(saved, Mapping) else None
    if not isinstance(options, Mapping):
        raise ValueError(
            f"{file} holds no options of a pipeline. Save the pipeline again, or remove it for the defaults."
        )
    return with_new_names(options, "pipeline")


def write(
    folder: str | Path,
    restorer: OneStepRestorer | S3Diff,
    fadex: FaDeX,
    options: Mapping[str, Any],
    *,
    ref_fr: Any = None,
    detector: Any = None,
    estimator: SceneEstimator | None = None,
) -> None:
    """Write everything; the options last, so that a folder with options is complete."""
    folder = Path(folder)
    if isinstance(restorer, OneStepRestorer):
        save_merged(restorer, folder / RESTORER, about={"version": __version__})
    else:
        restorer.save(folder / RESTORER, about={"version": __version__})
    fadex.save(folder / FADEX, about={"version": __version__})
    if estimator is not None:
        estimator.save(folder / ESTIMATOR, about={"version": __version__})
    stage_one = getattr(ref_fr, "name", "none")
    backend = getattr(detector, "backend", None)
    faces = type(backend).__name__ if backend is not None else "none"
    files = {"restorer": folder / RESTORER, "fadex": folder / FADEX}
    record = json.dumps(provenance(weights=files, config=dict(options)), indent=1, ensure_ascii=False)
    with atomic_write(folder / CARD) as partial:
        partial.write_text(_card(restorer, options, stage_one, faces, record), encoding="utf-8", newline="\n")
    write_json(folder / OPTIONS, {"version": __version__, "options": dict(options), "provenance": json.loads(record)})


def name_card(folder: str | Path, name: str) -> None:
    """Let a folder's model card load the pipeline by its name on the hub."""
    card = Path(folder) / CARD
    card.write_text(card.read_text(encoding="utf-8").replace(_HERE, name), encoding="utf-8", newline="\n")


def fingerprint(files: Sequence[Path], restorer: OneStepRestorer | S3Diff, *others: nn.Module | None) -> str:
    """Digest (16 hex digits) of the weights' files and of the base, or without files of the networks' tensors."""
    if not files:
        return digest([one.state_dict() for one in (restorer, *others) if one is not None])
    base = "" if kind_of(files[0]) == "merged_restorer" else str(restorer.config.get("source", ""))
    folder = Path(base_folder(base)) if base else None  # a merged file includes its base
    return digest([*map(content, files), files_version(folder) if folder and folder.is_dir() else base])


def _card(
    restorer: OneStepRestorer | S3Diff, options: Mapping[str, Any], stage_one: str, faces: str, record: str
) -> str:
    source = restorer.config.get("source") or "not recorded"
    weights = sum(p.numel() for p in restorer.parameters()) / 1e6
    rows = "\n".join(f"| `{key}` | {value} |" for key, value in options.items())
    return f"""---
library_name: face2scene
pipeline_tag: image-to-image
tags: [image-restoration, face, one-step-diffusion]
---
# A Face2Scene pipeline

The degradation of a photo is estimated from a face in it, and the whole photo is restored with that estimate.

```python
from face2scene import Face2ScenePipeline

pipeline = Face2ScenePipeline.from_pretrained("{_HERE}", ref_fr=..., detector=...)
pipeline("photo.jpg", references="photos of the person").save("restored.png")
```

| file | content |
|---|---|
| `{RESTORER}` | {type(restorer).__name__}, {weights:.1f} M weights, on the base `{source}` |
| `{FADEX}` | FaDeX, the degradation encoder that the restorer was trained with |
| `{OPTIONS}` | options of the pipeline; face2scene {__version__} |

Not included, because their weights belong to others: Stage I (was `{stage_one}` when this was saved) and the face
detector (was `{faces}`). Without Stage I the learned null tokens are used, and the result's notes have a warning.

| option | value |
|---|---|
{rows}

The base model's licence applies to the restorer's file. A restored face is an estimate guided by other photos of the
person: it is no evidence of what somebody looked like.

Where it comes from (`face2scene explain` prints it):

```json
{record}
```
"""
