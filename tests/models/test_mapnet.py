import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from face2scene.common.model_files import load_weights
from face2scene.common.reproducibility import REPOSITORY
from face2scene.models.mapnet import DegAttn, MapNet

pytestmark = pytest.mark.numerics


def small_mapnet(**options) -> MapNet:
    torch.manual_seed(0)
    return MapNet(**({"in_channels": 16, "channels": 32, "heads": 4, "width": 24} | options)).eval()


def test_paper_settings_give_21_tokens():
    mapnet = MapNet()
    assert mapnet(torch.randn(1, 256, 8, 8)).shape == (1, 21, 1024)
    assert mapnet.attention.value.out_features == 512 and mapnet.attention.heads == 4
    assert mapnet.attention.norm.normalized_shape == (128,)  # a head's value reads both branches
    assert mapnet.attention.query_key[0].out_features == 2 * 256  # four heads of 64, queries and keys


@pytest.mark.parametrize(("grids", "count"), [((1,), 1), ((1, 2), 5), ((1, 2, 4), 21)])
def test_grids_set_token_count(grids, count):
    mapnet = small_mapnet(grids=grids)
    assert mapnet.num_tokens == count
    assert mapnet(torch.randn(2, 16, 9, 13)).shape == (2, count, 24)


def test_tokens_run_coarse_to_fine():
    mapnet = small_mapnet().requires_grad_(False)
    pooled = []
    for projector in mapnet.projectors:
        projector.forward = lambda x: pooled.append(x) or x.repeat(1, 1, 2)[..., :24]
    mapnet(torch.randn(1, 16, 16, 16))
    one, two, four = pooled
    assert [p.shape[1] for p in pooled] == [1, 4, 16]
    torch.testing.assert_close(two.mean(1, keepdim=True), one, atol=1e-5, rtol=0)
    corner = four.unflatten(1, (4, 4))[:, :2, :2].mean((1, 2))  # the upper left quarter
    torch.testing.assert_close(corner, two[:, 0], atol=1e-5, rtol=0)


def test_degattn_matches_formula():
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


