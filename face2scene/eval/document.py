"""What all pages share: the document around sections, the slider that compares two pictures, lists and notes.

A page is one HTML file with its style and script in it (page.css, page.js); what asks nothing of the network stays so.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from face2scene.images import to_bytes

Section = tuple[str, str, str]  # anchor, title, HTML


def document(
    title: str,
    kicker: str,
    heading: str,
    facts: Sequence[str],
    sections: Sequence[Section],
    scripts: Sequence[str] = (),
) -> str:
    """The whole HTML document; all texts but the sections' content are escaped here."""
    links = "".join(f'<a href="#{key}">{html.escape(name)}</a>' for key, name, _ in sections)
    body = "".join(
        f'<section id="{key}"><h2>{html.escape(name)}</h2>{content}</section>' for key, name, content in sections
    )
    said = html.escape(" · ".join(facts))
    code = "".join(f"<script>\n{_beside(script)}</script>" for script in ("page.js", *scripts))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>\n{_beside('page.css')}</style></head><body>"
        f'<header><div class="wrap"><p class="kicker">{html.escape(kicker)}</p><h1>{html.escape(heading)}</h1>'
        f'<p class="facts">{said}</p></div></header>'
        f'<nav aria-label="Sections"><div class="wrap">{links}</div></nav><main class="wrap">{body}</main>'
        f"{code}</body></html>\n"
    )


def slider(name: str, size: tuple[int, int], pictures: str) -> str:
    """A box that shows two of its pictures with a movable cut between them.

    Args:
        size: width and height.
        pictures: `<img data-view=...>` elements.
    """
    return (
        f'<div class="compare" style="aspect-ratio:{size[0]}/{size[1]}">{pictures}'
        '<span class="tag l"></span><span class="tag r"></span><span class="bar" aria-hidden="true"></span>'
        '<input type="range" min="0" max="100" value="50" '
        f'aria-label="{html.escape(name)}: share of the left picture"></div>'
    )


def select(key: str, label: str, titles: Mapping[str, str], chosen: str, tags: Mapping[str, str] | None = None) -> str:
    """A menu; `tags` are the short names that sliders show."""
    items = "".join(
        f'<option value="{html.escape(value)}" data-tag="{html.escape((tags or titles)[value])}"'
        f"{' selected' if value == chosen else ''}>{html.escape(title)}</option>"
        for value, title in titles.items()
    )
    return f'<label>{label}<select id="{key}">{items}</select></label>'


def protocol_list(protocol: Mapping[str, Mapping[str, str]]) -> str:
    """How each number is made, folded away."""
    how = "".join(f"<dt>{entry['title']}</dt><dd>{html.escape(entry['protocol'])}</dd>" for entry in protocol.values())
    return f"<details><summary>How each number is made</summary><dl>{how}</dl></details>"


def pairs_table(values: Mapping[str, str]) -> str:
    """Names and values, small."""
    lines = "".join(
        f'<tr><th scope="row">{html.escape(k)}</th><td>{html.escape(v)}</td></tr>' for k, v in values.items()
    )
    return f'<table class="mini"><tbody>{lines}</tbody></table>'


def data_uri(image: np.ndarray, quality: int = 92) -> str:
    """A picture (H, W, 3) in [0, 1] as a JPEG without colour subsampling, inside the page."""
    out = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(out, format="JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
