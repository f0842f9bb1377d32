"""The quickstart: every step of the method by the public commands, timed. `make demo` runs this.

Each step is a command that can be run alone; it is printed when it starts. A finished step is recognised by its own
command, so that a stopped run goes on from there. What only needs the weights that ship runs beside the trainings, and
all steps share one import of the libraries.

    python scripts/quickstart.py [data.photos=FOLDER data.overwrite=true]

Options are handed to the first step: your own photos join the held-out images.
"""

import multiprocessing
import os
import shlex
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from threading import Event, Lock
from time import perf_counter

from face2scene.common.files import read_seconds, write_json
from face2scene.common.processes import killed_with_this_process
from face2scene.common.shipped import CHECKPOINTS

RUN = Path("runs/quickstart")
DATA = shlex.quote(f"{Path(os.environ.get('FACE2SCENE_DATA', 'data')).as_posix()}/quickstart")
SCENES = f"{DATA}_scenes"  # a folder for each degradation
EXPERIMENT = "experiment=quickstart"
TRAINED_HERE = (
    f"restorer_weights={RUN}/restorer/weights/restorer.safetensors fadex_weights={RUN}/fadex/weights/fadex.safetensors"
)
FADEX, RESTORER = (shlex.quote(f"{CHECKPOINTS.as_posix()}/tiny/{name}.safetensors") for name in ("fadex", "restorer"))
SHIPPED = f"restorer_weights={RESTORER} fadex_weights={FADEX}"
# overwrite: images restored with older weights are replaced, those with these weights are kept
RESTORE = f"restore {EXPERIMENT} input={DATA} overwrite=true"
# few images: the sweeps show a tendency (`limit=null` takes all)
SWEEP = (
    f"sweep {EXPERIMENT} use.restorer={RESTORER} use.fadex={FADEX} limit=6 metrics=[psnr,lpips,dists] "
    "sweep={0} name=quickstart/sweep/{0}"
)

FIRST = {"build the set": f"build-inscene {EXPERIMENT}"}
TRAININGS = {
    "train FaDeX": f"train-fadex {EXPERIMENT} name=quickstart/fadex",
    "train the restorer": f"train-restorer {EXPERIMENT} name=quickstart/restorer",
    "restore, weights of this run": f"{RESTORE} output={RUN}/trained_here {TRAINED_HERE}",
}
SPACES = ("tiny", "paper_same_size", "phone")
BESIDE = {
    "restore, shipped weights": f"{RESTORE} output={RUN}/restored {SHIPPED}",
    "restore, another image's tokens": f"{RESTORE} output={RUN}/wrong_tokens {SHIPPED} tokens_from=other",
    "build the scenes": f"build-inscene data=quickstart_scenes data.root={SCENES}/tiny degradation=tiny",
    **{
        f"degrade the scenes, {name}": f"redegrade data.root={SCENES}/tiny degradation={name} output={SCENES}/{name}"
        for name in SPACES[1:]
    },
    **{  # with the weights that restore photos by default
        f"restore the scenes, {name}": f"restore input={SCENES}/{name} output={RUN}/scenes/{name} "
        "ref_fr=perturbed overwrite=true"
        for name in SPACES
    },
    "sweep the guidance": SWEEP.format("cfg"),
    "sweep the tokens": SWEEP.format("tokens_used"),
}
LAST = {"score and report": f"eval {EXPERIMENT} report=quickstart name=quickstart dataset={DATA} scenes={SCENES}"}
STEPS = FIRST | TRAININGS | BESIDE | LAST

# What the steps import: once, in the process that they are forked from (there is none on Windows).
IMPORTED = [
    *("face2scene.cli.pipeline_config", "face2scene.cli.preflight", "face2scene.data.sources.generated"),
    *("face2scene.inference.batch", "face2scene.train.fadex_task", "face2scene.train.restorer_task"),
    *("face2scene.eval.reports.quickstart", "face2scene.eval.sweeps.run", "face2scene.faces.backends.yunet_dlib"),
]
_PROCESSES = Lock()  # starting one asks for the ends of the others, which can be read only once
_STOP = Event()  # no further step is started


