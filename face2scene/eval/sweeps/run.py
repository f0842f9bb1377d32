"""Carrying out the steps of a sweep: on this machine, or handed to a cluster; finished ones are not done again."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from os.path import isfile  # which, unlike Path's, bears any text
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from face2scene.common.files import read_json, write_json
from face2scene.common.ledger import content, differences
from face2scene.common.optional import import_optional
from face2scene.common.processes import run_group
from face2scene.data.records import version_of
from face2scene.eval.sweeps.plan import Step, SweepError, SweepPlan

log = logging.getLogger(__name__)
Runner = Callable[[Step, Path, Mapping[str, str]], str]  # step, log, environment -> why it failed, or nothing


def in_a_process_group(step: Step, said: Path, environment: Mapping[str, str]) -> str:
    """The runner in force: the command as a process group of its own."""
    ended = run_group(step.words, log=said, environment=environment)
    return "" if ended.code == 0 else f"{ended} ({said})"


def pending(plan: SweepPlan) -> list[Step]:
    """The steps that are not finished, and all that need one of them: what they made is of another product.

    Raises:
        SweepError: a step was finished by another command, or of files that have been replaced since; the sweep's
            folder belongs to those.
    """
    left = []
    for step in plan.steps:
        now, before = _identity(plan, step), _finished(plan, step)
        if before and before["command"] != now["command"]:
            was, wanted = set(before["command"]), set(now["command"])
            raise SweepError(
                f"{plan.folder} holds a sweep with other options: {step.name} was run with "
                f"{' '.join(sorted(was - wanted)) or 'fewer options'} and is now asked for with "
                f"{' '.join(sorted(wanted - was)) or 'fewer options'}. Choose another name=..., or remove the folder."
            )
        if before and (changed := differences(before.get("files", {}), now["files"])):
            raise SweepError(
                f"{plan.folder} holds a sweep of other files: since {step.name} was run, these files were replaced "
                f"({', '.join(changed)}). Choose another name=..., or remove the folder."
            )
        if not before or any(earlier.name in step.needs for earlier in left):
            left.append(step)
    return left


def run_steps(
    plan: SweepPlan,
    steps: Sequence[Step],
    *,
    jobs: int = 1,
    gpus: Sequence[str] | None = None,
    runner: Runner = in_a_process_group,
    say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Run steps in the order of their needs, `jobs` at a time.

    A step that fails takes those that need it with it; all others go on.

    Args:
        gpus: CUDA_VISIBLE_DEVICES of each place; there are as many places as entries.

    Returns:
        Name of a step -> why it failed or was not started.
    """
    slots: SimpleQueue[Mapping[str, str]] = SimpleQueue()
    for place in gpus or [None] * jobs:
        slots.put({} if place is None else {"CUDA_VISIBLE_DEVICES": str(place)})
    waiting, names = list(steps), {step.name for step in steps}
    failed: dict[str, str] = {}
    done: set[str] = set()
    running: dict[Future[str], Step] = {}

    def carry_out(step: Step) -> str:
        environment = slots.get()
        try:
            return perform(plan, step, environment, runner)
        finally:
            slots.put(environment)

    with ThreadPoolExecutor(len(gpus) if gpus else jobs) as pool:
        while waiting or running:
            for step in list(waiting):
                lost = [name for name in step.needs if name in failed]
                if lost:
                    failed[step.name] = f"not started, because {lost[0]} failed"
                elif all(name in done or name not in names for name in step.needs):
                    if len(running) >= slots_of(gpus, jobs):
                        break
                    say(f"[{len(done) + len(failed) + len(running) + 1}/{len(names)}] {step.name}")
                    running[pool.submit(carry_out, step)] = step
                else:
                    continue
                waiting.remove(step)
            if running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    step = running.pop(future)
                    reason = future.result()
                    if reason:
                        failed[step.name] = reason
                        say(f"{step.name} failed: {reason}")
                    else:
                        done.add(step.name)
    return failed


def slots_of(gpus: Sequence[str] | None, jobs: int) -> int:
    """How many commands run at the same time."""
    return len(gpus) if gpus else jobs


