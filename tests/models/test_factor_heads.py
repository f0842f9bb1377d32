"""The heads that read a degradation's factors, with intervals, off FaDeX's layers."""

import math

import numpy as np
import pytest
import torch

from face2scene.common.reproducibility import REPOSITORY
from face2scene.degradation import GaussianNoise, Jpeg, Recipe
from face2scene.degradation.operators.basic import PoissonNoise
from face2scene.models.fadex import FactorHeads, FaDeX, LinearProbe, Readout
from face2scene.models.fadex.factor_heads import layer_statistics, scaled, unscaled
from face2scene.models.fadex.linear_readout import FACTORS, factors
from face2scene.models.fadex.pair_statistics import PAIR_STATISTICS, pair_statistics

SHIPPED = REPOSITORY / "checkpoints/fadex"


def small_encoder(inputs: str = "pair") -> FaDeX:
    torch.manual_seed(0)
    return FaDeX(widths=[8, 12], strides=[2, 1], embedding=6, inputs=inputs).eval()


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, 24, 32, generator=generator), torch.rand(1, 3, 24, 32, generator=generator)


def test_shot_noise_is_that_of_a_photo():
    """At mid-grey shot noise of scale 1 has a deviation of sqrt(0.5 / 256) where an image has 129 levels or more."""
    expected = 255 * math.sqrt(0.5 / 256)
    assert factors(Recipe((PoissonNoise(1.0),)))["noise"] == pytest.approx(expected, rel=0.04)
    assert factors(Recipe((PoissonNoise(3.0),)))["noise"] == pytest.approx(3 * expected, rel=0.04)


@pytest.mark.parametrize("inputs", ["pair", "lq_only", "difference"])
def test_statistics_are_those_of_the_layers(inputs):
    encoder = small_encoder(inputs)
    found = layer_statistics(encoder, *pair())
    features = encoder(*pair())
    assert found.shape == (1, 2 * (8 + 12))
    torch.testing.assert_close(found[:, 16:28], features.mean((-2, -1)))
    torch.testing.assert_close(found[:, 28:].exp(), features.std((-2, -1)) + 1e-3)


def test_scale_and_back():
    values = torch.tensor([[0.0, 0.0, 100.0, 1.0], [2.5, 17.0, 35.0, 0.25]])
    torch.testing.assert_close(unscaled(scaled(values)), values)
    assert unscaled(torch.tensor([-1.0, -1.0, 2.0, 1.0])).tolist() == [0.0, 0.0, 100.0, 1.0]


def test_saved_heads_read_the_same(tmp_path):
    encoder, heads = small_encoder(), FactorHeads(40, (16,)).eval()
    heads.reach.fill_(1.5)
    heads.save(tmp_path / "heads.safetensors")
    read = Readout(encoder, tmp_path / "heads.safetensors")(pair()[0][0], pair()[1][0])
    again = heads(layer_statistics(encoder, *pair()))
    for name in FACTORS:
        assert read[name] == pytest.approx(again[name], rel=1e-5)
        assert read[name].low <= read[name].value <= read[name].high


def test_heads_may_read_the_pair_too(tmp_path):
    encoder, heads = small_encoder(), FactorHeads(40 + PAIR_STATISTICS, (16,)).eval()
    heads.save(tmp_path / "heads.safetensors")
    read = Readout(encoder, tmp_path / "heads.safetensors")(pair()[0][0], pair()[1][0])
    again = heads(torch.cat([layer_statistics(encoder, *pair()), pair_statistics(*pair())], 1))
    assert read["noise"] == pytest.approx(again["noise"], rel=1e-5)


def test_linear_heads_read_without_interval(tmp_path):
    encoder, probe = small_encoder(), LinearProbe(6)
    probe.save(tmp_path / "linear.safetensors")
    read = Readout(encoder, tmp_path / "linear.safetensors")(pair()[0][0], pair()[1][0])
    assert {name: reading.value for name, reading in read.items()} == pytest.approx(
        probe(encoder.embed(encoder(*pair()))), rel=1e-5
    )
    assert all(math.isnan(reading.low) and "to" not in str(reading) for reading in read.values())


def test_other_heads_are_refused(tmp_path):
    FactorHeads(44).save(tmp_path / "heads.safetensors")
    with pytest.raises(ValueError, match="fitted on 44 features of an encoder, and this FaDeX has 40"):
        Readout(small_encoder(), tmp_path / "heads.safetensors")
    with pytest.raises(ValueError, match="nothing can be built from its header"):
        LinearProbe.from_file(tmp_path / "heads.safetensors")
    small_encoder().save(tmp_path / "fadex.safetensors")
    with pytest.raises(ValueError, match="holds 'fadex', not 'fadex_readout'"):
        Readout(small_encoder(), tmp_path / "fadex.safetensors")


def test_shipped_heads_read_noise_and_jpeg(photo):
    """Noise is read a fifth too low on this face (docs/readout.md), so order and interval are asked, not the value."""
    readout = Readout(FaDeX.from_file(SHIPPED / "fadex.safetensors"), SHIPPED / "readout.safetensors")
    gt = torch.from_numpy(np.ascontiguousarray(photo[40:168, 160:288].transpose(2, 0, 1))).float()
    noise = [readout(gt, Recipe((GaussianNoise(s),)).apply(gt))["noise"] for s in (4.0, 15.0, 30.0)]
    for level, reading in zip((4.0, 15.0, 30.0), noise, strict=True):
        assert reading.low <= level <= reading.high
    assert noise[0].high < noise[1].value < noise[2].value
    quality = [readout(gt, Recipe((Jpeg(q),)).apply(gt))["jpeg_quality"].value for q in (20, 50, 90)]
    assert quality == sorted(quality) and quality[0] == pytest.approx(20, abs=12)
