"""The tokenizer of texts, on one with a token for each byte."""

import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.fixtures.plain_tokenizer import CHAT, Plain, plain_tokenizer, spaced_tokenizer
from tokenizers import Tokenizer, decoders, models

from luthier.encoding.text_tokenizer import TextTokenizer, _without_prefix_space
from luthier.encoding.token_bytes import token_bytes
from luthier.errors import UserError

PLAIN = plain_tokenizer()


def test_what_ends_a_generation() -> None:
    assert PLAIN.stop_ids == {PLAIN.eos_id} and plain_tokenizer(eos=False).stop_ids == set()
    assert TextTokenizer(PLAIN.hf, [3]).stop_ids == {3, PLAIN.eos_id}
    marks = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|endoftext|>", "<file_sep>")
    filling = plain_tokenizer(special=marks)
    ends = {filling.encode(mark, control=True)[0] for mark in marks[3:]}
    assert filling.stop_ids == {filling.eos_id, *ends}
    assert plain_tokenizer(special=marks[1:]).stop_ids == {PLAIN.eos_id}, "not all four are there"


def test_added_tokens_are_known_and_the_ends_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    hf, kinds = plain_tokenizer().hf, []
    add = hf.add_tokens
    monkeypatch.setattr(hf, "add_tokens", lambda new, **kind: [kinds.append(kind), add(new, **kind)])
    more = TextTokenizer(hf, [3]).add_tokens(["<|x|>"])
    assert kinds == [{"special_tokens": True}]
    assert len(more) == len(PLAIN) + 1 and more.stop_ids == {3, PLAIN.eos_id}
    assert more.encode("<|x|>", control=True) == [len(PLAIN)] and len(more.encode("<|x|>")) == 5


def test_a_prefix_is_what_stands_before_a_text() -> None:
    with_bos = plain_tokenizer(bos=True)
    assert with_bos.prefix_ids == (with_bos.bos_id,) and with_bos.adds_bos
    assert PLAIN.prefix_ids == () and not PLAIN.adds_bos


def test_special_strings_are_found() -> None:
    tokenizer = plain_tokenizer(special=["<|x|>", "<|x|>y"])
    assert tokenizer.special_places("a</s>b<|x|>yz") == [(1, 5), (6, 12)], "the longest one counts"
    assert tokenizer.has_special_string("a<|x|>") and not tokenizer.has_special_string("a<|x|")
    assert not plain_tokenizer(eos=False).has_special_string("</s>")


def test_borders_are_where_no_token_goes_on() -> None:
    assert plain_tokenizer(merges=[("a", "b")]).boundaries("abcé") == {0, 2, 3, 4}
    assert PLAIN.boundaries("") == {0} and PLAIN.boundaries("é") == {0, 1}
    assert PLAIN.boundaries("</s>") == {0, 1, 2, 3, 4}, "no control token"
    assert spaced_tokenizer().boundaries("ab b") == {0, 1, 2, 4}, "the text begins a row"


def test_texts_with_their_places() -> None:
    ids, starts = plain_tokenizer(merges=[("a", "b")]).encode_with_starts("xaby", first=False, control=False)
    assert len(ids) == 3 and starts.tolist() == [0, 1, 3]


def test_what_begins_a_row_is_read_with_a_space_before_it() -> None:
    tokenizer = spaced_tokenizer()
    begins, goes_on = [3, 2, 5], [4, 5]
    assert (tokenizer.encode("ab b", first=True), tokenizer.encode("ab b")) == (begins, goes_on)
    for first, ids in (({"first": True}, begins), ({}, goes_on)):
        (found,) = tokenizer.encode_all(["ab b"], **first)
        assert found.tolist() == ids and not tokenizer.is_lossy(found, "ab b", **first)
    assert tokenizer.encode_with_starts("ab b", first=True, control=False)[1].tolist() == [0, 1, 2]
    assert tokenizer.decode(begins, first=True) == "ab b" and tokenizer.decode(begins) == " ab b"
    assert tokenizer.is_lossy(np.array(begins), "ab b")


def test_ids_that_are_none_give_no_text() -> None:
    ids = PLAIN.encode("aé")
    assert PLAIN.decode([-100, *ids, 10**6]) == PLAIN.decode(np.array([-1, *ids])) == "aé"
    assert PLAIN.decode([0]) != "" == PLAIN.decode([])


