"""Run the steps of a sweep that are not finished, on this machine or as jobs of a cluster."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from itertools import count
from os.path import isfile  # unlike Path's, it takes text of any length
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from face2scene.common.choices import one_of
from face2scene.common.files import read_json, remove_partials, write_json
from face2scene.common.ledger import content, differences
from face2scene.common.optional import import_optional
from face2scene.common.processes import run_group
from face2scene.data.records import version_of
from face2scene.eval.sweeps.plan import Step, SweepError, SweepPlan

log = logging.getLogger(__name__)
Runner = Callable[[Step, Path, Mapping[str, str]], str]  # step, log, environment -> why it failed, or empty


def run_in_process_group(step: Step, log_file: Path, environment: Mapping[str, str]) -> str:
    """The default runner: the command as a process group of its own."""
    result = run_group(step.words, log=log_file, environment=environment)
    return "" if result.code == 0 else f"{result} ({log_file})"


def pending(plan: SweepPlan) -> list[Step]:
    """The steps that are not finished, and all that need one of them, whose own products are then out of date.

    Raises:
        SweepError: a step was finished by another command, or with files that have been replaced since.
    """
    left = []
    for step in plan.steps:
        now, before = _identity(plan, step), _finished(plan, step)
        if before and _options(before["command"]) != _options(now["command"]):
            was, wanted = set(_options(before["command"])), set(_options(now["command"]))
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
    runner: Runner = run_in_process_group,
    report: Callable[[str], None] = print,
) -> dict[str, str]:
    """Run steps in the order of their needs, `jobs` at a time.

    Steps that need a failed one are not started; all others are.

    Args:
        gpus: values of CUDA_VISIBLE_DEVICES, one for each step that runs at the same time, in place of `jobs`.

    Returns:
        Name of a step -> why it failed or was not started.
    """
    remove_partials(plan.folder / "steps")
    slots: SimpleQueue[Mapping[str, str]] = SimpleQueue()
    visible = gpus or [None] * jobs
    for devices in visible:
        slots.put({} if devices is None else {"CUDA_VISIBLE_DEVICES": str(devices)})
    by_name, started = {step.name: step for step in steps}, count(1)
    failed: dict[str, str] = {}
    running: dict[Future[str], str] = {}

    def carry_out(step: Step) -> str:
        environment = slots.get()
        try:
            report(f"[{next(started)}/{len(steps)}] {step.name}")
            return perform(plan, step, environment, runner)
        finally:
            slots.put(environment)

    order = TopologicalSorter({step.name: [n for n in step.needs if n in by_name] for step in steps})
    order.prepare()
    pool = ThreadPoolExecutor(len(visible))
    try:
        while order.is_active():
            for name in order.get_ready():
                if lost := [need for need in by_name[name].needs if need in failed]:
                    failed[name] = f"not started, because {lost[0]} failed"
                    order.done(name)
                else:
                    running[pool.submit(carry_out, by_name[name])] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                if reason := future.result():
                    failed[name] = reason
                    report(f"{name} failed: {reason}")
                order.done(name)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing more is started
    return failed


def perform(plan: SweepPlan, step: Step, environment: Mapping[str, str], runner: Runner = run_in_process_group) -> str:
    """Run one step and mark it finished; returns why it failed, or an empty text."""
    identity = _identity(plan, step)  # of the files as they are at the start
    reason = runner(step, _marker(plan, step).with_suffix(".txt"), environment)
    if not reason and not step.product.exists():
        reason = f"it ended with code 0 and left no {step.product}"
    if not reason:
        write_json(_marker(plan, step), identity)
    return reason


def submit_steps(
    plan: SweepPlan, steps: Sequence[Step], *, cluster: str, parameters: Mapping[str, Any], wait_for_all: bool = True
) -> dict[str, str]:
    """Submit every step as a job of its own, with submitit.

    Args:
        cluster: `slurm`, whose scheduler keeps the order; `local` and `debug` run without a cluster, and a step is
            submitted when those that it needs have ended.
        parameters: of submitit's `update_parameters`; those of None are left out.
        wait_for_all: return when all have ended.

    Returns:
        Name of a step -> why it failed, of the steps that were waited for.

    Raises:
        ValueError: an unknown cluster.
        SweepError: one that this machine has no access to.
    """
    submitit = import_optional("submitit", "slurm", why="Submitting a sweep to a cluster")
    one_of("submit", cluster, ("slurm", "local", "debug"))
    given = {key: value for key, value in parameters.items() if value is not None}
    submitted: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for step in steps:
        before = [submitted[name] for name in step.needs if name in submitted]
        extra = dict(given)
        if cluster == "slurm" and before:
            order = {"dependency": "afterok:" + ":".join(job.job_id for job in before), "kill_on_invalid_dep": "yes"}
            extra["slurm_additional_parameters"] = {**given.get("slurm_additional_parameters", {}), **order}
        elif cluster != "slurm":
            lost = [name for name in step.needs if name in submitted and _failure(submitted[name])]
            if lost:
                failed[step.name] = f"not started, because {lost[0]} failed"
                continue
        try:
            executor = submitit.AutoExecutor(plan.folder / "jobs", cluster=cluster)
        except RuntimeError as error:  # no sbatch on this machine
            raise SweepError(f"submit={cluster} is not possible here ({error}).") from error
        executor.update_parameters(name=f"{plan.folder.name}-{step.name}".replace("/", "-"), **extra)
        submitted[step.name] = executor.submit(_run_job, plan, step, cluster)
    if wait_for_all:
        failed |= {name: reason for name, job in submitted.items() if (reason := _failure(job))}
    return failed


def _run_job(plan: SweepPlan, step: Step, cluster: str) -> str:
    reason = perform(plan, step, {})
    if reason and cluster == "slurm":
        raise RuntimeError(reason)  # so that the cluster does not start the steps that need this one
    return reason


def _failure(job: Any) -> str:
    """Why a submitted job failed, or an empty text; waits for its end."""
    try:
        return job.result()
    except Exception as error:  # of any kind on the cluster: the others are still waited for
        lines = [line for line in str(error).splitlines() if "Error: " in line] or [type(error).__name__]
        return f"job {job.job_id}: {lines[-1].strip()}"


def _identity(plan: SweepPlan, step: Step) -> dict[str, Any]:
    """What decides a step's product: the command without the interpreter's path, the set, and the files it names.

    Products of other steps are not among them, since a step is run again after those that it needs.
    """
    named = [Path(word.partition("=")[2]) for word in step.words[1:] if "=" in word]
    files = {str(path): content(path) for path in named if isfile(path) and not path.is_relative_to(plan.folder)}
    data = {str(plan.data): version_of(plan.data)} if plan.data else {}
    return {"command": list(step.words[1:]), "files": data | files}


def _options(words: Sequence[str]) -> list[str]:
    """Without the words that name the program; in markers of earlier versions that is the path of a script."""
    if "face2scene" in words:
        at = words.index("face2scene")  # -m face2scene NAME
        return [*words[: at - 1], *words[at + 2 :]]
    return [word for word in words if "=" in word or not word.endswith(".py")]


def _finished(plan: SweepPlan, step: Step) -> dict[str, Any] | None:
    """The identity with which a step was finished, or None; also None for a damaged marker."""
    try:
        before = read_json(_marker(plan, step)) if step.product.exists() else {}
    except (FileNotFoundError, ValueError):
        return None
    whole = isinstance(before, dict) and isinstance(before.get("files", {}), dict)
    words = before.get("command") if whole else None
    return before if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def _marker(plan: SweepPlan, step: Step) -> Path:
    return plan.folder / "steps" / f"{step.name.replace('/', '.')}.json"
