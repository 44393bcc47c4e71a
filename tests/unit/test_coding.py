"""Codecs on tensors equal the store's own, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mvd_offline.coding import as_coding_error, coding_errors, decode, encode, is_finite
from mvd_offline.extraction.coding import CodedBatch
from mvd_offline.shards.codecs import CODECS, get_codec, measure_error


def stored_bits(coded: torch.Tensor) -> bytes:
    return coded.view(torch.uint8).numpy().tobytes()


def teacher_like(rows: int = 3, tokens: int = 49, width: int = 40) -> NDArray[np.float32]:
    draw = np.random.default_rng(0)
    features = draw.standard_normal((rows, tokens, width)) * np.exp(2 * draw.standard_normal(width))
    return (features + 30 * (draw.random(width) < 0.1)).astype(np.float32)


@pytest.mark.parametrize("name", CODECS)
@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    row=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
        elements=st.floats(-65504.0, 65504.0, width=32, allow_subnormal=False),
    )
)
def test_any_row_is_coded_as_by_the_store(name: str, row: NDArray[np.float32]) -> None:
    coded = encode(torch.from_numpy(row.copy())[None], name)
    expected = get_codec(name).encode(row)
    assert stored_bits(coded) == expected.tobytes()
    assert is_finite(coded).tolist() == [True]


@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 32, 1568])
def test_a_channel_between_two_powers_of_two_is_coded_as_by_the_store(tokens: int) -> None:
    row = np.zeros((tokens, 24), np.float32)
    row[0] = 2.0 ** np.arange(-12, 12)
    assert stored_bits(encode(torch.from_numpy(row)[None], "int8")) == get_codec("int8").encode(row).tobytes()


@pytest.mark.parametrize("name", CODECS)
def test_a_batch_is_coded_decoded_and_measured_as_by_the_store(name: str) -> None:
    features = teacher_like()
    codec = get_codec(name)
    coded = encode(torch.from_numpy(features), name)
    decoded = decode(coded if name != "bfloat16" else coded.view(torch.uint16), name)
    errors = coding_errors(torch.from_numpy(features), decoded)
    for position, row in enumerate(features):
        expected = codec.encode(row)
        assert stored_bits(coded[position]) == expected.tobytes()
        np.testing.assert_array_equal(decoded[position].numpy(), codec.decode(expected))
        measured, reference = as_coding_error(errors[position]), measure_error(row, codec.decode(expected))
        np.testing.assert_allclose(list(vars(measured).values()), list(vars(reference).values()), rtol=2e-3, atol=2e-9)
        assert 1 - measured.cosine_min == pytest.approx(1 - reference.cosine_min, rel=1e-2, abs=2e-9)


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
@pytest.mark.parametrize("size", [2.0**60, 2.0**83, 2.0**116])
def test_features_whose_squares_overflow_are_measured_all_the_same(name: str, size: float) -> None:
    features = np.random.default_rng(0).standard_normal((2, 9, 8), np.float32)
    usual, large = (
        CodedBatch.of(torch.from_numpy(features), name),
        CodedBatch.of(torch.from_numpy(features * np.float32(size)), name),
    )
    decoded = get_codec(name).decode(large.rows[0])
    for found in (large.errors[0], measure_error(features[0] * np.float32(size), decoded)):
        assert found.relative_error == pytest.approx(usual.errors[0].relative_error, rel=1e-3)
        assert found.cosine_min == pytest.approx(usual.errors[0].cosine_min, abs=2e-9)


@pytest.mark.parametrize("name", CODECS)
def test_some_tokens_decode_as_they_do_in_the_whole_row(name: str) -> None:
    coded = encode(torch.from_numpy(teacher_like()), name)
    extra = get_codec(name).extra_rows
    tokens = torch.tensor([7, 0, 48])
    part = torch.cat([coded[:, tokens], coded[:, coded.shape[1] - extra :]], dim=1)
    torch.testing.assert_close(decode(part, name), decode(coded, name)[:, tokens], rtol=0, atol=0)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3.4e38])
def test_a_row_that_overflowed_is_told(name: str, value: float) -> None:
    features = torch.from_numpy(teacher_like())
    features[1, 3, 2] = value
    holds = value == -3.4e38 and name in ("float32", "int8")
    assert is_finite(encode(features, name)).tolist() == [True, holds, True]