def test_pieces_join_to_the_text() -> None:
    ids = PLAIN.encode("aé🙂b")
    assert PLAIN.pieces(ids) == ["a", "", "é", "", "", "", "🙂", "b"]
    assert PLAIN.pieces(ids[:2]) == ["a", "\ufffd"] and PLAIN.pieces([]) == []
    broken = [ids[1]] * 9
    assert PLAIN.pieces(broken) == [*[""] * 7, "\ufffd" * 8, "\ufffd"], "eight bytes are no character"


def test_what_is_lost_is_said() -> None:
    tokenizer = plain_tokenizer(without="z")
    for text, lossy in (("abé", False), ("abz", True)):
        assert tokenizer.is_lossy(np.array(tokenizer.encode(text)), text) == lossy
    assert PLAIN.is_lossy(np.array(PLAIN.encode("ab")), "a") and PLAIN.is_lossy(np.array([PLAIN.eos_id]), "")
    assert not PLAIN.is_lossy(np.array([PLAIN.eos_id]), "</s>")
    assert PLAIN.is_lossy(np.array(PLAIN.encode("a")), "\ud800"), "half a surrogate pair has no bytes"


def test_a_vocabulary_that_spells_control_tokens_is_refused_with_the_token() -> None:
    spelled = plain_tokenizer(merges=[("<", "/"), ("</", "s"), ("</s", ">")])
    with pytest.raises(UserError, match="turns plain text into control tokens: </s>\n") as raised:
        spelled.encode("x</s>y")
    assert raised.value.where == "text 'x</s>y'" and raised.value.fix.startswith("use a tokenizer")
    assert spelled.encode("x</s>", control=True)[-1] == spelled.eos_id


def test_the_hash_is_of_all_that_decides_ids_and_ends() -> None:
    others = [PLAIN, plain_tokenizer(bos=True), plain_tokenizer(chat=CHAT), TextTokenizer(PLAIN.hf, [3])]
    assert len({other.hash() for other in others}) == 4 and plain_tokenizer().hash() == PLAIN.hash()


def test_other_processes_get_it_without_what_they_make_themselves() -> None:
    tokenizer = plain_tokenizer(bos=True)
    assert not tokenizer.is_lossy(np.array(tokenizer.encode("a")), "a") and tokenizer.prefix_ids
    tokenizer.__dict__["_fast"] = (None, None)
    state = tokenizer.__getstate__()
    assert (
        not {"_spelled", "_fast"} & state.keys()
        and "prefix_ids" in state
        and "_spelled" in tokenizer.__dict__
    )
    assert pickle.loads(pickle.dumps(state)).keys() == state.keys()


def test_the_space_before_the_first_word_is_left_out_of_what_goes_on() -> None:
    vocabulary = {"type": "Metaspace"}
    given = {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "_"}, {"type": "NFC"}],
        },
        "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first", "split": True},
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "Strip", "start": 1}, {"type": "Strip", "start": 0}],
        },
        "model": {"vocab": vocabulary, "merges": [vocabulary]},
        "other": {"type": "ByteLevel", "add_prefix_space": True},
    }
    assert _without_prefix_space(given) == {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
        "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never", "split": True},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Strip", "start": 0}]},
        "model": {"vocab": vocabulary, "merges": [vocabulary]},
        "other": {"type": "ByteLevel", "add_prefix_space": False},
    }
    assert _without_prefix_space({"normalizer": {"type": "Prepend"}}) == {"normalizer": None}


def test_each_id_has_its_bytes() -> None:
    tokenizer = plain_tokenizer(merges=[("Ġ", "a")])
    found = token_bytes(tokenizer)
    assert len(found) == len(tokenizer) and found[tokenizer.eos_id or 0] is None
    for text in (" a", "\n", "\x00", "\x7f", "\xa0", "\xad", "~", "!", "é", "\xff"):
        ids = tokenizer.encode(text)
        assert b"".join(found[i] or b"?" for i in ids) == text.encode()
    tokenizer.hf.backend_tokenizer.add_tokens(["a b"])
    assert token_bytes(tokenizer)[-1] == b"a b", "an added token is not spelled in bytes"
    single = [spelled for spelled in found if spelled is not None and len(spelled) == 1]
    assert sorted(single) == [bytes([i]) for i in range(256)]


