"""An ablation sweep: `python scripts/sweep.py sweep=cfg [experiment=...] [key=value ...] [--dry-run]`.

Every command is a process group of its own. The same command goes on where it stopped, and ends in a table.
"""

import shlex
import sys
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from face2scene.cli.command_line import script, typed_values
from face2scene.cli.config_text import key_of
from face2scene.cli.pipeline_config import device_of
from face2scene.common.files import atomic_write
from face2scene.common.locks import locked
from face2scene.eval.metrics.registry import choose
from face2scene.eval.sweeps.plan import Sweep, plan
from face2scene.eval.sweeps.run import Runner, pending, run_in_process_group, run_steps, submit_steps
from face2scene.eval.sweeps.table import collect, sharing_sentence
from face2scene.eval.sweeps.wandb_grid import wandb_grid

_OWN = "name sweep dry_run use limit metrics device each launch wandb jobs gpus submit wait slurm".split()  # noqa: SIM905


@script("sweep")
def main(cfg: DictConfig) -> None:
    """Plan, run what is not finished, score, print the table; exit code 1 when a step failed."""
    ours = HydraConfig.get()
    code = sweep(cfg, typed_values(ours.overrides.task), ours.runtime.choices.ref_fr)
    if code:
        sys.exit(code)


def sweep(cfg: DictConfig, given: list[str], stage_one: str, runner: Runner = run_in_process_group) -> int:
    """Carry out a composed configuration.

    Args:
        given: the overrides that it was composed with; they go on to the commands.
        stage_one: its choice of ref_fr, which is the trainings' by default and has to be said to restore.py.
    """
    options = OmegaConf.to_container(cfg.sweep, resolve=True)
    chosen = Sweep.from_dict(options)
    if cfg.launch and not Path(cfg.launch).is_file():
        raise FileNotFoundError(f"There is no file of accelerate at launch={cfg.launch}.")
    for key, weights in cfg.use.items():
        if weights is not None and not Path(weights).exists():
            raise FileNotFoundError(f"There are no weights at use.{key}={weights}.")
    choose(cfg.metrics)  # a misspelt metric is refused before anything is trained
    common = [word for word in given if key_of(word).partition(".")[0] not in _OWN]
    if not any(word.startswith("ref_fr=") for word in common):
        common.append(f"ref_fr={stage_one}")
    if cfg.wandb:
        grid = wandb_grid(chosen, common, cfg.use)
        with atomic_write(Path(cfg.wandb)) as temporary:
            temporary.write_text(yaml.safe_dump(grid, sort_keys=False), encoding="utf-8", newline="\n")
        print(f"wandb sweep {shlex.quote(cfg.wandb)}    gives the sweep an ID; wandb agent ID trains its variants.")
        return 0
    laid_out = plan(
        chosen,
        name=cfg.name,
        runs=cfg.paths.runs,
        data=cfg.data.root,
        common=common,
        each=OmegaConf.to_container(cfg.each),
        use=OmegaConf.to_container(cfg.use),
        launch=cfg.launch,
        limit=cfg.limit,
        device=cfg.device,
    )
    steps = pending(laid_out)
    for label, option in laid_out.left_out.items():
        print(f"The row {label!r} is left out: it needs use.{option}=WEIGHTS.")
    print(f"{chosen.title}: {len(laid_out.variants)} variants, {len(steps)} of {len(laid_out.steps)} steps to do.")
    if cfg.dry_run:
        for step in steps:
            print(f"\n{step.name}" + (f"   (after {', '.join(step.needs)})" if step.needs else ""))
            print(f"$ {shlex.join(step.words)}")
        return 0
    if not (Path(cfg.data.root) / "metadata.parquet").is_file():
        raise FileNotFoundError(f"There is no InScene set in {cfg.data.root} (data.root): build it first.")
    with locked(laid_out.folder, "choose another name=...", name=".sweep.lock"):  # a step may restore into this folder
        if cfg.submit:
            parameters = OmegaConf.to_container(cfg.slurm)
            failed = submit_steps(laid_out, steps, cluster=cfg.submit, parameters=parameters, wait_for_all=cfg.wait)
            if not cfg.wait:
                print("Handed in. The same command without submit=... makes the table when the jobs have ended.")
                return 0
        else:
            failed = run_steps(laid_out, steps, jobs=cfg.jobs, gpus=cfg.gpus, runner=runner)
        options = {"metrics": list(cfg.metrics), "limit": cfg.limit, "device": str(device_of(cfg))}
        result = collect(chosen, laid_out, failed=failed, **options)
    print("\n" + (laid_out.folder / "sweep.md").read_text(encoding="utf-8"))
    for sentence in filter(None, [sharing_sentence(result)]):
        print(sentence)
    print(f"Table, plot and numbers: {laid_out.folder / 'sweep.md'}, sweep.svg, sweep.png, sweep.json")
    for name, reason in failed.items():
        print(f"  {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    main()
