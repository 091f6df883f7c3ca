import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fixtures.tiny_classifier import CONFIGS, classifier, labelled_rows, load, save_base
from tests.fixtures.tiny_model import make_tokenizer
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from luthier.encoding.batches import collate, pack
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.models import packed
from luthier.models.classifier import HEAD, class_nll, class_targets, pad_id, predicted, uniform_loss
from luthier.models.coverage import coverage
from luthier.models.forward import base_model, row_logits, token_scores
from luthier.models.load import load_tokenizer, load_trained, save_trained
from luthier.recipe import Head
from luthier.run_folder import RunFolder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: save_base(folder / kind, kind) for kind in CONFIGS}


def logits_of(model, batch):
    with torch.no_grad():
        return row_logits(base_model(model), batch)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("num_classes", [2, 10, 280])
def test_loss_at_the_start_is_ln_c(bases: dict[str, Path], kind: str, num_classes: int) -> None:
    model = load(classifier(bases[kind], num_classes)).eval()
    rows = labelled_rows(280, num_classes)
    with torch.no_grad():
        scores = token_scores(model, collate(rows, 0))
    loss = float(scores.nll_N.mean())
    spread = float(logits_of(model, collate(rows, 0)).std(-1, unbiased=False).square().mean().sqrt())
    assert 0.02 < spread < 0.2  # neither nothing nor what would drown ln C
    assert loss == pytest.approx(math.log(num_classes) + spread**2 / 2, rel=0.03)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_last_real_token_is_read_whatever_surrounds_the_row(bases: dict[str, Path], kind: str) -> None:
    model = load(classifier(bases[kind], 10)).eval()
    rows = labelled_rows(6, 10, seed=1)
    rows[2] = replace(rows[2], input_ids=np.append(rows[2].input_ids[:-1], 2).astype(np.int32))  # ends in EOS
    alone = torch.cat([logits_of(model, collate([row], 0)) for row in rows])
    expected = []
    for row in rows:
        hidden = base_model(model).base_model(input_ids=torch.tensor(row.input_ids[None].astype(np.int64)))
        expected.append(getattr(base_model(model), HEAD)(hidden.last_hidden_state[:, -1]))
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(alone, torch.cat(expected), **close)
    assert not torch.allclose(alone[0], alone[1], **close)  # or the test could not fail
    for side in ("left", "right"):
        for pad in (0, 2, 7):
            torch.testing.assert_close(logits_of(model, collate(rows, pad, side)), alone, **close)
    if packed.can_pack(base_model(model)) is None:
        base_model(model).config._attn_implementation = packed.NAME
        torch.testing.assert_close(logits_of(model, pack(rows)), alone, **close)
    else:
        assert kind == "mamba"


