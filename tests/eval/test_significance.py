"""Significance."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import sem, t
from scored_folders import SCORERS, score_images, write_images

from face2scene.common.files import read_json, sha256_of, write_json
from face2scene.eval.scoring import results
from face2scene.eval.scoring.pairing import ScoreError
from face2scene.eval.scoring.results import interval
from face2scene.eval.scoring.score import score_folder
from face2scene.eval.scoring.significance import Difference, compare, corrected, table
from face2scene.eval.tables.render import row_from_scores


def write_scores(place: Path, values, key="psnr") -> Path:
    """A scored folder of these values."""
    place.mkdir(parents=True)
    lines = [f"name,{key}", *(f"{n:02d},{value}" for n, value in enumerate(values))]
    (place / "scores.csv").write_text("\n".join(lines) + "\n")
    protocol = {key: {"protocol": "", "weights_sha256": {}}}
    scores = {"protocol": protocol, "truth": {"pictures": 20}, "csv_sha256": sha256_of(place / "scores.csv")}
    write_json(place / "scores.json", scores)
    return place


DIRECTIONS = [("psnr", 2, "second"), ("psnr", 99, "mixed"), ("dists", 2, "first")]


def test_no_gt_scores_are_not_compared(tmp_path):
    musiq = {"musiq": lambda images: images.mean((1, 2, 3)).double()}
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "abc", 0.1)
    for name, against in (("with", gt), ("without", None), ("truth", None)):
        given = gt if name == "truth" else made
        score_folder(given, against, ["musiq"], tmp_path / f"out_{name}", scorers=musiq)
    assert compare(tmp_path / "out_without", tmp_path / "out_truth")[0].images == 3
    with pytest.raises(ScoreError, match="scored against other ground truths"):
        compare(tmp_path / "out_with", tmp_path / "out_without")


def test_comparison_finds_true_differences(tmp_path):
    names = [f"{n:02d}" for n in range(24)]
    for name, noise, seed in (("good", 0.05, 0), ("bad", 0.1, 1), ("alike", 0.05, 2)):
        score_images(tmp_path, name, names, noise, seed, keys=("dists", "psnr"))
    bad, alike = (compare(tmp_path / "out_good", tmp_path / f"out_{name}") for name in ("bad", "alike"))
    assert [d.verdict for d in bad] == ["first", "first"] and all(d.better == 0 and d.p_holm < 1e-4 for d in bad)
    assert bad[0].interval[0] > 0 > bad[1].interval[1]
    assert alike[0].interval[0] < 0.002 and "good is better" in table(bad, "good", "bad")
    same = compare(tmp_path / "out_good", tmp_path / "out_good")
    assert [d.verdict for d in same] == ["no difference found"] * 2 and same[0].better == 0.5


def test_holm_correction_by_hand():
    def tests(*ps):
        return [Difference("psnr", (0, 1), (0, 1), 1, p, p, 1, 9) for p in ps]

    # 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1, which may not fall below the one before
    (one,) = corrected([tests(0.01, 0.04, 0.03, 0.005)])
    assert [d.p_holm for d in one] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    two = corrected([tests(0.01, 0.04), tests(0.03, 0.005)])
    assert [d.p_holm for group in two for d in group] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [d.p_holm for d in corrected([tests(0.6, 0.5)])[0]] == [1, 1]


@pytest.mark.parametrize(("key", "fall", "verdict"), DIRECTIONS)
def test_verdict_follows_signed_ranks(key, fall, verdict, tmp_path):
    a = write_scores(tmp_path / "a", [20.0] * 20, key)
    b = write_scores(tmp_path / "b", [20 - fall, *(20 + (1 + n) / 20 for n in range(19))], key)
    (found,) = compare(a, b)
    assert found.p_holm < 0.05 and found.ranks == pytest.approx((190 - 20) / 210) and found.verdict == verdict
    assert ("means and signed ranks disagree" in table([found], "a", "b")) == (verdict == "mixed")


def test_unlike_scores_are_not_compared(tmp_path):
    score_images(tmp_path, "one", "abcd", keys=("dists",))
    score_images(tmp_path / "x", "two", "abce", keys=("dists",))
    with pytest.raises(ScoreError, match="only the first has d, only the second e"):
        compare(tmp_path / "out_one", tmp_path / "x/out_two")
    write_images(tmp_path / "y/truth", "abcd", 0.01, seed=5)  # another ground truth under the same names
    for made in (tmp_path / "one", tmp_path / "y/one"):
        score_folder(tmp_path / "one", made.parent / "truth", ["dists"], made / "out", scorers=SCORERS)
    with pytest.raises(ScoreError, match=r"scored against other ground truths, of 4 and 4 images.*option gt"):
        compare(tmp_path / "one/out", tmp_path / "y/one/out")
    score_images(tmp_path, "two", "abcd", keys=("dists",))
    changed = read_json(tmp_path / "out_two/scores.json")
    changed["protocol"]["dists"]["weights_sha256"] = {"other": "net"}
    results.write_scores(tmp_path / "out_two/scores.json", changed)
    with pytest.raises(ScoreError, match="another protocol"):
        compare(tmp_path / "out_one", tmp_path / "out_two")
    del changed["truth"]
    results.write_scores(tmp_path / "out_two/scores.json", changed)
    with pytest.raises(ScoreError, match=r"out_two does not say what it was scored against: score it again"):
        compare(tmp_path / "out_one", tmp_path / "out_two")


def test_edited_scores_are_refused(tmp_path):
    score_images(tmp_path, "mine", "abcd", keys=("dists", "fid"))
    file = tmp_path / "out_mine/scores.json"
    written = read_json(file)
    for part in ({"means": {"dists": 0.001}}, {"sets": {"fid": 0.5}}, {"complete": False}):
        write_json(file, written | part)
        with pytest.raises(ScoreError, match=r"scores\.json is not what was written, it was edited: score the folder"):
            row_from_scores("Mine", file, ["dists"])
        with pytest.raises(ScoreError, match="it was edited"):
            compare(file.parent, file.parent)
    for text in ("{", "[]", "{}"):
        file.write_text(text)
        with pytest.raises(ScoreError, match=r"scores\.json is no file of scores: score the folder again"):
            row_from_scores("Mine", file, ["dists"])


def test_one_image_has_no_interval(tmp_path):
    assert interval([0.5]) == [] and len(interval([0.5, 0.6])) == 2
    found = score_images(tmp_path, "one", "a", keys=("dists",))
    assert found["complete"] and found["intervals"] == {} and set(found["means"]) == {"dists"}
    (line,) = compare(tmp_path / "out_one", tmp_path / "out_one")
    assert line.interval == () and "+0.0000 [one image]" in table([line], "a", "b")


def test_interval_of_many_is_students():
    values = np.random.default_rng(4).normal(size=400)
    ends = t.interval(0.95, len(values) - 1, values.mean(), sem(values))
    # 2,000 draws leave the ends with a standard error of about a fortieth of the interval's width
    assert np.abs(np.array(ends) - interval(values)).max() < 0.1 * (ends[1] - ends[0])


def test_interval_narrows_with_more_images():
    values = np.random.default_rng(0).normal(size=400)
    few, many = interval(values[:40]), interval(values)
    assert few[0] < values[:40].mean() < few[1] and many[1] - many[0] < few[1] - few[0]
    assert many[1] - many[0] == pytest.approx(2 * 1.96 / 20, rel=0.15) and interval(values) == many
