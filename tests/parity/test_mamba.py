"""Mamba and Mamba-2 by scans in chunks: what transformers' own layers give, and right where those are not."""

import pytest
import torch
from tests.fixtures.tiny_trainer import config
from torch.nn import functional
from transformers import AutoModelForCausalLM as Auto
from transformers import DynamicCache, Mamba2Config, MambaConfig

from luthier.models import fused, mamba, scan
from luthier.models.mamba import speed_up
from luthier.recipe import Train
from luthier.train.optimizer import adamw

CONFIGS = {
    "mamba": MambaConfig(
        vocab_size=60, hidden_size=48, num_hidden_layers=2, state_size=8, initializer_range=0.3
    ),
    "mamba-bias": MambaConfig(
        vocab_size=60, hidden_size=48, num_hidden_layers=2, state_size=16, use_bias=True, use_conv_bias=False
    ),
    "mamba2": Mamba2Config(
        vocab_size=60, hidden_size=48, num_hidden_layers=2, state_size=16, num_heads=6, head_dim=16, n_groups=1
    ),
    "mamba2-groups": Mamba2Config(
        vocab_size=60, hidden_size=48, num_hidden_layers=2, state_size=16, num_heads=6, head_dim=16, n_groups=3,
        time_step_limit=(0.01, 0.5), use_bias=True,
    ),
}  # fmt: skip
KINDS = list(CONFIGS)
IDS = torch.randint(0, 60, (3, 200), generator=torch.Generator().manual_seed(0))


def model(kind, dtype=torch.float32):
    torch.manual_seed(0)
    return Auto.from_config(CONFIGS[kind]).to(dtype)


def loss_and_gradients(made, ids=IDS):
    made.train().zero_grad()
    logits = made(input_ids=ids, use_cache=False).logits
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    return logits.detach(), {name: p.grad.clone() for name, p in made.named_parameters()}


def most_apart(one, other):
    """The largest difference, relative to the largest element."""
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_transformers_own_in_fp32(kind, monkeypatch):
    monkeypatch.setattr(scan, "CHUNK_STATES", 1 << 13)  # so that there are many chunks
    made = model(kind)
    own, gradients = loss_and_gradients(made)
    assert speed_up(made) == 2
    fast, faster = loss_and_gradients(made)
    assert most_apart(fast, own) < 1e-5
    assert {
        name: apart for name in gradients if (apart := most_apart(faster[name], gradients[name])) > 1e-5
    } == {}
    for layer in made.modules():
        vars(layer).pop("forward", None)
    assert torch.equal(loss_and_gradients(made)[0], own)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["weights", "autocast"])
def test_in_bf16_it_is_as_close_to_fp32_as_transformers_own(kind, way):
    exact, exact_gradients = loss_and_gradients(model(kind))
    found = []
    for fast in (False, True):
        made = model(kind, torch.bfloat16 if way == "weights" else torch.float32)
        assert not fast or speed_up(made) == 2
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            logits, gradients = loss_and_gradients(made)
        apart = [(logits.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()]
        for name, gradient in gradients.items():
            apart.append(
                functional.cosine_similarity(gradient.float().flatten(), exact_gradients[name].flatten(), 0)
            )
        found.append(torch.stack(apart))
    assert found[1][0] < 1.1 * found[0][0] + 0.002 and found[1][0] < 0.05
    assert float((found[0][1:] - found[1][1:]).max()) < 0.01 and float(found[1][1:].min()) > 0.98


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [[100, 100], [1, 199], [7, 1, 1, 64, 127], [2] * 100])
def test_any_chunk_lengths_go_on_from_a_cache(kind, lengths):
    made = model(kind).eval()
    speed_up(made)
    with torch.no_grad():
        whole = made(input_ids=IDS, use_cache=False).logits
        cache, found, start = None, [], 0
        for length in lengths:
            output = made(input_ids=IDS[:, start : start + length], cache_params=cache, use_cache=True)
            cache, start = output.cache_params, start + length
            found.append(output.logits)
    assert most_apart(torch.cat(found, 1), whole) < 1e-5