def test_single_bytes_and_spaces_of_other_vocabularies_have_their_bytes() -> None:
    pieces = ["<0x0A>", "<0xFF>", "▁a", "b", "<0x0A>b", "é"]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    backend.decoder = decoders.ByteFallback()
    tokenizer = TextTokenizer(Plain(backend, None, None, None), [3])
    assert token_bytes(tokenizer) == [b"\n", b"\xff", b" a", None, b"<0x0A>b", "é".encode()]


def test_a_saved_tokenizer_has_its_ends_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: SimpleNamespace, folder: Path) -> None:
        (folder / "generation_config.json").write_text(json.dumps(vars(self)))

    config = type("GenerationConfig", (SimpleNamespace,), {"save_pretrained": write})
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(GenerationConfig=config))
    folders: list[Path] = []
    monkeypatch.setattr(PLAIN.hf, "save_pretrained", folders.append, raising=False)
    PLAIN.save(tmp_path)
    assert folders == [tmp_path] and not list(tmp_path.iterdir()), "its own end needs no other file"
    TextTokenizer(PLAIN.hf, [3]).save(tmp_path)
    written = {"eos_token_id": sorted([3, PLAIN.eos_id or 0])}
    assert json.loads((tmp_path / "generation_config.json").read_text()) == written
    TextTokenizer(PLAIN.hf, [4]).save(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == written, "what is there stays"


def test_a_tokenizer_is_loaded_as_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    load = SimpleNamespace(from_pretrained=lambda *given, **how: asked.append((given, how)) or PLAIN.hf)
    made = SimpleNamespace(AutoTokenizer=load, PreTrainedTokenizerFast=Plain)
    monkeypatch.setitem(sys.modules, "transformers", made)
    TextTokenizer.load(tmp_path)
    TextTokenizer.load(tmp_path, revision="v1", trust_remote_code=True)
    assert asked == [
        ((str(tmp_path),), {"revision": None, "trust_remote_code": False}),
        ((str(tmp_path),), {"revision": "v1", "trust_remote_code": True}),
    ]


@pytest.mark.parametrize(
    ("error", "said"), [(OSError("\nno file\nof that name"), "no file"), (OSError(), "OSError")]
)
def test_what_cannot_be_loaded_is_said_in_a_line(
    error: OSError, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    made = SimpleNamespace(
        AutoTokenizer=SimpleNamespace(from_pretrained=refuse), PreTrainedTokenizerFast=Plain
    )
    monkeypatch.setitem(sys.modules, "transformers", made)
    with pytest.raises(UserError, match=f"no tokenizer can be loaded: {said}\n  where") as raised:
        TextTokenizer.load(tmp_path)
    assert raised.value.where == str(tmp_path) and raised.value.fix.startswith("name a folder with")


def test_a_folder_says_what_ends_a_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = SimpleNamespace(from_pretrained=lambda *_, **__: PLAIN.hf)
    made = SimpleNamespace(AutoTokenizer=loaded, PreTrainedTokenizerFast=Plain)
    monkeypatch.setitem(sys.modules, "transformers", made)
    assert TextTokenizer.load(tmp_path).stop_ids == {PLAIN.eos_id}
    for text, more in (("{}", set()), ('{"eos_token_id": null}', set()), ('{"eos_token_id": 0}', {0}),
                       ('{"eos_token_id": [3, 4]}', {3, 4})):  # fmt: skip
        (tmp_path / "generation_config.json").write_text(text)
        assert TextTokenizer.load(tmp_path).stop_ids == {PLAIN.eos_id, *more}
    loads = []
    monkeypatch.setattr(
        made,
        "GenerationConfig",
        SimpleNamespace(
            from_pretrained=lambda *given, **how: (
                loads.append((given, how)) or SimpleNamespace(eos_token_id=[3])
            )
        ),
        raising=False,
    )
    assert TextTokenizer.load("owner/of-the-hub", revision="v1").stop_ids == {3, PLAIN.eos_id}
    assert TextTokenizer.load("owner/of-the-hub").stop_ids == {3, PLAIN.eos_id}
    assert loads == [(("owner/of-the-hub",), {"revision": name}) for name in ("v1", "main")]
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match="no tokenizer can be loaded: Expecting property name"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    monkeypatch.setattr(made, "PreTrainedTokenizerFast", str)
    with pytest.raises(UserError, match="Plain has no fast implementation") as raised:
        TextTokenizer.load(tmp_path)
    assert raised.value.where == str(tmp_path) and raised.value.fix.startswith("convert it to")
