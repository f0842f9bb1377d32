import pytest
import torch

from face2scene.mapnet import DegAttn, MapNet


def small(**options) -> MapNet:
    torch.manual_seed(0)
    return MapNet(**({"in_channels": 16, "channels": 32, "heads": 4, "width": 24} | options)).eval()


def test_the_papers_settings_give_21_tokens_of_width_1024():
    mapnet = MapNet()
    assert mapnet(torch.randn(1, 256, 8, 8)).shape == (1, 21, 1024)
    assert mapnet.attention.value.out_features == 512 and mapnet.attention.heads == 4
    assert mapnet.attention.norm.normalized_shape == (128,)  # a head's value reads both branches
    assert mapnet.attention.query_key[0].out_features == 2 * 256  # four heads of 64, queries and keys


@pytest.mark.parametrize(("grids", "count"), [((1,), 1), ((1, 2), 5), ((1, 2, 4), 21)])
def test_token_counts_of_the_ablation(grids, count):
    mapnet = small(grids=grids)
    assert mapnet.num_tokens == count
    assert mapnet(torch.randn(2, 16, 9, 13)).shape == (2, count, 24)


def test_tokens_run_from_the_global_one_to_the_finest_row_by_row():
    mapnet = small().requires_grad_(False)
    pooled = []
    for projector in mapnet.projectors:
        projector.forward = lambda x: pooled.append(x) or x.repeat(1, 1, 2)[..., :24]
    mapnet(torch.randn(1, 16, 16, 16))
    one, two, four = pooled
    assert [p.shape[1] for p in pooled] == [1, 4, 16]
    torch.testing.assert_close(two.mean(1, keepdim=True), one, atol=1e-5, rtol=0)
    corner = four.unflatten(1, (4, 4))[:, :2, :2].mean((1, 2))  # the upper left quarter
    torch.testing.assert_close(corner, two[:, 0], atol=1e-5, rtol=0)


def test_degattn_is_the_difference_of_two_softmax_maps_written_out():
    torch.manual_seed(1)
    attention = DegAttn(16, 4, 8, start=0.3)
    x = torch.randn(2, 5, 16)
    value = attention.value(x).unflatten(-1, (2, 8)).transpose(1, 2)
    maps = []
    for half, projection in zip(x.chunk(2, -1), attention.query_key, strict=True):
        query, key = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in projection(half).chunk(2, -1))
        maps.append((query @ key.transpose(-1, -2) / 4**0.5).softmax(-1))
    y = (maps[0] - 0.3 * maps[1]) @ value
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * attention.norm.weight
    expected = attention.project(y.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-5)


def test_the_smallest_face_is_16_pixels_and_less_is_refused():
    mapnet = small()
    assert mapnet(torch.randn(1, 16, 8, 8)).shape == (1, 21, 24)  # 16 pixels at FaDeX's stride of 2
    with pytest.raises(ValueError, match=r"too small for a 4 x 4 grid.*mapnet\.grids"):
        mapnet(torch.randn(1, 16, 6, 8))


def test_an_odd_number_of_heads_is_refused():
    with pytest.raises(ValueError, match="heads must be even"):
        DegAttn(16, 3, 8)