def test_transformers_own_mamba_begins_again_behind_a_cache():
    """The defect that the fast forward does not have; where this fails, transformers has mended it."""
    made = model("mamba").eval()
    with torch.no_grad():
        whole = made(input_ids=IDS, use_cache=False).logits
        cache = made(input_ids=IDS[:, :100], use_cache=True).cache_params
        rest = made(input_ids=IDS[:, 100:], cache_params=cache, use_cache=True).logits
    assert most_apart(rest, whole[:, 100:]) > 0.01


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "mamba2-groups"])
def test_a_cache_after_the_fast_forward_is_the_one_that_transformers_makes(kind):
    made = model(kind).eval()
    caches = [DynamicCache(config=made.config) for _ in range(2)]
    with torch.no_grad():
        made(input_ids=IDS[:, :150], cache_params=caches[0], use_cache=True)
        speed_up(made)
        made(input_ids=IDS[:, :150], cache_params=caches[1], use_cache=True)
    for own, ours in zip(caches[0].layers, caches[1].layers, strict=True):
        assert most_apart(ours.recurrent_states[0], own.recurrent_states[0]) < 1e-5
        assert most_apart(ours.conv_states[0], own.conv_states[0]) < 1e-5


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "mamba2-groups"])
def test_rows_of_a_pack_are_what_they_are_alone(kind):
    """A mask of row numbers resets the state and keeps the convolution inside each row, in gradients too."""
    made = model(kind)
    speed_up(made)
    lengths = [3, 70, 1, 126]
    numbers = torch.repeat_interleave(torch.arange(1, 5), torch.tensor(lengths))[None]
    ids = IDS[:1]
    weights = torch.randn(200, 60, generator=torch.Generator().manual_seed(1))
    found = []
    for together in (True, False):
        made.zero_grad()
        if together:
            logits = made(input_ids=ids, attention_mask=numbers, use_cache=False).logits[0]
        else:
            rows = ids[0].split(lengths)
            logits = torch.cat([made(input_ids=row[None], use_cache=False).logits[0] for row in rows])
        (logits * weights).sum().backward()
        found.append((logits.detach(), {name: p.grad.clone() for name, p in made.named_parameters()}))
    (packed, gradients), (alone, alone_gradients) = found
    assert most_apart(packed, alone) < 1e-5
    assert all(most_apart(gradients[name], alone_gradients[name]) < 2e-5 for name in gradients)
    with torch.no_grad():  # without the numbers rows do leak
        assert most_apart(made(input_ids=ids, use_cache=False).logits[0], alone) > 0.01


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_padding_on_the_left_changes_nothing(kind):
    made = model(kind).eval()
    speed_up(made)
    with torch.no_grad():
        alone = made(input_ids=IDS[:1, :50], use_cache=False).logits
        ids = torch.cat([IDS[1:2, :20], IDS[:1, :50]], 1)
        mask = torch.arange(70)[None].ge(20).long()
        assert (
            most_apart(made(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 20:], alone) < 1e-5
        )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("family", ["mamba", "mamba2", "bigs"])
def test_compiled_layers_are_the_same(family):
    """Scans are left out of what is compiled; all else of a layer is in it."""
    torch.manual_seed(0)
    made = Auto.from_config(config(family))
    speed_up(made)
    own, gradients = loss_and_gradients(made)
    assert fused.compile_layers(made) == 2
    try:
        fast, faster = loss_and_gradients(made)
    finally:
        fused.unfuse(made)
    assert most_apart(fast, own) < 1e-5
    assert all(most_apart(faster[name], gradients[name]) < 1e-4 for name in gradients)


def scan_inputs(kind, length=45):
    draw = torch.Generator().manual_seed(0)
    shapes = {"selective": [(2, length, 6), (2, length, 6), (6, 3), (2, length, 3), (2, length, 3)]}
    shapes["chunked"] = [(2, length, 4, 5), (2, length, 4), (4,), (2, length, 2, 3), (2, length, 2, 3)]
    found = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes[kind]]
    found[1], found[2] = functional.softplus(found[1]), -functional.softplus(found[2])
    state = torch.randn(
        (2, 6, 3) if kind == "selective" else (2, 4, 5, 3), generator=draw, dtype=torch.float64
    )
    starts = torch.rand(2, length, generator=draw) < 0.1
    return [t.requires_grad_() for t in found], state, starts


