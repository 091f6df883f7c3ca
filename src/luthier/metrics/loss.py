"""What losses and token counts say; an undefined ratio (nothing was measured) is NaN."""

from __future__ import annotations

import math


def perplexity(loss_nats: float) -> float:
    """The number of equally likely tokens that would give this loss: ``exp(loss)``.

    Args:
        loss_nats: Weighted mean cross entropy over trained tokens, in nats, at least 0.

    Returns:
        At least 1; infinite where ``exp`` overflows. Depends on the tokenizer: compare models of different
        tokenizers by ``bits_per_byte``.

    Source: Jelinek et al. 1977, "Perplexity: a measure of the difficulty of speech recognition tasks".
    """
    try:
        return math.exp(loss_nats)
    except OverflowError:
        return math.inf


def bits_per_byte(total_nats: float, num_bytes: int) -> float:
    """Bits that the model needs for one byte of target text: ``nats / ln 2 / bytes``.

    Args:
        total_nats: Summed cross entropy of the target's tokens, in nats, not weighted.
        num_bytes: UTF-8 bytes of the target text.

    Returns:
        Comparable between tokenizers; NaN without bytes.

    Source: Gao et al. 2020, "The Pile", arXiv:2101.00027, section 3.1.
    """
    return total_nats / math.log(2) / num_bytes if num_bytes else math.nan


def token_accuracy(num_correct: int, num_tokens: int) -> float:
    """Share of trained tokens that are the model's most likely one, given everything before them.

    Args:
        num_correct: Tokens predicted right, 0..num_tokens.
        num_tokens: Trained tokens; context is not counted.

    Returns:
        In [0, 1]; NaN without tokens. Over model tokens, hence another figure than CodeXGLUE's over words.
    """
    return num_correct / num_tokens if num_tokens else math.nan
