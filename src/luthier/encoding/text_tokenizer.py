"""A tokenizer that keeps data and control tokens apart and text as it is.

Three things that a tokenizer's own ``__call__`` gets wrong for rows made of spans are mended here: special-token
strings in user text become control tokens; SentencePiece-like ones put a space before every piece that is encoded
apart; and BOS is added in the middle of a row, or twice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from luthier.encoding.fast import MANY, FastReader, Read, fast_reader
from luthier.encoding.infill import stop_tokens
from luthier.encoding.token_bytes import token_bytes
from luthier.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


_GENERATION = "generation_config.json"


class TextTokenizer:
    """The ids of text, and the text of ids, for one transformers tokenizer.

    Attributes:
        hf: The transformers tokenizer, for saving and for its chat template.
        stop_ids: Ids that end a generation: the tokenizer's EOS, those of ``generation_config.json``, and what ends a
            middle where the vocabulary has sentinel tokens.
    """

    def __init__(self, hf: PreTrainedTokenizerFast, stop_ids: Sequence[int] = ()) -> None:
        self.hf = hf
        self.bos_id: int | None = hf.bos_token_id
        self.eos_id: int | None = hf.eos_token_id
        self.special_ids = frozenset(int(i) for i, token in hf.added_tokens_decoder.items() if token.special)
        # The unknown token stands for characters that are not in the vocabulary: lossy, but no control token there.
        self._never_data = np.zeros(1 + max(hf.get_vocab().values()), bool)
        self._never_data[list(self.special_ids - {hf.unk_token_id})] = True
        added = {token.content: int(i) for i, token in hf.added_tokens_decoder.items()}
        ends = [added[token] for token in stop_tokens(added)]
        own = frozenset([*ends, *([] if self.eos_id is None else [self.eos_id])])
        self.stop_ids = own | frozenset(stop_ids)
        self._only_named = self.stop_ids - own  # by generation_config.json
        self._num_read = 0  # characters
        settings = json.loads(hf.backend_tokenizer.to_str())
        # The post-processor adds BOS and shortens offsets; truncation and padding would cut text in silence.
        settings |= {"post_processor": None, "truncation": None, "padding": None}
        self._first = Tokenizer.from_str(json.dumps(settings))
        self._next = Tokenizer.from_str(json.dumps(_without_prefix_space(settings)))

    @classmethod
    def load(
        cls, folder: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
    ) -> TextTokenizer:
        """The tokenizer of a model folder or Hub name.

        Raises:
            UserError: There is none, or it has no fast implementation.
        """
        # Loads torch, which processes that only encode do without.
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            hf = AutoTokenizer.from_pretrained(
                str(folder), revision=revision, trust_remote_code=trust_remote_code
            )
            stops = _stops(Path(folder), revision)
        except Exception as error:  # transformers and tokenizers raise anything at all over damaged files
            raise UserError(
                f"no tokenizer can be loaded: {str(error).strip().partition(chr(10))[0] or type(error).__name__}",
                str(folder),
                "name a folder with a whole tokenizer.json and config.json, or a Hub model that exists",
            ) from error
        if not isinstance(hf, PreTrainedTokenizerFast):
            raise UserError(
                f"{type(hf).__name__} has no fast implementation, and offsets come only with one",
                str(folder),
                "convert it to a tokenizer.json",
            )
        return cls(hf, stops)

    def save(self, folder: str | Path) -> None:
        """Writes files from which ``load`` makes the same tokenizer; a ``generation_config.json`` that is there stays."""
        self.hf.save_pretrained(folder)
        if self._only_named and not (Path(folder) / _GENERATION).is_file():
            from transformers import GenerationConfig

            GenerationConfig(eos_token_id=sorted(self.stop_ids)).save_pretrained(folder)

    def add_tokens(self, tokens: Sequence[str]) -> TextTokenizer:
        """A tokenizer that knows these control tokens as well."""
        self.hf.add_tokens(list(tokens), special_tokens=True)
        return TextTokenizer(self.hf, sorted(self.stop_ids))

    def __len__(self) -> int:
        return len(self.hf)

    @cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """What the tokenizer itself puts before a text: BOS, [CLS] or nothing."""
        whole, bare = self.hf("x")["input_ids"], self.encode("x", first=True)
        start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return tuple(whole[:start])

    @property
    def adds_bos(self) -> bool:
        """Whether the model was made for rows that begin with BOS."""
        return self.bos_id is not None and self.bos_id in self.prefix_ids

    @cached_property
    def _special_string(self) -> re.Pattern[str]:
        names = [re.escape(token.content) for token in self.hf.added_tokens_decoder.values() if token.special]
        return re.compile("|".join(sorted(names, key=len, reverse=True)) or r"(?!)")

    def has_special_string(self, text: str) -> bool:
        """Whether plain reading of the text would give control tokens."""
        return self._special_string.search(text) is not None

    def special_places(self, text: str) -> list[tuple[int, int]]:
        """Start and end of all that plain reading of the text would take for control tokens."""
        return [match.span() for match in self._special_string.finditer(text)]

    def encode(self, text: str, *, first: bool = False, control: bool = False) -> list[int]:
        """The ids of a text.

        Args:
            text: Any text.
            first: Whether it begins a row (SentencePiece-like tokenizers put a space there).
            control: Whether special-token strings in it are control tokens; else they are plain text.
        """
        ids: list[int] = self._read([text], first=first, control=control, offsets=False)[0].ids.tolist()
        return ids

    def encode_all(self, texts: Sequence[str], *, first: bool = False) -> list[np.ndarray]:
        """The ids of texts, each of shape (num_tokens,), read on all cores; special-token strings in them are plain text."""
        return [read.ids for read in self._read(texts, first=first, control=False, offsets=False)]

    def encode_with_starts(self, text: str, *, first: bool, control: bool) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a text, and the offset of the first character of each; shape (num_tokens,) both."""
        [(ids, offsets)] = self._read([text], first=first, control=control)
        return ids, offsets[:, 0]

    def _read(self, texts: Sequence[str], *, first: bool, control: bool, offsets: bool = True) -> list[Read]:
        backend = self._first if first else self._next
        self._num_read += sum(map(len, texts))
        fast = self._fast[not first] if self._num_read >= MANY else None
        if fast is not None and not (control and any(map(self.has_special_string, texts))):
            found = fast.read(texts, offsets=offsets)
        else:
            backend.encode_special_tokens = not control
            found = [Read.of(encoding) for encoding in backend.encode_batch(texts, add_special_tokens=False)]
        for text, read in zip(texts, found, strict=True):
            if not control and self._never_data[read.ids].any():
                # A model whose merges or pieces spell a control token (unigram vocabularies hold "</s>").
                raise UserError(
                    f"the tokenizer turns plain text into control tokens: {self.decode(read.ids[self._never_data[read.ids]])}",
                    f"text {text[:60]!r}",
                    "use a tokenizer whose vocabulary keeps control tokens apart",
                )
        return found

    @cached_property
    def _fast(self) -> tuple[FastReader | None, FastReader | None]:
        """Faster readers that give the same tokens, for text that begins a row and for text that goes on."""
        first = fast_reader(self._first)
        one, other = (
            json.loads(backend.to_str()) | {"decoder": None} for backend in (self._first, self._next)
        )
        return first, first if one == other else fast_reader(self._next)

    def __getstate__(self) -> dict[str, Any]:
        """All but what another process makes for itself sooner than it is sent."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_fast", "_spelled")}

    def boundaries(self, text: str) -> set[int]:
        """Character offsets at which one token ends and the next begins when the text is encoded whole."""
        offsets = self._read([text], first=True, control=False)[0].offsets.tolist()
        inner = {end for (_, end), (start, _) in pairwise(offsets) if end == start}
        return inner | {0, len(text)}

    def decode(self, ids: Iterable[int], *, first: bool = False) -> str:
        """The text of ids; ``first`` says that they begin a row. Ids that are none (-100, or too large) give nothing."""
        backend = self._first if first else self._next
        ids = ids[ids >= 0].tolist() if isinstance(ids, np.ndarray) else [int(i) for i in ids if i >= 0]
        text: str = backend.decode(ids, skip_special_tokens=False)
        return text

    def is_lossy(self, ids: np.ndarray, text: str, *, first: bool = False) -> bool:
        """Whether decoding the ids gives another text."""
        if self._spelled and b"".join(map(self._spelled.__getitem__, ids.tolist())) == text.encode(
            "utf-8", "surrogatepass"
        ):
            return False
        return self.decode(ids, first=first) != text

    @cached_property
    def _spelled(self) -> list[bytes]:
        """The bytes that each id stands for where decoding does no more than join them; else nothing."""
        if (json.loads(self._next.to_str())["decoder"] or {}).get("type") != "ByteLevel":
            return []
        return [spelled or b"\xff" for spelled in token_bytes(self)]  # a byte that is in no text

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each id, so that they join to the whole; bytes of a split character go to its last id."""
        texts, pending = [], []
        for index in ids:
            pending.append(int(index))
            text = self.decode(pending)
            if text.endswith("\ufffd") and len(pending) < 8:
                texts.append("")
                continue
            texts.append(text)
            pending = []
        if pending:
            texts[-1] = self.decode(pending)
        return texts

    def hash(self) -> str:
        """SHA-256 of all that decides what ids a text gets, the chat template included."""
        parts = [
            self.hf.backend_tokenizer.to_str(),
            json.dumps(self.hf.chat_template),
            repr(sorted(self.stop_ids)),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _stops(folder: Path, revision: str | None) -> list[int]:
    """The stop ids of ``generation_config.json``, of a local folder or a Hub model; none where there is no such file."""
    local = folder / _GENERATION
    if local.is_file():
        stops = json.loads(local.read_text()).get("eos_token_id")
    elif folder.is_dir():
        return []
    else:
        from transformers import GenerationConfig

        try:
            stops = GenerationConfig.from_pretrained(str(folder), revision=revision or "main").eos_token_id
        except OSError:  # the model has none
            return []
    return stops if isinstance(stops, list) else [] if stops is None else [stops]


def _without_prefix_space(part: Any) -> Any:
    """A tokenizer's settings without the space before the first word, and without its removal when decoding."""
    if isinstance(part, list):
        kept = [_without_prefix_space(item) for item in part]
        return [item for item in kept if not (isinstance(item, dict) and item.get("type") == "no-op")]
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if kind == "Prepend" or (kind == "Strip" and part.get("start")):
        return {"type": "no-op"}
    changed = {
        key: value if key in ("vocab", "merges") else _without_prefix_space(value)
        for key, value in part.items()
    }
    changed = {key: None if value == {"type": "no-op"} else value for key, value in changed.items()}
    if kind == "Metaspace":
        changed |= {"prepend_scheme": "never"}
    if kind == "ByteLevel":
        changed |= {"add_prefix_space": False}
    return changed
