"""Scores, tables and the quickstart's report; configs/eval.yaml lists the three ways to call it."""

import logging
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from face2scene.eval.report import quickstart_report
from face2scene.eval.score import score_folder, truth_of
from face2scene.eval.tables import markdown, printed_table, row_from_scores
from face2scene.files import read_json

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


# --- what a restoration costs; networks are imported here, so that scores and tables do without ---------------


def _models(cfg: DictConfig, model: str) -> tuple:
    """Restorer and FaDeX: the shipped tiny ones, or the paper's size with random weights."""
    from face2scene.eval.complexity import paper_models
    from face2scene.fadex.encoder import FaDeX
    from face2scene.restorer.backbone import precision
    from face2scene.restorer.load import load_restorer

    if model == "tiny":
        shipped = Path(cfg.shipped)
        return load_restorer(shipped / "restorer.safetensors"), FaDeX.from_file(shipped / "fadex.safetensors")
    if model == "paper":
        return paper_models(cfg.device, precision(cfg.cost.dtype))
    raise ValueError(f"There is no model {model!r}: choose tiny (the shipped weights) or paper (random ones).")


def _complexity(cfg: DictConfig, run: Path) -> None:
    from face2scene.eval import complexity as cost

    options = {key: cfg.cost[key] for key in ("sizes", "face", "warmup", "repeats")}
    paper = cfg.complexity == "paper"
    counted = cost.paper_models("meta", ranks=(0, 0)) if paper else None  # LoRAs are merged in use
    models = cost.paper_models("meta") if paper and not cfg.cost.timed else _models(cfg, cfg.complexity)
    titles = {"tiny": "the shipped tiny weights", "paper": "SD 2.1's size, random weights"}
    found = cost.complexity(*models, model=titles[cfg.complexity], counted=counted, **options)
    cost.write(found, run)
    print(cost.table(found))


def _figure_5(cfg: DictConfig, run: Path) -> None:
    from hydra.utils import instantiate

    from face2scene.eval.figure_5 import figure_5, table
    from face2scene.pipeline import Face2ScenePipeline

    if str(cfg.figure) != "5":
        raise ValueError(f"figure={cfg.figure} is not measured here: choose figure=5.")

    def load() -> tuple[Face2ScenePipeline, str]:
        stage_one = instantiate(cfg.ref_fr) or None
        options = {"colour": "wavelet", "tile": cfg.cost.tile, "largest_face": cfg.cost.face, "device": cfg.device}
        pipeline = Face2ScenePipeline(*_models(cfg, cfg.cost.model), ref_fr=stage_one, **options)
        return pipeline, f"{cfg.cost.model}, ref_fr={getattr(stage_one, 'name', 'none')}"

    if (run / "figure_5.json").is_file():
        print(f"{run / 'figure_5.json'} was measured before; remove it to measure again.")
        result = read_json(run / "figure_5.json")
    else:
        options = {"side": cfg.cost.side, "pictures": cfg.cost.pictures, "face": cfg.cost.face}
        result = figure_5(load, run, records=sorted(run.glob("*/baseline.json")), **options)
    print(table(result))


if __name__ == "__main__":
    main()
