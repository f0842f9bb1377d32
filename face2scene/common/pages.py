"""HTML pages from the Jinja templates of this folder, each a single file that includes its style and scripts.

Every text is escaped by the template engine. A page's Content-Security-Policy names the hashes of its own style and
scripts and allows no address but files and data URIs, so a page runs nothing else and makes no request.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from face2scene.common.files import atomic_write
from face2scene.common.provenance import provenance

_TEMPLATES = Path(__file__).with_name("templates")


def write_page(path: Path, template: str, *, style: str, scripts: Sequence[str] = (), **values: Any) -> None:
    """Write a page; the arguments of `render`."""
    with atomic_write(path) as partial:
        partial.write_text(render(template, style=style, scripts=scripts, **values), encoding="utf-8", newline="\n")


def render(template: str, *, style: str, scripts: Sequence[str] = (), **values: Any) -> str:
    """The HTML of a page.

    Args:
        template: extends `base.html.j2`.
        style: name of its style sheet among the templates.
        scripts: names of its scripts, in their order.
        values: of the template's variables; `title` is always needed. `provenance` is the record at the page's foot,
            this process's own if none is given.
    """
    record = json.dumps(values.pop("provenance", None) or provenance(), ensure_ascii=False)
    sheet, code = _text(style), [_text(name) for name in scripts]
    policy = {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "img-src": "'self' file: data:",
        "style-src": _hash(sheet),
        "script-src": " ".join(map(_hash, code)) or "'none'",
    }
    allowed = "; ".join(f"{what} {source}" for what, source in policy.items())
    return (
        _environment()
        .get_template(template)
        .render(style=sheet, scripts=code, policy=allowed, provenance=record, **values)
    )


def fragment(template: str, macro: str, *values: Any, **named: Any) -> Markup:
    """HTML of one macro of a template, which pages include without escaping it again."""
    return getattr(_environment().get_template(template).module, macro)(*values, **named)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fmt"] = format
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}
    return environment


def _text(name: str) -> Markup:
    return Markup("\n" + (_TEMPLATES / name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