def perform(plan: SweepPlan, step: Step, environment: Mapping[str, str], runner: Runner = in_a_process_group) -> str:
    """Run one step and mark it finished; returns why it is not, or nothing."""
    identity = _identity(plan, step)  # of the files as they are at the start
    reason = runner(step, _marker(plan, step).with_suffix(".txt"), environment)
    if not reason and not step.product.exists():
        reason = f"it ended well and left no {step.product}"
    if not reason:
        write_json(_marker(plan, step), identity)
    return reason


def submit_steps(
    plan: SweepPlan, steps: Sequence[Step], *, cluster: str, parameters: Mapping[str, Any], wait_for_all: bool = True
) -> dict[str, str]:
    """Hand every step to submitit as a job of its own.

    Args:
        cluster: `slurm`, whose scheduler keeps the order; `local` and `debug` are submitit without a cluster, and are
            handed a step when those that it needs have ended.
        parameters: of submitit's `update_parameters`; None is left out.
        wait_for_all: return when all have ended.

    Returns:
        Name of a step -> why it failed, as far as it was waited for.

    Raises:
        SweepError: an unknown cluster, or one that is not here.
    """
    submitit = import_optional("submitit", "slurm", why="Handing a sweep to a cluster")
    if cluster not in ("slurm", "local", "debug"):
        raise SweepError(f"submit is {cluster!r}: choose slurm, local or debug.")
    given = {key: value for key, value in parameters.items() if value is not None}
    handed: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for step in steps:
        before = [handed[name] for name in step.needs if name in handed]
        extra = dict(given)
        if cluster == "slurm" and before:
            order = {"dependency": "afterok:" + ":".join(task.job_id for task in before), "kill_on_invalid_dep": "yes"}
            extra["slurm_additional_parameters"] = {**given.get("slurm_additional_parameters", {}), **order}
        elif cluster != "slurm":
            lost = [name for name in step.needs if name in handed and _outcome(handed[name])]
            if lost:
                failed[step.name] = f"not started, because {lost[0]} failed"
                continue
        try:
            executor = submitit.AutoExecutor(plan.folder / "jobs", cluster=cluster)
        except RuntimeError as error:  # no sbatch on this machine
            raise SweepError(f"submit={cluster} is not possible here ({error}).") from error
        executor.update_parameters(name=f"{plan.folder.name}-{step.name}".replace("/", "-"), **extra)
        handed[step.name] = executor.submit(_job, plan, step, cluster)
    if wait_for_all:
        failed |= {name: reason for name, task in handed.items() if (reason := _outcome(task))}
    return failed


def _job(plan: SweepPlan, step: Step, cluster: str) -> str:
    reason = perform(plan, step, {})
    if reason and cluster == "slurm":
        raise RuntimeError(reason)  # a job that ends badly is what keeps the cluster from starting those after it
    return reason


def _outcome(task: Any) -> str:
    try:
        return task.result()
    except Exception as error:  # whatever became of it on the cluster, the others are still waited for
        said = [line for line in str(error).splitlines() if "Error: " in line] or [type(error).__name__]
        return f"job {task.job_id}: {said[-1].strip()}"


def _identity(plan: SweepPlan, step: Step) -> dict[str, Any]:
    """What decides a step's product: the command without the interpreter, which may move, and what it reads.

    That is the set, and the files that the command names; what the sweep itself has made is not among them, since a
    step that was run again takes those that need it with it.
    """
    named = [Path(word.partition("=")[2]) for word in step.words[1:] if "=" in word]
    files = {str(path): content(path) for path in named if isfile(path) and not path.is_relative_to(plan.folder)}
    data = {str(plan.data): version_of(plan.data)} if plan.data else {}
    return {"command": list(step.words[1:]), "files": data | files}


def _finished(plan: SweepPlan, step: Step) -> dict[str, Any] | None:
    """The identity with which a step was finished; a marker that was cut through counts as none."""
    try:
        before = read_json(_marker(plan, step)) if step.product.exists() else {}
        return before if {"command"} <= set(before) else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _marker(plan: SweepPlan, step: Step) -> Path:
    return plan.folder / "steps" / f"{step.name.replace('/', '.')}.json"