def main() -> None:
    """Run the steps and stop at the first that fails; prints the path of the report."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    half = max(1, cores // 2)
    os.environ |= {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(half)}  # of what a step starts
    RUN.mkdir(parents=True, exist_ok=True)
    start, seconds = perf_counter(), read_seconds(RUN / "seconds.json")
    run_steps(FIRST, seconds, cores, options=sys.argv[1:])
    with ThreadPoolExecutor(1) as beside:
        others = beside.submit(run_steps, BESIDE, seconds, half, quietly=True)
        try:
            run_steps(TRAININGS, seconds, half)
        except BaseException:  # Ctrl-C too
            _STOP.set()
            raise
        others.result()
    # steps beside one another sum up to more
    seconds["all steps"] = max(round(perf_counter() - start, 1), seconds.get("all steps", 0.0))
    write_json(RUN / "seconds.json", seconds)
    run_steps(LAST, seconds, cores)
    report = (RUN / "report.html").resolve()
    print(f"\n{len(STEPS)} steps in {perf_counter() - start:.0f} s. The report is {report}")
    if sys.stdout.isatty() and os.environ.get("DISPLAY"):
        webbrowser.open(report.as_uri())


def run_steps(
    steps: Mapping[str, str],
    seconds: dict[str, float],
    threads: int,
    quietly: bool = False,
    options: Sequence[str] = (),
) -> None:
    """Run steps one after another; their seconds go to `seconds` and seconds.json. Exits where one fails.

    Quietly: what a step prints goes to a file of the run's folder `log`, which is shown if the step fails.
    """
    for name, command in steps.items():
        if _STOP.is_set():
            return
        words = [*shlex.split(command), *options]
        number, shown = list(STEPS).index(name) + 1, f"$ face2scene {shlex.join(words)}"
        log = RUN / "log" / f"{name.replace(', ', '_').replace(' ', '_')}.txt" if quietly else None
        if log is None:
            print(f"\n[{number}/{len(STEPS)}] {name}\n{shown}", flush=True)
        start = perf_counter()
        if code := run_step(words, log, threads):
            _STOP.set()
            said = log.read_text(encoding="utf-8", errors="replace") if log and log.is_file() else ""
            ended = f"Step {number} ({name}) ended with code {code}. Correct what it reports and run `make demo` again."
            sys.exit(f"{said}\n{ended}\n{shown}")
        spent = round(perf_counter() - start, 1)
        with _PROCESSES:
            seconds[name] = max(spent, seconds.get(name, 0.0))  # a later run skips work
            write_json(RUN / "seconds.json", seconds)
        beside = f"\n[{number}/{len(STEPS)}] {name}, beside the trainings; it wrote {log}\n{shown}\n" if log else ""
        print(f"{beside}({spent:.0f} s)", flush=True)


def run_step(words: list[str], log: Path | None, threads: int) -> int | None:
    """Exit code of a command of face2scene, in a process that is forked from one with everything imported."""
    forked = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forked else "spawn")
    if forked:
        context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_carry_out, args=(words, log, threads, multiprocessing.get_start_method()))
    with _PROCESSES:
        process.start()
    with killed_with_this_process(process.pid):
        wait([process.sentinel])
    with _PROCESSES:
        return process.exitcode


def _carry_out(words: list[str], log: Path | None, threads: int, method: str) -> None:
    from torch import set_num_threads  # in the step's own process

    from face2scene.cli.main import main as face2scene

    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
    set_num_threads(threads)
    multiprocessing.set_start_method(method, force=True)  # of its data loaders, as in a program started by itself
    sys.exit(face2scene(words))


if __name__ == "__main__":
    main()