class LargestTensor(TorchDispatchMode):
    """Counts the elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [result] if isinstance(result, torch.Tensor) else result if isinstance(result, tuple | list) else []
        self.elements = max([self.elements, *(t.numel() for t in made if isinstance(t, torch.Tensor))])
        return result


def test_attention_keeps_no_map_of_all_pairs():
    attention, places = DegAttn(64, 4, 16), 1024
    with LargestTensor() as seen:
        attention(torch.randn(1, places, 64, requires_grad=True)).square().sum().backward()
    assert seen.elements < places * places / 4  # a map of a 416 px face has 10,816 places: 4.2 GB in four heads


def test_smallest_face_is_16_pixels():
    mapnet = small_mapnet()
    assert mapnet(torch.randn(1, 16, 8, 8)).shape == (1, 21, 24)  # 16 pixels at FaDeX's stride of 2
    with pytest.raises(ValueError, match=r"too small for a 4 x 4 grid.*mapnet\.grids"):
        mapnet(torch.randn(1, 16, 6, 8))


def test_odd_head_count_raises():
    with pytest.raises(ValueError, match="heads must be even"):
        DegAttn(16, 3, 8)


def microsoft_attention(x, query, key, value, out, vectors, norm, *, heads, start):
    """MultiheadDiffAttn of microsoft/unilm as facts of its code: 2h and 2h + 1 are the two maps of output head h.

    No mask and no rotation; weights are (out, in) matrices; without the last factor 1 - start.
    """
    batch, count, channels = x.shape
    width = channels // heads // 2
    q = (x @ query.T).view(batch, count, 2 * heads, width).transpose(1, 2)
    k = (x @ key.T).view(batch, count, 2 * heads, width).transpose(1, 2)
    v = (x @ value.T).view(batch, count, heads, 2 * width).transpose(1, 2)
    maps = (width**-0.5 * q @ k.transpose(-1, -2)).softmax(-1, dtype=torch.float32)
    maps = maps.view(batch, heads, 2, count, count)
    strength = (vectors[0] * vectors[1]).sum().exp() - (vectors[2] * vectors[3]).sum().exp() + start
    attended = (maps[:, :, 0] - strength * maps[:, :, 1]) @ v
    attended = attended * (attended.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm
    return attended.transpose(1, 2).reshape(batch, count, channels) @ out.T


def test_degattn_matches_microsoft_attention():
    torch.manual_seed(2)
    channels, heads, half = 512, 4, 256
    ours = DegAttn(channels, 2 * heads, channels, start=0.35, scalar="reparametrised")
    with torch.no_grad():
        ours.vectors.normal_(std=0.3)
        ours.norm.weight.uniform_(0.5, 1.5)
    weights = {name: torch.zeros(channels, channels) for name in ("query", "key")}
    for branch, projection in enumerate(ours.query_key):  # even heads read the first half only, odd ones the second
        for name, part in zip(weights, projection.weight.detach().chunk(2), strict=True):
            rows = weights[name].view(heads, 2, 64, channels)
            rows[:, branch, :, branch * half : (branch + 1) * half] = part.view(heads, 64, half)
    x = torch.randn(2, 30, channels)
    expected = microsoft_attention(
        x,
        **weights,
        value=ours.value.weight,
        out=ours.project.weight,
        vectors=ours.vectors,
        norm=ours.norm.weight,
        heads=heads,
        start=0.35,
    )
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1  # the tolerance is small beside what is compared


def test_reparametrised_scalar_learns():
    torch.manual_seed(0)
    attention = DegAttn(512, 8, 16, scalar="reparametrised")
    assert attention.scalar.item() == pytest.approx(0.2, abs=0.5)
    attention(torch.randn(1, 4, 512)).square().sum().backward()
    assert (attention.vectors.grad.abs().amax(-1) > 1e-2).all()  # 0.56 and more; rounding leaves 1e-7 of a true zero


def test_norm_over_all_heads_differs():
    torch.manual_seed(0)
    together, x = DegAttn(16, 4, 8, norm="all"), torch.randn(2, 5, 16)
    separate = DegAttn(16, 4, 8)
    separate.load_state_dict({k: v for k, v in together.state_dict().items() if k != "norm.weight"}, strict=False)
    assert together.norm.normalized_shape == (16,) and separate.norm.normalized_shape == (8,)
    assert not torch.allclose(together(x), separate(x), atol=1e-3)
    inner = []
    together.project.register_forward_hook(lambda module, inputs, output: inner.append(inputs[0]))
    together(x)
    torch.testing.assert_close(inner[0].square().mean(-1), torch.ones(2, 5), atol=1e-2, rtol=0)


def test_plain_attention_matches_torch():
    mapnet = small_mapnet(attention="plain").requires_grad_(False)
    attention = mapnet.attention
    theirs = torch.nn.MultiheadAttention(32, 4, bias=False, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(attention.query_key_value.weight)
        theirs.out_proj.weight.copy_(torch.eye(32))
    x = torch.randn(2, 7, 32)
    expected = attention.project(theirs(x, x, x, need_weights=False)[0])
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=0)
    assert mapnet(torch.randn(1, 16, 8, 8)).shape == (1, 21, 24)


def test_shared_projector_serves_all_scales():
    shared, separate = small_mapnet(projectors="shared"), small_mapnet()
    assert len(shared.projectors) == 1 and len(separate.projectors) == 3
    flat = torch.ones(1, 16, 32, 32)
    shared.attention.forward = lambda x: torch.ones(1, x.shape[1], 16)  # every cell of every scale is the same
    tokens = shared(flat)
    torch.testing.assert_close(tokens, tokens[:, :1].expand(-1, 21, -1))


@pytest.mark.parametrize(
    "options", [{"attention": "linear"}, {"scalar": "fixed"}, {"norm": "batch"}, {"projectors": "none"}]
)
def test_unknown_option_names_choices(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"mapnet\.{name} must be one of \w+, \w+, not '{value}'"):
        small_mapnet(**options)


def test_weights_without_options_still_load():
    tensors, config, _ = load_weights(REPOSITORY / "checkpoints/tiny/restorer.safetensors", kind="restorer")
    assert "attention" not in config["mapnet"]
    mapnet = MapNet(**config["mapnet"])
    mapnet.load_state_dict({k.removeprefix("mapnet."): v for k, v in tensors.items() if k.startswith("mapnet.")})
