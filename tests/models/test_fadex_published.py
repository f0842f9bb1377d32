"""FaDeX against what others published and against runs worked out by hand."""

import pytest
import torch
from accelerate import Accelerator
from accelerate_processes import run_in_two_processes
from dasr import STRIDES, WIDTHS, dasr_encoder
from fadex_gradients import face_batch, gradients_of_batch, save_gradients_of_rank
from torch import nn
from torch.nn import functional as F

from face2scene.models.fadex import Contrast, FaDeX, MoCo


class PublishedDASR(nn.Module):
    """The layers that DASR's repository lists for its encoder, under its names."""

    def __init__(self):
        super().__init__()
        layers, width = [], 3
        for out, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
            layers += [nn.Conv2d(width, out, 3, stride, 1), nn.BatchNorm2d(out), nn.LeakyReLU(0.1)]
            width = out
        self.E = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.mlp = nn.Sequential(nn.Linear(256, 256), nn.LeakyReLU(0.1), nn.Linear(256, 256))

    def forward(self, x):
        features = self.E(x).flatten(1)
        return features, self.mlp(features)


@pytest.fixture(scope="module")
def published_dasr() -> PublishedDASR:
    torch.manual_seed(0)
    encoder = PublishedDASR()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics and weights as after a training
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    return encoder.eval()


@pytest.mark.numerics
@pytest.mark.parametrize("prefix", ["", "encoder_q.", "E.encoder_q."])
def test_dasr_checkpoint_features_match(published_dasr, prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in published_dasr.state_dict().items()}
    if prefix:  # its MoCo holds a key encoder of the same names beside
        state |= {name.replace("encoder_q", "encoder_k"): torch.zeros_like(t) for name, t in state.items()}
    encoder = dasr_encoder(state)
    image = torch.rand(2, 3, 36, 44)
    with torch.no_grad():
        features, code = published_dasr(image * 255)  # DASR's `rgb_range`
        own = encoder(torch.rand_like(image), image)
    assert own.shape == (2, 256, 9, 11)
    torch.testing.assert_close(own.mean((-2, -1)), features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.embed(own), F.normalize(code, dim=1), rtol=1e-4, atol=1e-5)


def test_non_dasr_state_dict_raises(published_dasr):
    with pytest.raises(ValueError, match=r"0 keys end in mlp\.2\.weight"):
        dasr_encoder({"layer.weight": torch.zeros(3)})
    state = published_dasr.state_dict()
    with pytest.raises(ValueError, match="does not fit FaDeX"):
        dasr_encoder({**state, "mlp.2.weight": torch.zeros(128, 256)})
    del state["E.16.running_mean"]
    with pytest.raises(ValueError, match=r"missing \['body\.16\.running_mean'\]"):
        dasr_encoder(state)


def test_dasr_option_has_dasr_layers(published_dasr):
    encoder = FaDeX(WIDTHS, STRIDES)
    own = [tuple(m.weight.shape) for m in encoder.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    theirs = [tuple(m.weight.shape) for m in published_dasr.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert own == [(64, 6, 3, 3), *theirs[1:]]  # the pair has six channels


@pytest.mark.numerics
def test_loss_matches_supcon_library():
    from pytorch_metric_learning import losses

    torch.manual_seed(0)
    queries, keys = (F.normalize(torch.randn(n, 16, dtype=torch.float64), dim=1) for n in (12, 20))
    labels, names = torch.arange(12) // 3, torch.tensor([*(torch.arange(12) // 3).tolist(), *range(4, 12)])
    same = labels[:, None] == names
    own = Contrast(queries @ keys.T / 0.07, same, ~same, keys, names).loss(mean_over_positives=True)
    theirs = losses.SupConLoss(temperature=0.07)(queries, labels, ref_emb=keys, ref_labels=names)
    assert own.item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.numerics
def test_momentum_and_queue_match_by_hand():
    module = MoCo(FaDeX(widths=(4,), strides=(1,), embedding=2), queue_size=5, momentum=0.9)
    steps = [(0.5, [1, 2]), (-1.0, [3, 4, 5]), (2.0, [6])]  # of every query weight, and the labels of its keys
    slow = 0.25
    with torch.no_grad():
        for weight in module.key.parameters():
            weight.fill_(slow)
        for fast, labels in steps:
            for weight in module.query.parameters():
                weight.fill_(fast)
            module.update(torch.tensor([[float(n), -n] for n in labels]), torch.tensor(labels))
            slow = 0.9 * slow + 0.1 * fast
            assert all((w - slow).abs().max() < 1e-6 for w in module.key.parameters())
    assert module.queue.labels.tolist() == [6, 2, 3, 4, 5]  # the oldest has gone
    assert module.queue.keys.tolist() == [[6, -6], [2, -2], [3, -3], [4, -4], [5, -5]]
    assert module.queue.cursor == 1


@pytest.mark.numerics
@pytest.mark.usefixtures("no_accelerator_of_another_test")
def test_unequal_batches_match_one_process(tmp_path):
    run_in_two_processes(save_gradients_of_rank, tmp_path)
    whole = gradients_of_batch(Accelerator(cpu=True), face_batch(0, 6), 1.0)
    assert whole["queue.labels"].tolist() == [1, 2, 1, 3, 4, 5] + [-1] * 6
    for rank in (0, 1):
        part = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert part.keys() == whole.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(part[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
