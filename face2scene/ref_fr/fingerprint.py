"""Paths of a restorer's weights, and digests of weights and code for the cache's fingerprint."""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from face2scene.assets import catalogue
from face2scene.common.files import read_json, sha256_of


def resolve_paths(values: Mapping[str, str]) -> dict[str, Path]:
    """The path of each value: a path, or a name of the asset catalogue and a path in its folder.

    Args:
        values: by option of the config, for the message.

    Raises:
        MissingWeights, FileNotFoundError: not fetched, with the command for all of them; no such path.
    """
    found, absent = {}, []
    for option, value in values.items():
        name, _, inside = value.partition("/")
        asset = None if Path(value).exists() else catalogue.catalogue().get(name)
        found[option] = Path(value) if asset is None else catalogue.weights_root() / name / inside
        if asset is not None and not catalogue.is_ready(asset):
            absent.append(name)
        elif asset is None and not found[option].exists():
            raise FileNotFoundError(f"There is nothing at {value} (ref_fr.{option}).")
    if absent := list(dict.fromkeys(absent)):
        raise catalogue.MissingWeights(
            f"The weights of {', '.join(absent)} are not in {catalogue.weights_root()}: run `face2scene fetch "
            f"{' '.join(absent)}` (`face2scene fetch --list` shows their licences)."
        )
    return found


def digest(*texts: str) -> str:
    """32 hex digits."""
    return hashlib.sha256("\x1f".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def code_version(*parts: ModuleType | Callable) -> str:
    """Digest of the syntax trees of modules and functions, without comments and docstrings."""
    texts = []
    for part in parts:
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body[0] = ast.Pass()
        texts.append(ast.dump(tree))
    return digest(*texts)


def files_version(place: Path) -> str:
    """Digest of a file or of all files below a folder, with the digests of the catalogue's marker where it has them."""
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file() and p.name[0] != ".")
    recorded: dict[Path, str] = {}
    for parent in (place, *place.parents):
        if (parent / catalogue.MARKER).is_file():
            recorded = {parent / name: sha for name, sha in read_json(parent / catalogue.MARKER)["files"].items()}
            break
    return digest(*(f"{file.name} {recorded.get(file) or sha256_of(file)}" for file in files))
