"""The ledger of finished work: what a digest sees, and what a corrupt file still tells."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from face2scene.common.ledger import Ledger, content, described, differences, digest, facts_of, unchanged
from face2scene.faces.backends.yunet_dlib import OpenBackend
from face2scene.faces.detect import Detector
from face2scene.ref_fr import Mixed, Perturbed

ODD = [
    "ü.png",
    "line\u2028sep.png",
    "nel\u0085.png",
    "new\nline.png",
    os.fsdecode(b"latin1-\xe9.png"),
    '{"name": "b".png',
]


def test_odd_names_come_back_and_are_one_line_each(tmp_path):
    ledger = Ledger(tmp_path / "log.jsonl")
    for name in ODD:
        ledger.append({"name": name, "value": name})
    read = Ledger(tmp_path / "log.jsonl").gather()
    assert list(read.lines) == ODD and not read.corrupt
    text = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["value"] for line in text.splitlines()] == ODD
    assert "ü.png" in text  # readable where it can be


@pytest.mark.parametrize("cut", range(1, 40))
def test_whatever_a_crash_cuts_the_other_lines_stay(tmp_path, cut):
    path, ledger = tmp_path / "log.jsonl", Ledger(tmp_path / "log.jsonl")
    for name in ("a", "ü", "c"):
        ledger.append({"name": name, "value": 1})
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(rows[0] + rows[1][: min(cut, len(rows[1]) - 2)] + rows[2])  # the next line is glued to it
    read = Ledger(path).read()
    assert read.lines["a"] == {"name": "a", "value": 1} and read.lines["c"] == {"name": "c", "value": 1}
    assert read.corrupt or read.lines["ü"] == {"name": "ü", "unfinished": True}


def test_lost_line_is_remembered_until_redone(tmp_path):
    path, ledger = tmp_path / "log.jsonl", Ledger(tmp_path / "log.jsonl")
    ledger.append({"name": "a"})
    path.write_bytes(path.read_bytes() + bytes(50))
    assert Ledger(path).gather().corrupt and Ledger(path).gather().corrupt  # a second crash before the end
    assert Ledger(path).gather(at_end=True).lines == {"a": {"name": "a"}}
    assert not Ledger(path).read().corrupt and path.read_text() == '{"name": "a"}\n'


def test_whole_lines_glued_together_are_two(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b'{"name": "a"}{"name": "b"} {"name": "c"}\n\n')
    read = Ledger(tmp_path / "log.jsonl").read()
    assert list(read.lines) == ["a", "b", "c"] and not read.corrupt


@pytest.mark.parametrize(
    "other",
    [
        Detector(OpenBackend(), min_face=500),
        Detector(OpenBackend(score_threshold=0.6)),
        Detector(None),
        Perturbed(softness=8.0),
        replace(Perturbed(), name="mine"),
        Mixed({"a": Perturbed(), "b": Perturbed(tint=0.3)}, {"a": 0.5, "b": 0.5}),
        torch.nn.Linear(2, 2),
        torch.zeros(2),
        np.zeros(2),
        torch.bfloat16,
    ],
)
def test_every_setting_of_an_object_decides(other):
    known = [Detector(OpenBackend()), Perturbed(), torch.nn.Linear(2, 2), torch.ones(2), np.ones(2), torch.float32]
    known.append(Mixed({"a": Perturbed(), "b": Perturbed()}, {"a": 0.5, "b": 0.5}))
    assert digest(other) not in map(digest, known)
    assert " at 0x" not in json.dumps(described([other, *known]))  # an address would differ in every process


def test_settings_digest_ignores_state():
    class Counts:
        def __init__(self, size: int, hidden: int = 1):
            self.size, self._hidden, self.seen = size, hidden, 0

    class KeepsElsewhere:
        def __init__(self, size: int):
            self.side = 2 * size

    used = Counts(1)
    used.seen = 5
    assert digest(used) == digest(Counts(1)) != digest(Counts(1, hidden=2))
    assert digest(KeepsElsewhere(1)) != digest(KeepsElsewhere(2))
    assert digest(Detector(OpenBackend())) == digest(Detector(OpenBackend()))


def test_content_detects_replaced_file_of_same_size(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before, facts = content(path), facts_of(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(facts["mtime_ns"],) * 2)
    assert content(path) != before
    os.utime(path, ns=(facts["mtime_ns"] + 1,) * 2)
    assert not unchanged(path, facts) and not unchanged(tmp_path / "none", facts) and not unchanged(path, None)
    path.write_bytes(b"one")
    assert unchanged(path, facts)  # touched and the same


def test_folder_content_ignores_hidden_files(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("1")
    first = content(tmp_path / "a")
    (tmp_path / "a/.state").write_text("2")
    assert content(tmp_path / "a") == first
    (tmp_path / "a/b/c").rename(tmp_path / "a/c")
    assert content(tmp_path / "a") != first


def test_differences_are_named():
    before, now = {"a": 1, "b": {"c": 1, "d": 2}, "e": 0}, {"a": 1, "b": {"c": 1, "d": 3}, "f": 0}
    assert list(differences(before, now)) == ["b.d", "e", "f"] and differences(now, now) == {}
