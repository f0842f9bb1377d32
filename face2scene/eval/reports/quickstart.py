"""The quickstart's report and scores, made from the files that its steps wrote to the run's folder."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from face2scene.common.files import atomic_write, read_json, read_seconds
from face2scene.common.model_files import load_weights
from face2scene.common.reproducibility import commit
from face2scene.eval.reports.quickstart_images import ImageGroup, scored_scenes
from face2scene.eval.reports.quickstart_page import HEADLINE, Figures, findings, page
from face2scene.eval.scoring import significance
from face2scene.eval.scoring.pairing import ScoreError
from face2scene.eval.scoring.results import write_scores
from face2scene.eval.scoring.score import DEFAULT_METRICS
from face2scene.inference.log import RESTORATION_LOG

RESTORED = ("trained_here", "restored", "wrong_tokens")  # outputs of scripts/restore.py in the run's folder


def quickstart_report(
    run: str | Path,
    *,
    dataset: str | Path,
    shipped: str | Path,
    scenes: str | Path | None = None,
    split: str = "val",
    metrics: Sequence[str] = DEFAULT_METRICS,
    device: str = "cpu",
) -> dict[str, Any]:
    """Score the quickstart's images, write report.html, scores.json and scores.csv, and print the findings.

    Args:
        run: the folder with `fadex/` and `restorer/` (trainings), and with `trained_here/`, `restored/` and
            `wrong_tokens/` (restored with this run's weights, with the shipped ones, and with these under another
            image's tokens); `input/` is written, and seconds.json is shown if it is there.
        dataset: the InScene folder whose pairs of `split` are input and ground truth.
        shipped: the folder with the shipped restorer.safetensors, fadex.safetensors and probe.json.
        scenes: the folder of the scenes' InScene sets by degradation; their restorations are in `run/scenes`. Without
            either the page has no scenes.

    Returns:
        The contents of `run/scores.json`.

    Raises:
        FileNotFoundError: a step of the quickstart has not been run yet.
    """
    run, dataset, shipped = Path(run), Path(dataset), Path(shipped)
    trained = [run / "fadex/weights/fadex.safetensors", run / "restorer/weights/restorer.safetensors"]
    for needed in (*trained, *(run / row / RESTORATION_LOG for row in RESTORED)):
        if not needed.is_file():
            raise FileNotFoundError(f"{needed} is not there yet: `make demo` makes it, and resumes where it stopped.")
    portraits = ImageGroup.read("portraits", dataset, {row: run / row for row in ("input", *RESTORED)}, split)
    rows = portraits.scored(metrics, device)
    groups, scene_means = ([], {}) if scenes is None else scored_scenes(run, Path(scenes), device)

    weights = {
        "trained_here": trained[1],
        "restored": shipped / "restorer.safetensors",
        "fadex": trained[0],
        "fadex_shipped": shipped / "fadex.safetensors",
    }
    probes = {"fadex": read_json(run / "fadex/weights/probe.json"), "fadex_shipped": read_json(shipped / "probe.json")}
    block = {
        **{
            row: {key: scores["means"][key] for key in HEADLINE if key in scores["means"]}
            for row, scores in rows.items()
        },
        **{name: {key: probe[f"{key}_mean"] for key in ("same", "different")} for name, probe in probes.items()},
        "steps": {name: load_weights(path, kind=path.stem)[2]["steps"] for name, path in weights.items()},
        "pictures": rows["restored"]["counts"]["scored"],
        "differences": {row: _differences(run / row, run / "restored") for row in ("input", "wrong_tokens")},
        "scenes": scene_means,
        "seconds": read_seconds(run / "seconds.json"),  # scripts/quickstart.py writes it; single commands do not
    }
    scores = {
        **rows["restored"],
        "rows": {name: {key: row[key] for key in ("complete", "means", "counts")} for name, row in rows.items()},
        "commit": commit(),
        "quickstart": block,
    }
    found = findings(block)
    write_scores(run / "scores.json", scores)
    with atomic_write(run / "scores.csv") as partial:
        shutil.copyfile(run / "restored/scores.csv", partial)
    with atomic_write(run / "report.html") as partial:
        html = page(Figures(run, portraits, groups, scores, found, probes))
        partial.write_text(html, encoding="utf-8", newline="\n")

    for finding in found:
        print(finding)
    print(f"report: {run / 'report.html'}")
    return scores


def _differences(first: Path, second: Path) -> dict[str, list[float]]:
    """Mean of (second - first) over the images, and its 95 % interval, by metric; none where a side is incomplete."""
    try:
        found = significance.compare(first, second)
    except ScoreError:
        return {}
    return {d.metric: [d.means[1] - d.means[0], *d.interval] for d in found if d.interval}
