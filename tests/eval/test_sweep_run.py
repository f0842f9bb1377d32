"""Sweep run."""

import pytest
from sweep_inputs import TOUCH, plan_of_steps

from face2scene.eval.sweeps.plan import Step, SweepPlan
from face2scene.eval.sweeps.run import pending, run_steps, submit_steps


def test_lost_product_requeues_dependents(tmp_path):
    needs = {"fadex": (), "a/restorer": ("fadex",), "a/restore": ("a/restorer",), "b/restore": ()}
    steps = tuple(Step(name, ("python", name), before, tmp_path / name) for name, before in needs.items())
    laid_out = SweepPlan(tmp_path, steps, (), {}, {})

    def make(step, log, environment):
        step.product.mkdir(parents=True)
        return ""

    assert run_steps(laid_out, pending(laid_out), runner=make, report=str) == {} and pending(laid_out) == []
    (tmp_path / "fadex").rmdir()
    assert [step.name for step in pending(laid_out)] == ["fadex", "a/restorer", "a/restore"]


def test_steps_run_in_parallel_on_gpus(tmp_path):
    note = (
        "import os, sys, time; mine = sys.argv[1]; open(mine, 'w').write(os.environ['CUDA_VISIBLE_DEVICES']);"
        "other = mine[:-1] + ('b' if mine[-1] == 'a' else 'a'); end = time.time() + 60\n"
        "while not os.path.exists(other):\n"
        "    assert time.time() < end, 'the other was not started meanwhile'\n"
        "    time.sleep(0.01)\n"
    )
    todo = plan_of_steps(tmp_path, ("a", note, ()), ("b", note, ()), ("c", TOUCH, ("a", "b")))
    assert run_steps(todo, pending(todo), gpus=["0,1", "2"], report=lambda _: None) == {}
    assert {(tmp_path / name).read_text() for name in "ab"} == {"0,1", "2"} and (tmp_path / "c").exists()
    assert pending(todo) == []


def test_failed_step_stops_dependents(tmp_path):
    wrong = "print('first'); print('out of disk'); raise SystemExit(3)"
    todo = plan_of_steps(
        tmp_path, ("a", wrong, ()), ("b", TOUCH, ("a",)), ("c", TOUCH, ("b",)), ("d", TOUCH, ()), ("e", "pass", ())
    )
    failed = run_steps(todo, pending(todo), report=lambda _: None)
    assert list(failed) == ["a", "b", "c", "e"] and (tmp_path / "d").exists()
    assert "exit code 3, last line: out of disk" in failed["a"] and failed["b"] == "not started, because a failed"
    assert "left no" in failed["e"]
    assert [step.name for step in pending(todo)] == ["a", "b", "c", "e"]


@pytest.mark.parametrize("cluster", [pytest.param("local", marks=pytest.mark.slow), "debug"])
def test_submitit_respects_dependencies(tmp_path, cluster):
    after = "import os, sys; assert os.path.exists(os.path.dirname(sys.argv[1]) + '/a'); open(sys.argv[1], 'w').close()"
    wrong = "raise SystemExit(2)"
    todo = plan_of_steps(tmp_path, ("a", TOUCH, ()), ("b", after, ("a",)), ("x", wrong, ()), ("y", TOUCH, ("x",)))
    parameters = {"timeout_min": 5, "slurm_partition": None, "slurm_account": "somebody"}
    failed = submit_steps(todo, pending(todo), cluster=cluster, parameters=parameters)
    assert set(failed) == {"x", "y"} and "exit code 2" in failed["x"] and failed["y"] == "not started, because x failed"
    assert (tmp_path / "b").exists() and [step.name for step in pending(todo)] == ["x", "y"]


def test_slurm_dependencies_are_set(tmp_path, monkeypatch):
    import submitit

    handed = []

    class Cluster:
        def __init__(self, folder, cluster):
            assert cluster == "slurm"

        def update_parameters(self, **given):
            self.given = given

        def submit(self, function, plan, step, cluster):
            handed.append((step.name, self.given))
            return type("RestorationTask", (), {"job_id": str(40 + len(handed))})

    monkeypatch.setattr(submitit, "AutoExecutor", Cluster)
    todo = plan_of_steps(tmp_path, ("a", TOUCH, ()), ("b", TOUCH, ("a",)))
    submit_steps(todo, pending(todo), cluster="slurm", parameters={"timeout_min": 5}, wait_for_all=False)
    (_, first), (_, second) = handed
    assert first == {"name": f"{tmp_path.name}-a", "timeout_min": 5}
    assert second["slurm_additional_parameters"] == {"dependency": "afterok:41", "kill_on_invalid_dep": "yes"}
    with pytest.raises(ValueError, match="submit must be one of slurm, local, debug"):
        submit_steps(todo, pending(todo), cluster="slrum", parameters={})
