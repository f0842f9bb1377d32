"""The quickstart: every step of the method through the public scripts, timed. `make demo` runs this.

Each step is a command that can be run alone; it is printed before it starts. A finished step is recognised by its own
script, so that a stopped run goes on from there.

    python scripts/quickstart.py [data.photos=FOLDER data.overwrite=true]

Options are handed to the first step: your own photos join the held-out images.
"""

import os
import shlex
import sys
import webbrowser
from pathlib import Path
from time import perf_counter

from face2scene.common.files import read_seconds, write_json
from face2scene.common.processes import run_attached
from face2scene.common.shipped import CHECKPOINTS

RUN = Path("runs/quickstart")
EXPERIMENT = "experiment=quickstart"
DATA = Path(os.environ.get("FACE2SCENE_DATA", "data")) / "quickstart"
LAUNCH = "accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
TRAINED_HERE = (
    f"restorer_weights={RUN}/restorer/weights/restorer.safetensors fadex_weights={RUN}/fadex/weights/fadex.safetensors"
)
FADEX, RESTORER = (shlex.quote(f"{CHECKPOINTS.as_posix()}/tiny/{name}.safetensors") for name in ("fadex", "restorer"))
SHIPPED = f"restorer_weights={RESTORER} fadex_weights={FADEX}"
# overwrite: images restored with older weights are replaced, those with these weights are kept
RESTORE = f"python -m face2scene restore {EXPERIMENT} input={DATA} overwrite=true"
# few images: the sweeps show a tendency (`limit=null` takes all)
USED = f"use.restorer={RESTORER} use.fadex={FADEX}"
SWEEP = f"python -m face2scene sweep {EXPERIMENT} {USED} limit=6 metrics=[psnr,lpips,dists]"

STEPS = {
    "build the set": f"{LAUNCH} -m face2scene build-inscene {EXPERIMENT}",
    "train FaDeX": f"{LAUNCH} -m face2scene train-fadex {EXPERIMENT} name=quickstart/fadex",
    "train the restorer": f"{LAUNCH} -m face2scene train-restorer {EXPERIMENT} name=quickstart/restorer",
    "restore, weights of this run": f"{RESTORE} output={RUN}/trained_here {TRAINED_HERE}",
    "restore, shipped weights": f"{RESTORE} output={RUN}/restored {SHIPPED}",
    "restore, another image's tokens": f"{RESTORE} output={RUN}/wrong_tokens {SHIPPED} tokens_from=other",
    "sweep the guidance": f"{SWEEP} sweep=cfg name=quickstart/sweep/cfg",
    "sweep the tokens": f"{SWEEP} sweep=tokens_used name=quickstart/sweep/tokens_used",
    "score and report": f"python -m face2scene eval {EXPERIMENT} report=quickstart name=quickstart dataset={DATA}",
}


def main() -> None:
    """Run the steps in order and stop at the first that fails; prints the path of the report."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    RUN.mkdir(parents=True, exist_ok=True)
    log = RUN / "seconds.json"
    seconds = read_seconds(log)
    for number, (name, command) in enumerate(STEPS.items(), start=1):
        words = shlex.split(command) + (sys.argv[1:] if number == 1 else [])
        print(f"\n[{number}/{len(STEPS)}] {name}\n$ {shlex.join(words)}", flush=True)
        start = perf_counter()
        code = run_attached(words, environment)
        if code:
            sys.exit(
                f"\nStep {number} ({name}) ended with code {code}. Correct what it reports and run `make demo` again."
            )
        spent = round(perf_counter() - start, 1)
        seconds[name] = max(spent, seconds.get(name, 0.0))  # a later run skips work
        write_json(log, seconds)
        print(f"({spent:.0f} s)", flush=True)
    report = (RUN / "report.html").resolve()
    print(f"\nThe report is {report}")
    if sys.stdout.isatty() and os.environ.get("DISPLAY"):
        webbrowser.open(report.as_uri())


if __name__ == "__main__":
    main()