@pytest.mark.parametrize("kind", CONFIGS)
def test_transformers_own_forward_pools_the_same_token(bases: dict[str, Path], kind: str) -> None:
    settings = classifier(bases[kind], 10)
    model = load(settings).eval()
    rows = labelled_rows(6, 10, seed=2)
    pad = base_model(model).config.pad_token_id
    assert pad == pad_id(load_tokenizer(settings))
    for side in ("left", "right") if kind != "gpt2" else ("right",):  # its own positions count padding
        batch = collate(rows, pad, side)
        with torch.no_grad():
            theirs = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
        torch.testing.assert_close(theirs, logits_of(model, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_step_is_the_same_however_it_is_split(bases: dict[str, Path], kind: str) -> None:
    model = load(classifier(bases[kind], 280))
    rows = labelled_rows(16, 280, seed=3)
    results = []
    for parts in (1, 2, 16):  # the last is one row at a time; two are the rows of two processes
        model.zero_grad()
        loss = 0.0
        for start in range(parts):
            part = token_scores(model, collate(rows[start::parts], 0)).weighted_sum() / 16
            part.backward()
            loss += float(part.detach())
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((loss, torch.cat([g.ravel() for g in grads])))
    for loss, gradient in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-3, atol=1e-6)
    assert results[0][1].abs().max() > 1e-4


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("whole", [False, True])
def test_head_is_trained_saved_and_loaded_with_the_adapter(
    bases: dict[str, Path], tmp_path: Path, kind: str, whole: bool
) -> None:
    settings = classifier(bases[kind], 5, **({"adapter": None} if whole else {"adapter": {"rank": 2}}))
    model = load(settings)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert any(HEAD in name for name in trained)
    assert all(p.dtype == torch.float32 for p in trained.values())
    optimizer = torch.optim.Adam(trained.values(), lr=0.05)
    rows = labelled_rows(8, 5, seed=4)
    before = logits_of(model.eval(), collate(rows, 0))
    for _ in range(3):
        token_scores(model, collate(rows, 0)).weighted_sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = logits_of(model, collate(rows, 0))
    assert not torch.allclose(before, after, atol=1e-2)
    run = RunFolder(tmp_path / "run")
    tokenizer = load_tokenizer(settings)
    path = save_trained(model, tokenizer, run, settings)
    again = load_trained(settings, run, len(tokenizer))
    torch.testing.assert_close(logits_of(again, collate(rows, 0)), after)
    assert json.loads((path / "labels.json").read_text())["names"] == [f"class{i:03}" for i in range(5)]
    assert AutoTokenizer.from_pretrained(path).pad_token_id == pad_id(tokenizer)
    if whole:
        plain = AutoModelForSequenceClassification.from_pretrained(path)
        assert plain.config.id2label[3] == "class003"
        batch = collate(rows, plain.config.pad_token_id)
        with torch.no_grad():
            theirs = plain(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
        torch.testing.assert_close(theirs, after, rtol=1e-4, atol=1e-4)


def test_fresh_head_is_the_same_for_the_same_seed(bases: dict[str, Path]) -> None:
    weights = [base_model(load(classifier(bases["llama"], 4), seed)).score.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_head_starts_small_however_large_the_last_norm_is(bases: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    large = AutoModelForCausalLM.from_pretrained(bases["llama"])
    large.model.norm.weight.data *= 32
    large.save_pretrained(tmp_path / "large")
    AutoTokenizer.from_pretrained(bases["llama"]).save_pretrained(tmp_path / "large")
    model = load(classifier(tmp_path / "large", 280)).eval()
    with torch.no_grad():
        loss = float(token_scores(model, collate(labelled_rows(280, 280), 0)).nll_N.mean())
    assert loss == pytest.approx(math.log(280), rel=0.01)


def test_the_head_beside_an_adapter_is_counted_once_and_by_its_name(bases: dict[str, Path]) -> None:
    rows = {row.name: row for row in coverage(load(classifier(bases["llama"], 4, adapter={"rank": 2})))}
    width = AutoConfig.from_pretrained(bases["llama"]).hidden_size
    assert (rows[HEAD].trained_layers, rows[HEAD].layers) == (1, 1)
    assert rows[HEAD].trained == rows[HEAD].total == 4 * width
    assert "default" not in rows


def test_from_singular_vectors_is_refused_beside_a_head(bases: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="trains no head"):
        load(classifier(bases["llama"], 4, adapter={"rank": 2, "init": "pissa"}))


def test_losses_against_torch() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 5), torch.tensor([0, 4, 2, 2, 1, 3, 0])
    names = tuple("abcde")
    plain = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(class_nll(logits, labels, Head(names=names)), plain)
    smooth = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(class_nll(logits, labels, Head(names=names, label_smoothing=0.2)), smooth)
    focal = class_nll(logits, labels, Head(names=names, focal_gamma=2.0))
    torch.testing.assert_close(focal, plain * (1 - (-plain).exp()) ** 2)
    hot = functional.one_hot(labels, 5).float()
    several = class_nll(logits, hot, Head(names=names, several=True))
    expected = functional.binary_cross_entropy_with_logits(logits, hot, reduction="none").mean(-1)
    torch.testing.assert_close(several, expected)
    both = {"label_smoothing": 0.2, "focal_gamma": 2.0}
    torch.testing.assert_close(
        class_nll(logits, labels, Head(names=names, **both)), smooth * (1 - (-plain).exp()) ** 2
    )
    several = class_nll(logits, hot, Head(names=names, several=True, **both))
    expected = functional.binary_cross_entropy_with_logits(logits, 0.8 * hot + 0.1, reduction="none")
    right = torch.where(hot == 1, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(several, (expected * (1 - right) ** 2).mean(-1))
    assert (
        class_targets(Head(names=names, several=True), [[1, 0, 0, 1, 0]], logits.device).dtype
        == torch.float32
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"label_smoothing": 0.2},
        {"focal_gamma": 2.0},
        {"several": True, "label_smoothing": 0.1},
        {"hierarchy": "/", "hierarchy_weight": 0.5},
        {"hierarchy": "/", "hierarchy_weight": 0.3, "label_smoothing": 0.1, "focal_gamma": 1.0},
    ],
)
def test_uniform_loss_is_that_of_a_head_of_zeros(bases: dict[str, Path], given: dict) -> None:
    names = [f"{'abc'[i % 7 % 3]}/{i % 4}/{i}" for i in range(30)]
    settings = classifier(bases["llama"], 30, head=given)
    settings = settings.model_copy(update={"head": settings.head.model_copy(update={"names": tuple(names)})})
    model = load(settings).eval()
    for parameter in base_model(model).score.parameters():
        parameter.data.zero_()
    rows = [row for row in labelled_rows(60, 30) if row.meta["label"] % 5 < 2 or row.meta["label"] > 20]
    for place, row in enumerate(rows):
        row.loss_weights[-1] = 1 + place % 3
        if given.get("several"):
            row.meta["label"] = [int(i % 3 == place % 3) for i in range(30)]
    with torch.no_grad():
        scores = token_scores(model, collate(rows, 0))
    measured = float(scores.weighted_sum() / scores.weights_N.sum())
    assert uniform_loss(settings.head, rows) == pytest.approx(measured, rel=1e-5)
    plain = math.log(2 if given.get("several") else 30)
    assert (measured < 0.95 * plain) == ("hierarchy" in given or "focal_gamma" in given)


def test_hierarchy_adds_the_levels_above_the_class() -> None:
    head = Head(names=("a/x/1", "a/x/2", "a/y", "b"), hierarchy="/", hierarchy_weight=0.5)
    assert head.levels() == [[0, 0, 0, 1], [0, 0, 1, 2]]
    logits = torch.tensor([[1.0, 2.0, 0.5, -1.0]])
    p = logits.softmax(-1)[0]
    expected = -0.5 * p[1].log() - 0.25 * p[:3].sum().log() - 0.25 * p[:2].sum().log()
    torch.testing.assert_close(class_nll(logits, torch.tensor([1]), head)[0], expected)
    # Without rows each class counts alike: of ln 4, ln 4 - ln 3 and ln 4 - ln 2 or ln 4 - 0 it is half and a quarter each.
    above = [math.log(4 / 3)] * 3 + [math.log(4)], [math.log(4 / 2)] * 2 + [math.log(4)] * 2
    assert uniform_loss(head) == pytest.approx(0.5 * math.log(4) + sum(map(sum, above)) / 16)
    light = head.model_copy(update={"hierarchy_weight": 0.2})
    assert uniform_loss(light) == pytest.approx(0.8 * math.log(4) + 0.1 * sum(map(sum, above)) / 4)


def test_an_answer_with_several_labels_is_right_if_all_of_them_are() -> None:
    logits = torch.tensor([[1.0, -1.0], [1.0, 0.5], [0.0, -0.1]])
    hot = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    right, wanted = predicted(logits, hot, Head(names=("a", "b"), several=True))
    assert right.tolist() == [1, 0, 1] and wanted.tolist() == [1, 1, 1]
    best, labels = predicted(logits, torch.tensor([0, 1, 1]), Head(names=("a", "b")))
    assert best.tolist() == [0, 0, 0] and labels.tolist() == [0, 1, 1]


def test_without_padding_a_control_token_that_ends_nothing_pads() -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    assert pad_id(TextTokenizer(tokenizer)) == 0 != tokenizer.eos_token_id
