"""Pages: all text is escaped, and only a page's own style and scripts may run."""

import base64
import hashlib
import html
import re

import numpy as np
import pytest
from jinja2 import UndefinedError

from face2scene.common import charts
from face2scene.common.pages import render
from face2scene.data.building.identity_clusters import Grouping, write_review

BAD = "<script>alert('1')</script>\" onload=\"x"


def page(**values):
    shown = {"title": BAD, "people": [], "maybe": {}, "threshold": 0.5} | values
    return render("identities.html.j2", style="collection.css", scripts=("page.js",), **shown)


def test_policy_hashes_inline_code():
    text = page()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    inline = re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in inline]
    assert len(digests) == 2 and re.findall(r"'sha256-(.*?)'", policy) == digests
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"<[^>]+ style=", text)  # the policy forbids style attributes


def test_names_are_escaped(tmp_path):
    write_review(tmp_path / "page.html", [(BAD, [(BAD, BAD, np.ones(1))])], Grouping(0.5))
    measured = charts.Histogram()
    measured.add(1.0)
    measured.count(1.0)
    texts = [
        (tmp_path / "page.html").read_text(),
        page(),
        page(people=[{"identity": BAD, "count": 1, "images": []}], maybe={BAD: [(BAD, 0.9)]}),
        charts.matrix_svg([[1.0]], [BAD]),
        charts.curve_svg(BAD, [(0, 1.0), (1, 2.0)]),
        charts.curves_svg(BAD, {BAD: [(0, 1.0), (1, 2.0)]}),
        charts.spread_svg(BAD, {BAD: [1.0, 2.0]}),
        measured.svg(BAD, [None, 1.0]),
    ]
    assert all("alert(" in text and "<script>alert" not in text and '" onload' not in text for text in texts)


def test_missing_template_value_is_refused():
    with pytest.raises(UndefinedError, match="stages"):
        render("funnel.html.j2", style="collection.css", title="", kept=1, total=1, left=[])