def token_by_token(kind, inputs, state, starts):
    """The recurrence as it is written down."""
    u, step, a, b, c = inputs
    if kind == "selective":
        u, step, a = u[..., None, :].mT, step[..., None, :].mT, a[:, None]
        b, c = b[:, :, None], c[:, :, None]
        state = state[:, :, None]
    else:
        step, a = step[..., None], a[:, None, None]
        b, c = (t.repeat_interleave(u.shape[2] // t.shape[2], 2) for t in (b, c))
    found = []
    for t in range(u.shape[1]):
        decay = (step[:, t, ..., None] * a).exp()
        if starts is not None:
            decay = decay * ~starts[:, t, None, None, None]
        state = decay * state + (step[:, t] * u[:, t])[..., None] * b[:, t, :, None]
        found.append((state * c[:, t, :, None]).sum(-1))
    y = torch.stack(found, 1)
    return (y[..., 0], state[:, :, 0]) if kind == "selective" else (y, state)


@pytest.mark.parametrize("kind", ["selective", "chunked"])
@pytest.mark.parametrize("packed", [False, True])
def test_scans_are_their_recurrences_in_fp64(kind, packed, monkeypatch):
    monkeypatch.setattr(scan, "CHUNK_STATES", 1)
    monkeypatch.setattr(scan, "STEP_STATES", 1)
    monkeypatch.setattr(scan, "MATRIX_CHUNK", 16)
    inputs, state, starts = scan_inputs(kind)
    compute = {"selective": scan.selective_scan, "chunked": scan.chunked_scan}[kind]
    starts = starts if packed else None
    weights = torch.randn(45, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = []
    for y, last in (compute(*inputs, state, starts), token_by_token(kind, inputs, state, starts)):
        gradients = torch.autograd.grad((y.flatten(2).sum(-1).square() * weights).sum(), inputs)
        found.append([y, last, *gradients])
    assert all(torch.allclose(ours, plain, rtol=1e-9, atol=1e-9) for ours, plain in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["selective", "chunked"])
def test_gradients_of_the_scans_are_the_numeric_ones(kind, monkeypatch):
    monkeypatch.setattr(scan, "MATRIX_CHUNK", 4)
    inputs, state, _ = scan_inputs(kind, length=10)
    compute = {"selective": scan.selective_scan, "chunked": scan.chunked_scan}[kind]
    assert torch.autograd.gradcheck(lambda *x: compute(*x, state)[0], inputs)


def test_decays_of_very_different_size_keep_their_digits():
    """Long sums of logarithms are subtracted from each other: in 32 bits the small ones would be lost."""
    step = torch.full((1, 64, 1), 1e-3)
    step[:, 5] = 1e4
    x, b = torch.ones(1, 64, 1, 1), torch.ones(1, 64, 1, 1)
    y, _ = scan.chunked_scan(x, step, torch.tensor([-1.0]), b, b)
    exact, _ = scan.chunked_scan(
        x.double(), step.double(), torch.tensor([-1.0]).double(), b.double(), b.double()
    )
    assert torch.allclose(y.double()[:, 6:], exact[:, 6:], rtol=1e-6)


def test_layers_that_compute_otherwise_are_left_as_they_are(monkeypatch):
    made = model("mamba")
    monkeypatch.setattr(mamba, "selective_scan", lambda u, *_: (2 * u, u[:, 0, :, None]))
    assert speed_up(made) == 0 and "forward" not in vars(made.backbone.layers[0].mixer)
    assert speed_up(Auto.from_config(config("llama"))) == 0


def test_a_of_mamba_is_without_decay():
    made = model("mamba")
    optimizer = adamw(made.named_parameters(), Train(weight_decay=0.1))
    names = {id(p): name for name, p in made.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay["backbone.layers.0.mixer.A_log"] == decay["backbone.layers.0.mixer.D"] == 0
    assert decay["backbone.layers.0.mixer.in_proj.weight"] == 0.1
