"""A step on several batches, or on several processes, has the gradients of one whole batch."""

import pytest
import torch
from accelerate_processes import run_in_two_processes
from step_gradients import IMAGES, ORDERS, UNEQUAL, save_gradients, step_gradients

pytestmark = [pytest.mark.usefixtures("no_accelerator_of_another_test"), pytest.mark.numerics]


def assert_same(gradients: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(gradients) == len(expected)
    for gradient, whole in zip(gradients, expected, strict=True):
        # Sums over images in another order: float32 rounding, far below a gradient that is missing or mixed in.
        assert (gradient - whole).norm() <= 1e-3 * whole.norm() + 1e-7


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("negatives", [0, 3])
def test_accumulated_gradients_match_whole_batch(tiny_base, order, negatives):
    whole = step_gradients(tiny_base, order, negatives, 1)
    assert all(gradient.norm() > 1e-6 for gradient in whole)
    assert_same(step_gradients(tiny_base, order, negatives, IMAGES), whole)


def test_two_processes_match_whole_batch(tiny_base, tmp_path):
    """All positive images are on one process, so a mean per process would halve their weight."""
    run_in_two_processes(save_gradients, tiny_base, tmp_path)
    for order in ORDERS:
        whole = step_gradients(tiny_base, order, UNEQUAL, 1)
        for accumulate in (1, 4):
            assert_same(torch.load(tmp_path / f"{order}_{accumulate}.pt"), whole)
