"""Scores, tables, figures and reports; configs/eval.yaml lists the ways to call it."""

import os
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from face2scene.cli.command_line import CONFIGS as ROOTS
from face2scene.cli.command_line import script
from face2scene.common.choices import one_of
from face2scene.common.files import atomic_write, read_json, ready_to_write, remove_partials
from face2scene.common.ledger import differences
from face2scene.common.locks import locked
from face2scene.common.memory import best_device, named_device
from face2scene.eval.reports.quickstart import quickstart_report
from face2scene.eval.reports.table_page import paper_table
from face2scene.eval.scoring.pairing import boxes_of, gt_of
from face2scene.eval.scoring.score import score_folder
from face2scene.eval.tables.render import markdown, row_from_scores

CONFIGS = ROOTS / "eval"


def _predictions(cfg: DictConfig, run: Path) -> None:
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=best_device().type == "cpu")
    if state.num_processes == 1 and cfg.threads:
        torch.set_num_threads(cfg.threads)
    scores = score_folder(
        cfg.predictions,
        None if cfg.gt is None else gt_of(cfg.gt, cfg.split),
        tuple(cfg.metrics),
        run,
        device=state.device if state.num_processes > 1 else named_device(cfg.device),
        batch_pixels=cfg.batch_pixels,
        boxes=None if cfg.gt is None else boxes_of(cfg.gt, cfg.split, cfg.boxes),
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
    print(f"per image: {run / 'scores.csv'}; means, intervals and protocol: {run / 'scores.json'}")
    if not all(part["complete"] for part in (scores, *scores.get("regions", {}).values())):
        sys.exit(1)


def _table(cfg: DictConfig, run: Path) -> None:
    runs = Path(cfg.paths.runs)
    text = paper_table(CONFIGS, runs, cfg.table, cfg.format, dict(cfg.sets))
    if cfg.format != "html":
        print(text)
        return
    with atomic_write(runs / f"table_{cfg.table}.html") as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
    print(runs / f"table_{cfg.table}.html")


def _figure(cfg: DictConfig, run: Path) -> None:
    from face2scene.eval.reports.figures import draw_figure

    if str(cfg.figure) == "5":
        _measure_figure_5(cfg, run)
    for path in draw_figure(str(cfg.figure), CONFIGS, Path(cfg.paths.runs), run, dict(cfg.sets)):
        print(path)


def _submit(cfg: DictConfig, run: Path) -> None:
    from face2scene.eval.reports.leaderboard import submit

    page, lacking = submit(cfg.submit, cfg.board or Path(cfg.paths.runs) / "leaderboard")
    print(page)
    if lacking:
        print(f"The entry is marked incomplete: {'; '.join(lacking)}.")
        sys.exit(1)


def _compare(cfg: DictConfig, run: Path) -> None:
    from face2scene.eval.scoring.significance import compare, table

    if len(cfg.compare) != 2:
        sys.exit(f"Two runs are compared, got {list(cfg.compare)} (option compare).")
    print(table(compare(*(Path(cfg.paths.runs) / name for name in cfg.compare)), *cfg.compare))


def _report(cfg: DictConfig, run: Path) -> None:
    one_of("report", cfg.report, ("quickstart", "gallery"))
    if cfg.report == "quickstart":
        quickstart_report(
            run,
            dataset=cfg.dataset,
            shipped=cfg.shipped,
            scenes=cfg.scenes,
            split=cfg.split,
            metrics=tuple(cfg.report_metrics),
            device=cfg.device,
        )
        return
    from face2scene.eval.reports.gallery import write_report

    if cfg.gt is None or not cfg.methods or not OmegaConf.is_config(cfg.methods):
        sys.exit("A gallery needs gt=FOLDER and methods=[RUN,...] or methods={TITLE: RUN}, scored before.")
    methods = OmegaConf.to_container(cfg.methods)
    methods = methods if isinstance(methods, dict) else {Path(name).name: name for name in methods}
    folders = {title: Path(cfg.paths.runs) / name for title, name in methods.items()}
    print(write_report(run, folders, gt_of(cfg.gt, cfg.split), title=cfg.name))


def _probe(cfg: DictConfig, run: Path) -> None:
    from hydra.utils import instantiate

    from face2scene.eval.probe.report import summary

    print(summary(instantiate(cfg.probe, _convert_="all")(run)))
    print(f"all numbers: {run / 'probe.json'}, {run / 'probe.csv'}; image: {run / 'images/probe.png'}")


# --- what a restoration costs; networks are imported here, so that scores and tables do without ---------------


def _models(cfg: DictConfig, model: str) -> tuple:
    """Restorer and FaDeX: the shipped tiny ones, or the paper's size with random weights."""
    import torch

    from face2scene.eval.cost.complexity import paper_models
    from face2scene.models.fadex.encoder import FaDeX
    from face2scene.models.loading import load_restorer
    from face2scene.models.restorer.base_model import precision

    one_of("cost.model", model, ("tiny", "paper"))
    if model == "tiny":
        shipped = Path(cfg.shipped)
        return load_restorer(shipped / "restorer.safetensors"), FaDeX.from_file(shipped / "fadex.safetensors")
    torch.backends.cuda.matmul.allow_tf32 = True  # as in restoring
    return paper_models(cfg.device, cfg.cost.dtype and precision(cfg.cost.dtype, "cost.dtype"))


def _complexity(cfg: DictConfig, run: Path) -> None:
    from face2scene.eval.cost import complexity

    one_of("complexity", cfg.complexity, ("tiny", "paper"))
    options = {key: cfg.cost[key] for key in ("sizes", "face", "warmup", "repeats")}
    paper = cfg.complexity == "paper"
    counted = complexity.paper_models("meta", ranks=(0, 0)) if paper else None  # LoRAs are merged in use
    models = complexity.paper_models("meta") if paper and not cfg.cost.timed else _models(cfg, cfg.complexity)
    titles = {"tiny": "the shipped tiny weights", "paper": "SD 2.1's size, random weights"}
    found = complexity.complexity(*models, model=titles[cfg.complexity], counted=counted, **options)
    complexity.write(found, run)
    print(complexity.table(found))


def _measure_figure_5(cfg: DictConfig, run: Path) -> None:
    from hydra.utils import instantiate

    from face2scene.eval.cost.timing import figure_5, table
    from face2scene.eval.tables.paper_tables import read_texts
    from face2scene.inference.pipeline import Face2ScenePipeline

    def load() -> tuple[Face2ScenePipeline, str]:
        stage_one = instantiate(cfg.ref_fr) or None
        options = {"colour": "wavelet", "tile": cfg.cost.tile, "max_face_size": cfg.cost.face, "device": cfg.device}
        pipeline = Face2ScenePipeline(*_models(cfg, cfg.cost.model), ref_fr=stage_one, **options)
        return pipeline, f"{cfg.cost.model}, ref_fr={getattr(stage_one, 'name', 'none')}"

    given = OmegaConf.to_container(cfg, resolve=True)
    asked = {key: given["cost"][key] for key in ("model", "side", "images", "tile", "face")}
    asked |= {"ref_fr": given["ref_fr"], "device": str(cfg.device)}
    if (path := run / "figure_5.json").is_file():
        result = read_json(path)
        if changed := differences(result.get("asked") or asked, asked):
            raise ValueError(
                f"{path} was measured otherwise (different: {', '.join(changed)}): choose another name=..."
            )
        print(f"{path} was measured before; remove it to measure again.")
    else:
        options = {"side": cfg.cost.side, "images": cfg.cost.images, "face": cfg.cost.face}
        printed = read_texts(CONFIGS / "figure_5.yaml")
        result = figure_5(load, run, printed, records=sorted(run.glob("*/baseline.json")), asked=asked, **options)
    print(table(result))


WAYS = {  # option -> how it is said, and what it does
    "predictions": ("predictions=FOLDER gt=FOLDER name=NAME", _predictions),
    "table": ("table=N", _table),
    "figure": ("figure=5", _figure),
    "submit": ("submit=FOLDER", _submit),
    "compare": ("compare=[RUN,RUN]", _compare),
    "report": ("report=quickstart or report=gallery", _report),
    "probe": ("probe=fadex", _probe),
    "complexity": ("complexity=tiny", _complexity),
}


@script("eval")
def main(cfg: DictConfig) -> None:
    """Carry out the one task that was chosen; exit code 1 also when a row is incomplete."""
    asked = [do for key, (_, do) in WAYS.items() if cfg.get(key) is not None]
    if len(asked) != 1:
        raise ValueError(f"Say one of: {', '.join(words for words, _ in WAYS.values())}.")
    run = Path(cfg.paths.runs) / cfg.name
    # Of several processes the first holds the folder; a training in it has a lock of its own.
    hold = asked[0] in (_predictions, _report, _probe) and os.environ.get("RANK", "0") == "0"
    with locked(run, "choose another name=...", name=".eval.lock", hold=hold):
        if hold:
            ready_to_write(run, "paths.runs or name")
            remove_partials(run, "thumbnails", *cfg.regions, seconds=3600)
        asked[0](cfg, run)


if __name__ == "__main__":
    main()
