"""Scores, tables and the quickstart's report; configs/eval.yaml lists the ways to call it."""

import logging
import sys
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from face2scene.eval.probe_report import summary
from face2scene.eval.report import quickstart_report
from face2scene.eval.score import score_folder, truth_of
from face2scene.eval.tables import markdown, printed_table, row_from_scores

CONFIGS = Path(__file__).resolve().parent.parent / "configs/eval"


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval")
def main(cfg: DictConfig) -> None:
    """Do the one thing that was asked for."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    asked = [k for k in ("predictions", "table", "report", "probe", "figure", "complexity") if cfg.get(k) is not None]
    if len(asked) != 1:
        ways = "predictions=FOLDER truth=FOLDER name=NAME, table=N, report=quickstart, probe=fadex, figure=5"
        sys.exit(f"Say one of: {ways}, complexity=tiny.")
    run = Path(cfg.paths.runs) / cfg.name
    try:
        _do(cfg, run)
    except (FileNotFoundError, ValueError) as error:  # what a person can cause: the sentence, not the stack
        sys.exit(str(error))


def _do(cfg: DictConfig, run: Path) -> None:
    if cfg.table is not None:
        print(printed_table(CONFIGS, Path(cfg.paths.runs), cfg.table, cfg.format))
    elif cfg.report is not None:
        if cfg.report != "quickstart":
            sys.exit(f"There is no report {cfg.report!r}: choose quickstart (option report).")
        quickstart_report(
            run,
            dataset=cfg.dataset,
            shipped=cfg.shipped,
            split=cfg.split,
            metrics=tuple(cfg.report_metrics),
            device=cfg.device,
        )
    elif cfg.get("probe") is not None:
        print(summary(instantiate(cfg.probe, _convert_="all")(run)))
        print(f"all numbers: {run / 'probe.json'}, {run / 'probe.csv'}; picture: {run / 'images/probe.png'}")
    else:
        if cfg.truth is None:
            sys.exit("A folder is scored against the truth: say truth=FOLDER, pictures of the same names.")
        scores = score_folder(
            cfg.predictions,
            truth_of(cfg.truth, cfg.split),
            tuple(cfg.metrics),
            run,
            device=cfg.device,
            batch_pixels=cfg.batch_pixels,
        )
        columns = list(scores["protocol"])
        print(markdown([row_from_scores(cfg.name, run / "scores.json", columns)], columns))
        for key, reason in scores["not_measured"].items():
            print(f"{key}: not measured, {reason}")
        print(f"per picture: {run / 'scores.csv'}")


if __name__ == "__main__":
    main()
