"""The bytes that each token of a vocabulary stands for, for decoding that must keep to a grammar."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.encoding.text_tokenizer import TextTokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: TextTokenizer) -> list[bytes | None]:
    """UTF-8 bytes of each id, shape (vocabulary,); None for control tokens.

    A token may hold a part of a character, so that its text alone says nothing. Byte-level vocabularies spell bytes as
    printable characters, SentencePiece-like ones a space as U+2581 and single bytes as ``<0x0A>``.
    """
    settings = json.loads(tokenizer.hf.backend_tokenizer.to_str())
    byte_level = '"ByteLevel"' in json.dumps([settings["pre_tokenizer"], settings["decoder"]])
    byte_of = _bytes_of_characters() if byte_level else {}
    found: list[bytes | None] = []
    for index, token in enumerate(tokenizer.hf.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if index in tokenizer.special_ids or index in tokenizer.stop_ids or token is None:
            found.append(None)
        elif byte_level and all(character in byte_of for character in token):
            found.append(bytes(byte_of[character] for character in token))
        elif not byte_level and (single := _BYTE.fullmatch(token)):
            found.append(bytes([int(single[1], 16)]))
        else:
            found.append(token.replace("\u2581", " ").encode("utf-8", "surrogatepass"))
    return found


def _bytes_of_characters() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary spells: printable ones themselves, the others from U+0100 on.

    Source: Radford et al. 2019 (GPT-2), ``bytes_to_unicode``.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}
