"""Scores, tables, figures and reports; configs/eval.yaml lists the ways to call it."""

import logging
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from face2scene.eval.printed import printed_table
from face2scene.eval.report import quickstart_report
from face2scene.eval.score import score_folder, truth_of
from face2scene.eval.tables import markdown, row_from_scores
from face2scene.files import atomic_write

CONFIGS = Path(__file__).resolve().parent.parent / "configs/eval"
WAYS = {
    "predictions": "predictions=FOLDER truth=FOLDER name=NAME",
    "table": "table=N",
    "figure": "figure=5",
    "compare": "compare=[RUN,RUN]",
    "report": "report=quickstart or report=gallery",
}


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval")
def main(cfg: DictConfig) -> None:
    """Do the one thing that was asked for."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    asked = [key for key in WAYS if cfg[key] is not None]
    if len(asked) != 1:
        sys.exit(f"Say one of: {', '.join(WAYS.values())}.")
    run = Path(cfg.paths.runs) / cfg.name
    try:
        globals()[f"_{asked[0]}"](cfg, run)
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:  # what a person can cause: the sentence alone
        sys.exit(str(error))


def _predictions(cfg: DictConfig, run: Path) -> None:
    import torch
    from accelerate import PartialState

    from face2scene.eval.pairing import boxes_of

    if cfg.truth is None:
        sys.exit("A folder is scored against the truth: say truth=FOLDER, pictures of the same names.")
    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes == 1 and cfg.threads:
        torch.set_num_threads(cfg.threads)
    scores = score_folder(
        cfg.predictions,
        truth_of(cfg.truth, cfg.split),
        tuple(cfg.metrics),
        run,
        device=state.device if state.num_processes > 1 else cfg.device,
        batch_pixels=cfg.batch_pixels,
        boxes=boxes_of(cfg.truth, cfg.split, cfg.boxes),
        regions=tuple(cfg.regions),
        rank=state.process_index,
        processes=state.num_processes,
        wait=state.wait_for_everyone,
    )
    if not state.is_main_process:
        return
    columns = list(scores["protocol"])
    folders = {cfg.name: run, **{f"{cfg.name}, {region}": run / region for region in scores.get("regions", {})}}
    rows = [row_from_scores(title, folder / "scores.json", columns) for title, folder in folders.items()]
    print(markdown(rows, columns))
    for key, reason in scores["not_measured"].items():
        print(f"{key}: not measured, {reason}")
    print(f"per picture: {run / 'scores.csv'}; means, intervals and protocol: {run / 'scores.json'}")


def _table(cfg: DictConfig, run: Path) -> None:
    runs = Path(cfg.paths.runs)
    text = printed_table(CONFIGS, runs, cfg.table, cfg.format)
    if cfg.format != "html":
        print(text)
        return
    with atomic_write(runs / f"table_{cfg.table}.html") as partial:
        partial.write_text(text, encoding="utf-8")
    print(runs / f"table_{cfg.table}.html")


def _figure(cfg: DictConfig, run: Path) -> None:
    from face2scene.eval.figures import draw_figure

    for path in draw_figure(str(cfg.figure), CONFIGS, Path(cfg.paths.runs), run):
        print(path)


def _compare(cfg: DictConfig, run: Path) -> None:
    from face2scene.eval.compare import compare, table

    if len(cfg.compare) != 2:
        sys.exit(f"Two runs are compared, got {list(cfg.compare)} (option compare).")
    print(table(compare(*(Path(cfg.paths.runs) / name for name in cfg.compare)), *cfg.compare))


def _report(cfg: DictConfig, run: Path) -> None:
    if cfg.report == "quickstart":
        quickstart_report(
            run,
            dataset=cfg.dataset,
            shipped=cfg.shipped,
            split=cfg.split,
            metrics=tuple(cfg.report_metrics),
            device=cfg.device,
        )
        return
    if cfg.report != "gallery":
        sys.exit(f"There is no report {cfg.report!r}: choose quickstart or gallery (option report).")
    from face2scene.eval.gallery import write_report

    if cfg.truth is None or not cfg.methods:
        sys.exit("A gallery needs truth=FOLDER and methods=[RUN,...] or methods={TITLE: RUN}, scored before.")
    methods = OmegaConf.to_container(cfg.methods)
    methods = methods if isinstance(methods, dict) else {Path(name).name: name for name in methods}
    folders = {title: Path(cfg.paths.runs) / name for title, name in methods.items()}
    print(write_report(run, folders, truth_of(cfg.truth, cfg.split), title=cfg.name))


if __name__ == "__main__":
    main()
