"""Keyed streams: the same key gives the same draws for ever, on any machine."""

from collections import Counter

import numpy as np
import pytest

from mvd_offline.randomness import KeyedStream


def test_draws_are_pinned_so_that_old_stores_keep_their_views() -> None:
    stream = KeyedStream("view", 0, "a.mp4", 0)

    assert [stream.below(1000) for _ in range(6)] == [91, 366, 746, 972, 426, 282]
    assert [stream.uniform() for _ in range(2)] == [0.12572086038903751, 0.5611163731079997]
    assert KeyedStream("order", 3).permutation(10).tolist() == [9, 2, 6, 7, 5, 3, 1, 0, 8, 4]
    assert KeyedStream("mask", 1, 2).torch_seed() == 3385738131562969233


def test_a_stream_depends_on_every_part_of_its_key_and_on_its_type() -> None:
    keys: list[tuple[int | str, ...]] = [
        ("a", 1),
        ("a", "1"),
        ("a", 2),
        ("b", 1),
        ("a",),
        ("a1",),
        ("a", 1, 0),
        ("", "a", 1),
    ]

    first_draws = {KeyedStream(*key).torch_seed() for key in keys}

    assert len(first_draws) == len(keys)


def test_a_stream_that_is_restarted_is_the_stream_of_its_new_key() -> None:
    stream = KeyedStream("before")
    for key in (("view", 0, "a.mp4", 0), ("mask", 1, 2), ("view", 0, "a.mp4", 0)):
        stream.below(7)
        fresh = KeyedStream(*key)
        stream.restart(*key)
        assert [stream.torch_seed() for _ in range(9)] == [fresh.torch_seed() for _ in range(9)]


def test_streams_do_not_disturb_each_other() -> None:
    alone = [KeyedStream("a").below(100), KeyedStream("b").below(100)]
    a, b = KeyedStream("a"), KeyedStream("b")

    assert [a.below(100), b.below(100)] == alone


@pytest.mark.parametrize("bound", [1, 2, 13, 1000])
def test_integers_are_uniform_below_their_bound(bound: int) -> None:
    stream = KeyedStream("uniform", bound)
    draws = Counter(stream.below(bound) for _ in range(4000))

    assert set(draws) <= set(range(bound))
    expected = 4000 / bound
    chi_square = sum((draws[value] - expected) ** 2 / expected for value in range(bound))
    # Five standard deviations above the mean of a chi-square with bound - 1 degrees of freedom.
    assert chi_square <= (bound - 1) + 5 * (2 * (bound - 1)) ** 0.5


def test_a_bound_near_the_largest_word_is_drawn_without_bias() -> None:
    # With plain modulo, values below 2**62 would come up twice as often as the rest.
    bound = 3 * 2**62
    stream = KeyedStream("large")
    low = sum(stream.below(bound) < 2**62 for _ in range(3000))

    assert 900 < low < 1100


def test_a_bound_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="bound must be at least 1, not 0"):
        KeyedStream("x").below(0)


def test_uniform_stays_inside_its_interval() -> None:
    stream = KeyedStream("interval")
    draws = [stream.uniform(-2.0, 3.0) for _ in range(2000)]

    assert -2.0 <= min(draws) < -1.9
    assert 2.9 < max(draws) < 3.0


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
def test_a_permutation_holds_every_index_once(n: int) -> None:
    order = KeyedStream("permutation", n).permutation(n)

    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_a_torch_seed_fits_a_signed_word() -> None:
    assert all(0 <= KeyedStream("seed", i).torch_seed() < 2**63 for i in range(100))


def test_normal_and_beta_draws_are_pinned_and_have_their_moments() -> None:
    stream = KeyedStream("moments")
    # Logarithms and powers are the machine's: their last bits may differ.
    expected = [7.617513242311798, 0.6312240282619771]
    assert [stream.normal(7.0, 0.5), stream.beta(0.8, 0.8)] == pytest.approx(expected, rel=1e-12)

    normal = np.array([stream.normal(7.0, 0.5) for _ in range(6000)])
    assert normal.mean() == pytest.approx(7.0, abs=0.03)
    assert normal.std() == pytest.approx(0.5, abs=0.02)
    assert (np.abs(normal - 7.0) < 0.5).mean() == pytest.approx(0.6827, abs=0.02)

    for a, b in ((0.8, 0.8), (1.0, 1.0), (2.0, 0.5)):
        beta = np.array([stream.beta(a, b) for _ in range(4000)])
        assert ((beta >= 0.0) & (beta <= 1.0)).all()
        assert beta.mean() == pytest.approx(a / (a + b), abs=0.02)
        assert beta.var() == pytest.approx(a * b / ((a + b) ** 2 * (a + b + 1)), abs=0.01)
