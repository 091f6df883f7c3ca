"""The task ``ontology``: spans, names, titles that would break the format, chat forms found from the text."""

import numpy as np
import pytest
from tests.fixtures import tokenizers
from tokenizers import normalizers

from luthier.encoding.encode import encode, encode_prompt
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.ontology.masking import node_of
from luthier.records import Dropped, Example, Record, Row
from luthier.tasks.ontology import Ontology

PATHS = [["Top", "Science", "Plant science"], ["Top", "Arts (visual)", "Ceramics"]]
# The chat form of Mistral-7B-Instruct v0.1 and v0.2 for one user's turn, as in the published code.
MISTRAL_V1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)


def record(**changes: object) -> Record:
    fields = {"title": "Moss", "abstract": "A small plant.", "paths": PATHS, **changes}
    return Record("moss", fields, "moss")


def one(task: Ontology, record: Record, tokenizer: TextTokenizer, split: str = "train"):
    (item,) = task.examples(record, split, tokenizer, max_length=200, seed=0)  # type: ignore[arg-type]
    return item


@pytest.fixture(scope="module")
def mistral_v1() -> TextTokenizer:
    hf = tokenizers.sentencepiece("tokenizer.model.v1", MISTRAL_V1).hf
    # As in the tokenizer.json of Mistral-7B-Instruct v0.1 and v0.2: a space before each stretch between control tokens.
    backend = hf.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    return TextTokenizer(hf)


def test_mistral_boundaries_come_from_the_text(mistral_v1: TextTokenizer) -> None:
    row = encode(one(Ontology(root="Top", format="chat"), record(), mistral_v1), mistral_v1, 200)
    assert isinstance(row, Row)
    ids = row.input_ids.tolist()
    assert ids[0] == mistral_v1.bos_id and ids[1:4] == [733, 16289, 28793]
    assert ids[row.num_prompt_tokens - 4 : row.num_prompt_tokens] == [733, 28748, 16289, 28793]
    assert ids[-1] == mistral_v1.eos_id and row.loss_weights[row.num_prompt_tokens :].all()
    for place, name in enumerate(row.span_names):
        own = row.input_ids[row.span_ids == place].tolist()
        if name == "separator":
            assert own in ([3193], [13])
        elif node_of(name):
            assert not {3193, 13} & set(own)
    assert (
        np.count_nonzero(row.input_ids == 3193) == 4 and np.count_nonzero(row.input_ids == 13) == 3
    )  # one in the prompt


@pytest.mark.parametrize(
    ("family", "form"),
    [("smollm", "chat"), ("mistral", "plain"), ("mistral", "chat"), ("characters", "plain")],
)
def test_every_token_of_a_node_is_in_its_span(family: str, form: str) -> None:
    tokenizer = tokenizers.FAMILIES[family]()
    example = one(Ontology(root="Top", format=form), record(), tokenizer)
    row = encode(example, tokenizer, 200)
    assert isinstance(example, Example) and isinstance(row, Row)
    seen = {}
    for place, name in enumerate(row.span_names):
        text = tokenizer.decode(row.input_ids[row.span_ids == place])
        if found := node_of(name):
            seen[found] = text
            assert row.loss_weights[row.span_ids == place].all()
    paths = example.meta["paths"]
    assert sorted(paths) == sorted(PATHS)
    assert seen == {(i, j): f" {path[j]}" for i, path in enumerate(paths) for j in (1, 2)}
    assert row.target == "".join(" -> ".join(path) + "\n" for path in paths)
    asked = encode_prompt(Example("p", Ontology(root="Top", format=form).prompt("Title: Moss\nA small plant.", tokenizer), "p"), tokenizer, 200)  # fmt: skip
    assert asked == row.input_ids[: row.num_prompt_tokens].tolist()


def test_a_long_abstract_loses_its_end() -> None:
    tokenizer = tokenizers.characters()
    row = encode(
        one(Ontology(root="Top", format="plain"), record(abstract="x" * 500), tokenizer), tokenizer, 200
    )
    assert isinstance(row, Row) and len(row.input_ids) == 200 and row.trimmed["prompt"] > 300
    assert tokenizer.decode(row.input_ids).startswith("Title: Moss\nxxx")


def test_ids_stay_apart_from_titles() -> None:
    paths = [[{"id": "0", "title": "Top"}, {"id": "1", "title": "Bank"}], [{"id": "0", "title": "Top"}, {"id": "2", "title": "Bank"}]]  # fmt: skip
    example = one(Ontology(root="Top", format="plain"), record(paths=paths), tokenizers.characters())
    assert sorted(example.meta["paths"]) == [["0", "1"], ["0", "2"]]
    assert example.meta["titles"] == {"0": "Top", "1": "Bank", "2": "Bank"}
    assert "".join(s.text for s in example.spans).count("Top -> Bank\n") == 2


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        ([["Top", "a -> b"]], "bad-title"),
        ([["Top", "a\nb"]], "bad-title"),
        ([["Other", "a"]], "other-root"),
        ([["Top"]], "no-path"),
        ([], "no-path"),
        ("Top", "bad-paths"),
        ([["Top", 3]], "bad-paths"),
        ([[]], "other-root"),
    ],
)
def test_documents_that_cannot_be_written_are_left_out(paths: object, reason: str) -> None:
    item = one(Ontology(root="Top", format="plain"), record(paths=paths), tokenizers.characters())
    assert isinstance(item, Dropped) and item.reason == reason


def test_copies_are_found_by_what_the_prompt_shows() -> None:
    task = Ontology(root="Top", prompt_template="{{ text }}")
    texts = [
        task.duplicate_text(Record(str(i), {"text": f"about {i}", "paths": []}, str(i))) for i in range(2)
    ]
    assert texts == ["about 0", "about 1"]


def test_bad_titles_can_be_escaped() -> None:
    task = Ontology(root="Top", format="plain", bad_titles="escape")
    example = one(task, record(paths=[["Top", "a  -> b\n"], ["Top", "good"]]), tokenizers.characters())
    assert example.meta["escaped"] == 1 and set(example.meta["titles"]) == {"a  -> b\n"}
    lines = task.paths.parse("".join(s.text for s in example.spans if s.weight and not s.control)).lines
    assert len(lines) == 2


def test_answers_are_compared_as_valid_paths() -> None:
    task = Ontology(root="Top")
    assert task.answer("Top -> a -> b\nnonsense\nTop -> c") == "Top\ta\tb\nTop\tc"
