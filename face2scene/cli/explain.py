"""Where a file comes from: the record that was written with it or beside it."""

import html
import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from face2scene.common.files import read_json
from face2scene.common.ledger import Ledger, content, digest
from face2scene.data.records import METADATA, version_of
from face2scene.inference.log import RESTORATION_LOG
from face2scene.inference.pretrained import OPTIONS

_KEYS = ("provenance", "commit", "versions", "machine", "protocol", "truth", "predictions", "settings", "options")
_PAGE = re.compile(r'<pre id="provenance">(.*?)</pre>', re.DOTALL)


def explain(path: str | Path) -> dict[str, Any]:
    """The record of any output: an image, scores, a report, weights, a log, a data set or the folder of one.

    An image is found in the restoration log of a folder above it, another file in the record of its own folder.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: nothing is known about it, or its record is damaged.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}.")
    found = _of_folder(path) if path.is_dir() else _of_file(path)
    for folder in path.parents if found is None else ():
        log = folder / RESTORATION_LOG
        if log.is_file() and not path.is_dir() and (line := _line(log, path)) is not None:
            return {"is": "an image of a restoration", "log": str(log), **line}
        if (found := _of_folder(folder)) is not None:
            break
    if found is None:
        raise ValueError(f"{path} has no record of where it comes from, nor has a folder above it.")
    return found


def _of_file(path: Path) -> dict[str, Any] | None:
    path.open("rb").close()  # safetensors says of a file that may not be read that there is none
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                header = {key: _value(text) for key, text in (file.metadata() or {}).items()}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}).") from error
        return {"is": "weights", "sha256": content(path), **header}
    if path.suffix == ".html":
        match = _PAGE.search(path.read_text(encoding="utf-8", errors="replace"))
        return {"is": "a page", "provenance": _value(html.unescape(match[1]))} if match else None
    if path.suffix == ".json":
        values = read_json(path)
        known = {key: values[key] for key in _KEYS if key in values} if isinstance(values, dict) else {}
        return {"is": path.name, **known} if known else None
    return None


def _weights(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in filter(Path.is_file, sorted(folder.glob("*.safetensors"))):
        try:
            found[file.name] = _of_file(file)
        except (OSError, ValueError) as error:  # what was asked for may be another file
            found[file.name] = {"is": "damaged", "reason": str(error)}
    return found


def _of_folder(folder: Path) -> dict[str, Any] | None:
    weights = _weights(folder)
    if (folder / "config.yaml").is_file() and (folder / "commit.txt").is_file():
        files = _weights(folder / "weights")
        made_at, config = (folder / "commit.txt").read_text().strip(), content(folder / "config.yaml")
        return {"is": "a run", "folder": str(folder), "commit": made_at, "config_sha256": config, "weights": files}
    if (folder / "scores.json").is_file():
        return {"folder": str(folder), **(_of_file(folder / "scores.json") or {})}
    if (folder / RESTORATION_LOG).is_file():
        lines = [one for one in Ledger(folder / RESTORATION_LOG).read().lines.values() if "failed" not in one]
        records = {digest(line.get("provenance")): line.get("provenance") for line in lines}
        return {"is": "restorations", "folder": str(folder), "images": len(lines), "provenance": list(records.values())}
    if (folder / METADATA).is_file():
        build = read_json(folder / "build.json") if (folder / "build.json").is_file() else None
        return {"is": "a data set", "folder": str(folder), "data": version_of(folder), "settings": build}
    if (folder / OPTIONS).is_file():
        return {"is": "a pipeline", "folder": str(folder), "weights": weights, **read_json(folder / OPTIONS)}
    return {"is": "a folder of weights", "folder": str(folder), "weights": weights} if weights else None


def _line(log: Path, path: Path) -> dict[str, Any] | None:
    name = path.relative_to(log.parent).as_posix()
    for line in Ledger(log).read().lines.values():
        outputs = line.get("output", ())
        outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        if name in outputs:
            written = (line.get("written") or [{}] * len(outputs))[outputs.index(name)]
            return {"unchanged": written.get("sha256") == content(path), **line}
    return None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
