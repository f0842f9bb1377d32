import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from face2scene.train.ema import EMA


def test_averages_follow_module_to_other_device():
    """Fake tensors have a device and no values, so no GPU is needed; an operation on two devices raises."""
    with FakeTensorMode():
        module = nn.Linear(2, 2)
        ema = EMA(module, 0.5)
        module.weight = nn.Parameter(torch.empty(2, 2, device="cuda"))  # as `accelerator.prepare` moves it
        module.bias = nn.Parameter(torch.empty(2, device="cuda"))
        ema.update()
        assert {value.device.type for value in ema.values.values()} == {"cuda"}
        with ema.average_parameters():
            assert module.weight.device.type == "cuda"
