"""Scores, tables and the quickstart's report; configs/eval.yaml lists the three ways to call it."""

import logging
import sys
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from face2scene.eval.complexity import complexity, paper_models
from face2scene.eval.complexity import table as complexity_table
from face2scene.eval.complexity import write as write_complexity
from face2scene.eval.figure_5 import figure_5
from face2scene.eval.figure_5 import table as figure_5_table
from face2scene.eval.report import quickstart_report
from face2scene.eval.score import score_folder, truth_of
from face2scene.eval.tables import markdown, printed_table, row_from_scores
from face2scene.fadex.encoder import FaDeX
from face2scene.pipeline import Face2ScenePipeline
from face2scene.restorer.backbone import precision
from face2scene.restorer.load import load_restorer

CONFIGS = Path(__file__).resolve().parent.parent / "configs/eval"


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval")
def main(cfg: DictConfig) -> None:
    """Do the one thing that was asked for."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    asked = [key for key in ("predictions", "table", "report", "figure", "complexity") if cfg[key] is not None]
    if len(asked) != 1:
        ways = "predictions=FOLDER truth=FOLDER name=NAME, table=N, report=quickstart, figure=5, complexity=tiny"
        sys.exit(f"Say one of: {ways}.")
    run = Path(cfg.paths.runs) / cfg.name
    try:
        _do(cfg, run)
    except (FileNotFoundError, ValueError) as error:  # what a person can cause: the sentence, not the stack
        sys.exit(str(error))


def _do(cfg: DictConfig, run: Path) -> None:
    if cfg.table is not None:
        print(printed_table(CONFIGS, Path(cfg.paths.runs), cfg.table, cfg.format))
    elif cfg.complexity is not None:
        _complexity(cfg, run)
    elif cfg.figure is not None:
        _figure_5(cfg, run)
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


# --- what a restoration costs -------------------------------------------------------------------------------


def _restorer_and_fadex(cfg: DictConfig, model: str) -> tuple:
    if model == "tiny":
        shipped = Path(cfg.shipped)
        return load_restorer(shipped / "restorer.safetensors"), FaDeX.from_file(shipped / "fadex.safetensors")
    if model == "paper":
        return paper_models(cfg.device, precision(cfg.cost.dtype))
    raise ValueError(f"There is no model {model!r}: choose tiny (the shipped weights) or paper (random ones).")


def _complexity(cfg: DictConfig, run: Path) -> None:
    options = {key: cfg.cost[key] for key in ("sizes", "face", "warmup", "repeats")}
    if cfg.complexity == "paper" and not cfg.cost.timed:
        models, counted = paper_models("meta"), None
    else:
        models = _restorer_and_fadex(cfg, cfg.complexity)
        counted = paper_models("meta") if cfg.complexity == "paper" else None
    titles = {"tiny": "the shipped tiny weights", "paper": "SD 2.1's size, random weights"}
    found = complexity(*models, model=titles[cfg.complexity], counted=counted, **options)
    write_complexity(found, run)
    print(complexity_table(found))


def _figure_5(cfg: DictConfig, run: Path) -> None:
    if str(cfg.figure) != "5":
        raise ValueError(f"figure={cfg.figure} is not measured here: choose figure=5.")

    def load() -> tuple[Face2ScenePipeline, str]:
        pipeline = Face2ScenePipeline(
            *_restorer_and_fadex(cfg, cfg.cost.model),
            ref_fr=instantiate(cfg.ref_fr) or None,
            colour="wavelet",
            tile=cfg.cost.tile,
            largest_face=cfg.cost.face,
            device=cfg.device,
        )
        return pipeline, f"{cfg.cost.model}, ref_fr={getattr(pipeline.ref_fr, 'name', 'none')}"

    records = {path.parent.name: path for path in sorted(run.glob("*/baseline.json"))}
    options = {"side": cfg.cost.side, "pictures": cfg.cost.pictures, "face": cfg.cost.face}
    print(figure_5_table(figure_5(load, run, records=records, **options)))


if __name__ == "__main__":
    main()
