"""BiGS against a plain recurrent BiGS in fp64, its published weights, and its own promises: causal, exact, resumable."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from luthier.errors import UserError
from luthier.models.bigs import BigsConfig, BigsForCausalLM, BigsForMaskedLM
from luthier.models.bigs.original import KEY_MAP, load_original, renamed
from luthier.models.bigs.ssm import DiagonalSSM, _Convolution, hippo
from luthier.recipe import Train
from luthier.train.optimizer import adamw

CAUSAL = ["causal", "causal-single", "causal-convolution"]
IDS = torch.randint(0, 50, (2, 37), generator=torch.Generator().manual_seed(0))


def model(form="causal", **settings):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "state_size": 8,
        "initializer_range": 0.3,
    }
    made = (BigsForMaskedLM if form == "bidirectional" else BigsForCausalLM)(
        BigsConfig(form=form, **{**sizes, **settings})
    )
    return made.double().eval()


def plain_ssm(ssm, u_BLD):
    """The recurrence as it is published: one token after another, one state a channel."""
    a = torch.complex(ssm.a_real.clamp(max=-1e-4), ssm.a_imag)
    step = ssm.log_step.exp()
    c = torch.complex(ssm.c[:, 0], ssm.c[:, 1])
    state = torch.zeros(len(u_BLD), u_BLD.shape[2], len(a), dtype=torch.complex128)
    outputs = []
    for u in u_BLD.unbind(1):
        state = (step * a).exp() * state + ((step * a).exp() - 1) / a * u[..., None]
        outputs.append((state * c).sum(-1).real + ssm.d * u)
    return torch.stack(outputs, 1)


def plain_branch(branch, h):
    u = branch.inner(h)
    if branch.conv is not None:
        taps = branch.conv.kernel_size[0]
        padded = functional.pad(u, (0, 0, taps - 1, 0))
        parts = [padded[:, k : k + u.shape[1]] * branch.conv.weight[:, 0, k] for k in range(taps)]
        u = sum(parts) + branch.conv.bias
    return branch.outer(plain_ssm(branch.ssm, functional.gelu(u)))


@torch.no_grad()
def plain(made, ids):
    """The whole model without any of its forwards."""
    bigs, config = made.bigs, made.config
    x = bigs.embeddings.tokens.weight[ids]
    if config.max_position_embeddings:
        x = x + bigs.embeddings.positions.weight[: ids.shape[1]]
    if config.type_vocab_size:
        x = x + bigs.embeddings.token_types.weight[0]
    x = bigs.embeddings.norm(x)
    for layer in bigs.layers:
        h = layer.norm(x)
        mixed = plain_branch(layer.first, h)
        if config.form == "causal":
            mixed = mixed * plain_branch(layer.second, h)
        if config.form == "bidirectional":
            mixed = mixed * plain_branch(layer.second, h.flip(1)).flip(1)
        x = x + layer.out(functional.gelu(layer.gate(mixed)) * functional.gelu(layer.value(h)))
    if config.form == "bidirectional":
        return made.decoder(made.norm(functional.gelu(made.dense(x))))
    return made.lm_head(bigs.norm(x))


@pytest.mark.parametrize("form", [*CAUSAL, "bidirectional"])
def test_it_is_the_plain_recurrent_model_in_fp64(form):
    settings = {"max_position_embeddings": 40, "type_vocab_size": 2} if form == "bidirectional" else {}
    made = model(form, **settings)
    assert torch.allclose(made(IDS).logits, plain(made, IDS), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 3, 100, 257])
def test_the_convolution_is_the_recurrence_in_fp64(length):
    torch.manual_seed(length)
    ssm = DiagonalSSM(8).double()
    for p in ssm.parameters():
        p.data.normal_()
    u = torch.randn(2, length, 5, dtype=torch.float64)
    assert torch.allclose(ssm(u)[0], plain_ssm(ssm, u), rtol=1e-10, atol=1e-10)


def test_late_weights_of_the_kernel_keep_their_digits_in_fp32():
    """Angles of 4,096 tokens are large: in 32 bits they would be lost, so the kernel is made in 64."""
    ssm = model().float().bigs.layers[0].first.ssm
    ssm.a_real.data.fill_(-1e-3)
    ssm.log_step.data.fill_(0.0)
    u = torch.zeros(1, 4096, 1)
    u[:, 0] = 1
    with torch.no_grad():
        exact = plain_ssm(ssm.double(), u.double())
        found = ssm.float()(u)[0].double()
    assert torch.allclose(found, exact, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("form", CAUSAL)
def test_no_token_sees_a_later_one_by_perturbation(form):
    made = model(form)
    with torch.no_grad():
        before = made(IDS).logits
        for place in (1, 17, 36):
            other = IDS.clone()
            other[:, place] = (other[:, place] + 1) % 50
            moved = (made(other).logits - before).abs().amax(dim=(0, 2))
            assert float(moved[:place].max()) < 1e-12 and float(moved[place]) > 1e-3


@pytest.mark.parametrize("form", CAUSAL)
def test_no_token_sees_a_later_one_by_the_jacobian(form):
    made = model(form)
    x = made.bigs.embeddings.tokens(IDS[:1, :9]).detach()
    jacobian = torch.autograd.functional.jacobian(lambda x: made(inputs_embeds=x).logits[0].sum(-1), x)[:, 0]
    sizes = jacobian.abs().amax(-1)
    assert float(sizes.triu(1).max()) < 1e-12
    assert float(sizes.tril().max()) > 1e-3 and float(sizes.diagonal().min()) > 1e-6


def test_the_bidirectional_form_does_see_later_ones():
    made = model("bidirectional")
    other = IDS.clone()
    other[:, 20] += 1
    with torch.no_grad():
        assert float((made(other % 50).logits - made(IDS).logits)[:, :20].abs().max()) > 1e-3


def test_gradients_are_the_numeric_ones():
    torch.manual_seed(0)
    u, kernel = torch.randn(2, 7, 3, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    assert torch.autograd.gradcheck(_Convolution.apply, [u.requires_grad_(), kernel.requires_grad_()])
    ssm = DiagonalSSM(3).double()
    for p in ssm.parameters():
        p.data.normal_()
    ssm.a_real.data.abs_().neg_()  # gradients of a_real end where it would grow
    values = [p.detach().clone().requires_grad_() for p in ssm.parameters()]
    names = [name for name, _ in ssm.named_parameters()]

    def run(u, *values):
        return torch.func.functional_call(ssm, dict(zip(names, values, strict=True)), (u,))[0]

    assert torch.autograd.gradcheck(run, [u, *values])


@pytest.mark.parametrize("form", CAUSAL)
@pytest.mark.parametrize("lengths", [[37], [20] + [1] * 17, [5, 1, 1, 20, 10], [1] * 37, [2] * 18 + [1]])
def test_prompt_in_parallel_then_token_by_token_is_all_in_parallel(form, lengths):
    made = model(form)
    with torch.no_grad():
        whole = made(IDS, use_cache=False).logits
        cache, found, start = None, [], 0
        for length in lengths:
            output = made(IDS[:, start : start + length], past_key_values=cache, use_cache=True)
            cache, start = output.past_key_values, start + length
            found.append(output.logits)
    assert torch.allclose(torch.cat(found, 1), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", CAUSAL)
def test_generation_with_a_cache_is_generation_without(form):
    made = model(form)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    written = made.generate(IDS, use_cache=True, **settings)
    assert written.shape == (2, 49) and torch.equal(written, made.generate(IDS, use_cache=False, **settings))
    beams = {"num_beams": 3, **settings}
    assert torch.equal(
        made.generate(IDS, use_cache=True, **beams), made.generate(IDS, use_cache=False, **beams)
    )


@pytest.mark.parametrize("form", [*CAUSAL, "bidirectional"])
def test_padding_is_as_if_it_were_not_there(form):
    made = model(form)
    with torch.no_grad():
        alone = made(IDS).logits
        ids = torch.cat([IDS[:, :6], IDS], 1)
        mask = torch.arange(43).expand(2, -1).ge(6).long()
        assert torch.allclose(made(ids, attention_mask=mask).logits[:, 6:], alone, rtol=1e-10, atol=1e-10)
        ids, mask = torch.cat([IDS, IDS[:, :6]], 1), mask.flip(1)
        assert torch.allclose(made(ids, attention_mask=mask).logits[:, :37], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", [*CAUSAL, "bidirectional"])
def test_saved_and_loaded_it_is_the_same(form, tmp_path):
    made = model(form).float()
    made.save_pretrained(tmp_path)
    auto = AutoModelForMaskedLM if form == "bidirectional" else AutoModelForCausalLM
    again, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(made) and not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(again.eval()(IDS).logits, made(IDS).logits)
    body = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(body.eval()(IDS).last_hidden_state, made.bigs(IDS).last_hidden_state)


def test_in_16_bits_state_spaces_stay_in_32(tmp_path):
    made = model().float()
    made.save_pretrained(tmp_path)
    low = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    kinds = {(".ssm." in name, p.dtype) for name, p in low.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for other in (low, made):
            apart = other(IDS).logits.float() - model()(IDS).logits
            assert float(apart.square().mean().sqrt()) < 0.05 * float(model()(IDS).logits.std())


@torch.no_grad()
def test_first_weights_are_the_published_ones():
    torch.manual_seed(0)
    made = BigsForCausalLM(BigsConfig(vocab_size=500, hidden_size=64, num_hidden_layers=20))
    ssms = [m for m in made.modules() if isinstance(m, DiagonalSSM)]
    assert len(ssms) == 40 and ssms[0].a_real.shape == (64,)
    steps = torch.cat([s.log_step for s in ssms])
    assert float(steps.min()) >= math.log(0.01) and float(steps.max()) <= 0 and float(steps.std()) > 0.9
    assert all(torch.equal(s.a_real, torch.full((64,), -0.5)) and float(s.d) == 1 for s in ssms)
    assert float(torch.cat([s.c for s in ssms]).square().mean()) == pytest.approx(0.5, rel=0.05)
    assert float(made.bigs.layers[0].gate.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(made.bigs.layers[0].gate.bias.abs().max()) == 0
    linear = BigsForCausalLM(BigsConfig(vocab_size=5, hidden_size=8, num_hidden_layers=1, ssm_init="linear"))
    assert torch.allclose(linear.bigs.layers[0].first.ssm.a_imag, math.pi * torch.arange(64.0))


def test_first_angles_are_the_eigenvalues_of_hippo():
    """Of HiPPO-LegS as S4 writes it down, made normal by its rank-one term."""
    n = torch.arange(16.0).double()
    root = (2 * n + 1).sqrt()
    matrix = -(torch.tril(root[:, None] * root) - torch.diag(n))
    low_rank = (n + 0.5).sqrt()
    values = torch.linalg.eigvals(matrix + low_rank[:, None] * low_rank)
    assert torch.allclose(values.real, torch.full((16,), -0.5).double(), atol=1e-9)
    assert torch.allclose(hippo(16).double(), values.imag.sort().values, atol=1e-4)


def test_a_and_the_step_learn_at_a_tenth_without_decay(tmp_path):
    model().float().save_pretrained(tmp_path)
    made = AutoModelForCausalLM.from_pretrained(tmp_path)
    optimizer = adamw(made.named_parameters(), Train(learning_rate=1e-3, weight_decay=0.1))
    names = {id(p): name for name, p in made.named_parameters()}
    settings = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for kind in ("a_real", "a_imag", "log_step"):
        assert settings[f"bigs.layers.1.second.ssm.{kind}"] == pytest.approx((1e-4, 0.0))
    assert settings["bigs.layers.1.second.ssm.c"] == settings["bigs.layers.0.out.weight"] == (1e-3, 0.1)
    assert settings["bigs.layers.0.out.bias"] == (1e-3, 0.0)
    assert len(settings) == len(list(made.parameters()))


def original_folder(folder, made):
    """Config and weights as the published code saves them."""
    names = {
        "bigs.embeddings.tokens.weight": "bigs.embeddings.word_embeddings.weight",
        "bigs.embeddings.positions.weight": "bigs.embeddings.position_embeddings.weight",
        "bigs.embeddings.token_types.weight": "bigs.embeddings.token_type_embeddings.weight",
        "bigs.embeddings.norm": "bigs.embeddings.LayerNorm",
        "dense": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "decoder.weight": "cls.predictions.decoder.weight",
        "decoder.bias": "cls.predictions.bias",
    }
    parts = {"norm": "LayerNorm", "value": "dv", "gate": "dol", "out": "do"}
    for ours, theirs in (("first", "forward"), ("second", "backward")):
        parts |= {
            f"{ours}.inner": f"du_{theirs}",
            f"{ours}.outer": f"duc_{theirs}",
            f"{ours}.ssm.d": f"{theirs[0]}s4.D",
        }
        kernel = {"c": "C", "log_step": "log_step", "a_real": "A_re", "a_imag": "A_im"}
        parts |= {f"{ours}.ssm.{a}": f"{theirs[0]}s4.kernel.{b}" for a, b in kernel.items()}
    for layer in range(2):
        names |= {f"bigs.layers.{layer}.{a}": f"bigs.encoder.layer.{layer}.{b}" for a, b in parts.items()}
    state = {}
    for name, value in made.state_dict().items():
        if name in names:
            state[names[name]] = value.clone()
        else:
            stem, _, kind = name.rpartition(".")
            state[f"{names[stem]}.{kind}"] = value.clone()
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"].clone()
    state["bigs.embeddings.position_ids"] = torch.arange(40)[None]
    state |= {"bigs.pooler.dense.weight": torch.zeros(16, 16), "bigs.pooler.dense.bias": torch.zeros(16)}
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_ssm": 8,
    }
    sizes |= {
        "max_position_embeddings": 40,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.1,
        "hidden_act": "gelu",
    }
    sizes |= {
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "pre_norm": True,
        "position_embedding_type": "absolute",
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "BiGS", **sizes}))
    return state


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_published_weights_are_loaded_by_the_key_map(kind, tmp_path):
    made = model("bidirectional", max_position_embeddings=40, type_vocab_size=2).float()
    state = original_folder(tmp_path / "old", made)
    used = {next(p for p in KEY_MAP if re.fullmatch(p, name)) for name in state}
    assert used == set(KEY_MAP)  # no entry is idle
    if kind == "bin":
        torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    else:
        save_file(state, tmp_path / "old" / "model.safetensors")
    loaded = load_original(tmp_path / "old")
    assert torch.equal(loaded(IDS).logits, made(IDS).logits)
    loaded.save_pretrained(tmp_path / "new")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "new").eval()
    assert torch.equal(again(IDS).logits, made(IDS).logits)


def test_what_is_no_published_model_is_said(tmp_path):
    with pytest.raises(UserError, match="no BiGS can be read"):
        load_original(tmp_path)
    with pytest.raises(UserError, match="is no weight of the published BiGS"):
        renamed({"bert.pooler": torch.ones(1)})
    state = original_folder(
        tmp_path / "old", model("bidirectional", max_position_embeddings=40, type_vocab_size=2)
    )
    del state["bigs.encoder.layer.1.fs4.D"]
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(UserError, match="do not fit the config"):
        load_original(tmp_path / "old")
    settings = json.loads((tmp_path / "old" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text("{")
    with pytest.raises(UserError, match="no BiGS can be read"):
        load_original(tmp_path / "old")
    (tmp_path / "old" / "config.json").write_text(json.dumps({**settings, "pre_norm": False}))
    with pytest.raises(UserError, match="pre_norm is False"):
        load_original(tmp_path / "old")
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"cut")
    with pytest.raises(UserError, match="no BiGS can be read"):
        load_original(tmp_path / "old")


def test_forms_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="use BigsForMaskedLM or a causal form"):
        BigsForCausalLM(BigsConfig(form="bidirectional", num_hidden_layers=1, hidden_size=8))
    with pytest.raises(ValueError, match="use BigsForCausalLM"):
        BigsForMaskedLM(BigsConfig(num_hidden_layers=1, hidden_size=8))
    with pytest.raises(Exception, match="neither positions nor token types"):
        BigsConfig(form="causal", max_position_embeddings=64)
    with pytest.raises(Exception, match="form is 'sideways', not one of bidirectional, causal"):
        BigsConfig(form="sideways")
    with pytest.raises(ValueError, match="has no cache"):
        cache = model()(IDS, use_cache=True).past_key_values
        model("bidirectional").bigs(IDS, past_key_values=cache)
    with pytest.raises(ValueError, match="37 tokens, but the model has 30 positions"):
        model("bidirectional", max_position_embeddings=30)(IDS)


@pytest.mark.parametrize("form", CAUSAL)
def test_checkpointed_gradients_are_the_same(form):
    found = []
    for checkpointing in (False, True):
        made = model(form).train()
        if checkpointing:
            made.activation_checkpointing_enable()
        passes = []
        made.bigs.layers[0].norm.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        made(IDS, labels=IDS).loss.backward()
        assert len(passes) == 1 + checkpointing
        found.append([p.grad for p in made.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in zip(*found, strict=True))
