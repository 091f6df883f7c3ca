from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryDirectory

from luthier.check.columns import Offenders, num_alike, sampled
from luthier.check.context import CheckContext
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Finding
from luthier.registry import check

# A tokenizer that reads otherwise after it was saved does so in most texts.
NUM_ROWS = 64
MOST_TOKENS = 512
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id")


@check("tokenizer-reload")
def tokenizer_reload(context: CheckContext) -> Iterator[Finding]:
    """The tokenizer is the same after it is saved and loaded again, as whoever uses the model will load it.

    What it does: saves the tokenizer to a temporary folder, loads it as ``AutoTokenizer`` does, and compares its
    vocabulary, special ids and chat template, and the ids that both give for the text of 64 rows.

    Why is this bad: the model is saved with this tokenizer. If it comes back otherwise, the model is trained on other ids
    than it is used with, and nothing in training shows it.

    Example: a subclass whose ``__call__`` adds EOS, which ``save_pretrained`` cannot save; a normalizer that was set on
    the backend of a class that builds its own.

    Fix: put the difference into ``tokenizer.json`` (post-processor, normalizer, added tokens), or do it to the text.

    Catalogue: 8, 9, 20
    """
    tokenizer = context.tokenizer
    with TemporaryDirectory() as folder:
        tokenizer.save(folder)
        again = TextTokenizer.load(folder, trust_remote_code=context.trust_remote_code)
    fix = "put into tokenizer.json and tokenizer_config.json what was set in Python, or do it to the text itself"
    if changes := _changes(tokenizer, again):
        yield Finding(
            "tokenizer-reload",
            "error",
            f"after save and load {changes}",
            f"tokenizer of {context.model_name}",
            fix,
        )
    other = Offenders(context)
    example = ""
    for split, rows in sampled(context, NUM_ROWS // max(1, len(context.rows))):
        bad = []
        for row in rows:
            text = tokenizer.decode(row.input_ids[:MOST_TOKENS].tolist())
            before, after = (list(t.hf(text)["input_ids"]) for t in (tokenizer, again))
            bad.append(before != after)
            if before != after and not example:
                example = _first_difference(before, after)
        other.add(split, [row.id for row in rows], bad)
    if other.count:
        yield other.finding(
            "tokenizer-reload",
            "error",
            f"the texts of {other} get other ids after save and load: {example}",
            fix,
        )


def _changes(tokenizer: TextTokenizer, again: TextTokenizer) -> str:
    """What differs between two tokenizers apart from how they read."""
    said = [
        f"{name} is {getattr(again.hf, name)} and was {getattr(tokenizer.hf, name)}"
        for name in _SPECIAL
        if getattr(tokenizer.hf, name, None) != getattr(again.hf, name, None)
    ]
    before, after = tokenizer.hf.get_vocab(), again.hf.get_vocab()
    if before != after:
        moved = [token for token, number in before.items() if after.get(token) != number]
        shown = ", ".join(map(repr, moved[:3] or sorted(set(after) - set(before))[:3]))
        said.append(f"{len(after)} tokens are known and were {len(before)}, first {shown}")
    if tokenizer.hf.chat_template != again.hf.chat_template:
        said.append("the chat template is another")
    return "; ".join(said)


def _first_difference(before: list[int], after: list[int]) -> str:
    at = num_alike(before, after)
    return f"from token {at} on {before[at : at + 5]} before and {after[at : at + 5]} after"
