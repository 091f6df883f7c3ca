import math

import pytest

from luthier.metrics.loss import bits_per_byte, perplexity, token_accuracy


def test_a_uniform_guess_over_n_has_perplexity_n():
    assert perplexity(math.log(49152)) == pytest.approx(49152)
    assert perplexity(1e4) == math.inf


def test_a_fair_coin_for_each_bit_costs_eight_bits_a_byte():
    assert bits_per_byte(8 * math.log(2) * 10, 10) == pytest.approx(8)


def test_token_accuracy_is_a_share():
    assert token_accuracy(3, 4) == 0.75


def test_nothing_measured_is_not_a_number():
    assert math.isnan(bits_per_byte(1.0, 0))
    assert math.isnan(token_accuracy(0, 0))
