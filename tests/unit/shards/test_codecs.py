"""Codecs: exact where they promise it, near where they do not, and loud where they cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mvd_offline.coding import decode
from mvd_offline.shards import CodecError
from mvd_offline.shards.codecs import BFLOAT16_NAN, CODECS, CodingError, get_codec, measure_error

# Unit roundoff: half the distance of neighbouring values, relative.
ROUNDOFF = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST_STEP = {"float32": 0.0, "float16": 2.0**-25, "bfloat16": 2.0**-134}
TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def arrays(limit: float) -> st.SearchStrategy[NDArray[np.float32]]:
    return hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
        elements=st.floats(-limit, limit, width=32, allow_subnormal=True),
    )


def round_trip(name: str, features: NDArray[np.float32]) -> NDArray[np.float32]:
    codec = get_codec(name)
    coded = codec.encode(features)
    assert coded.shape == codec.shape(*features.shape)
    assert coded.nbytes == codec.nbytes(*features.shape)
    assert coded.dtype == codec.dtype
    assert codec.is_valid(coded)
    return codec.decode(coded).astype(np.float32)


@pytest.mark.parametrize("name", ROUNDOFF)
@settings(deadline=None, max_examples=150, derandomize=True)
@given(features=arrays(65504.0))
def test_values_come_back_within_the_codecs_stated_error(name: str, features: NDArray[np.float32]) -> None:
    back = round_trip(name, features)
    bound = np.maximum(ROUNDOFF[name] * np.abs(features.astype(np.float64)), SMALLEST_STEP[name])
    assert (np.abs(back.astype(np.float64) - features) <= bound).all()


@pytest.mark.parametrize("name", ROUNDOFF)
@settings(deadline=None, max_examples=150, derandomize=True)
@given(features=arrays(65504.0))
def test_rounding_is_that_of_torch_to_the_bit(name: str, features: NDArray[np.float32]) -> None:
    expected = torch.from_numpy(features.copy()).to(TORCH[name])
    assert get_codec(name).encode(features).tobytes() == expected.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", ROUNDOFF)
@settings(deadline=None, max_examples=50, derandomize=True)
@given(features=arrays(65504.0))
def test_what_was_decoded_encodes_to_the_same_bytes(name: str, features: NDArray[np.float32]) -> None:
    codec = get_codec(name)
    coded = codec.encode(features)
    assert codec.encode(codec.decode(coded).astype(np.float32)).tobytes() == coded.tobytes()


# ---- int8 --------------------------------------------------------------------------------------------------------


def with_outliers(tokens: int = 196, width: int = 96, seed: int = 0) -> NDArray[np.float32]:
    """Like the residual stream before a ViT's final norm: a few channels of 10 to 100 times the rest, some off zero."""
    draw = np.random.default_rng(seed)
    features = draw.standard_normal((tokens, width))
    features[:, [3, 40, 77]] *= [100.0, 30.0, 10.0]
    features[:, [40, 77]] += [150.0, -60.0]
    features[5] *= 20.0  # and a token that stands out
    return features.astype(np.float32)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(features=arrays(65504.0))
def test_int8_values_come_back_within_half_a_step(features: NDArray[np.float32]) -> None:
    tokens, width = features.shape
    coded = get_codec("int8").encode(features)
    scales = np.ascontiguousarray(coded[:tokens, width:]).view(np.float32).astype(np.float64)
    step = scales * np.exp2(coded[tokens, :width].astype(np.float64))
    # The scale is itself rounded, to 2^-24 of it or, below the normal numbers, to 2^-149 times up to 127 steps.
    slack = 2.0**-20 * np.abs(features.astype(np.float64)) + 128 * 2.0**-149 * np.exp2(coded[tokens, :width] * 1.0)
    error = np.abs(round_trip("int8", features).astype(np.float64) - features)
    assert (error <= step / 2 + slack).all()


def test_int8_keeps_ordinary_channels_beside_those_that_stand_out() -> None:
    features = with_outliers()
    back = round_trip("int8", features)
    ordinary = [channel for channel in range(features.shape[1]) if channel not in (3, 40, 77)]
    for channels in (ordinary, [3], [40], [77]):
        error = np.linalg.norm((back - features)[:, channels]) / np.linalg.norm(features[:, channels])
        assert error < 0.015, channels
    # What one scale for each token, without the channels' exponents, would have made of the ordinary ones.
    scale = np.abs(features).max(axis=1, keepdims=True) / 127
    plain = np.rint(features / scale) * scale
    assert np.linalg.norm((plain - features)[:, ordinary]) / np.linalg.norm(features[:, ordinary]) > 0.1


def test_int8_is_the_same_arithmetic_in_torch() -> None:
    coded = get_codec("int8").encode(with_outliers())
    expected = get_codec("int8").decode(coded)
    decoded = decode(torch.from_numpy(coded)[None], "int8")[0]
    assert decoded.dtype == torch.float32
    np.testing.assert_array_equal(decoded.numpy(), expected)


def test_int8_of_zeros_is_zeros() -> None:
    features = np.zeros((3, 4), np.float32)
    features[1, 2] = 7.0
    back = round_trip("int8", features)
    np.testing.assert_allclose(back, features, rtol=1e-6)
    assert not back[0].any()


@pytest.mark.parametrize(
    "place", [(0, 0, -128), (0, 7, 0x7F), (2, 0, -128), (2, 6, 1)], ids=["integer", "scale", "exponent", "reserved"]
)
def test_int8_that_no_encoder_writes_is_invalid(place: tuple[int, int, int]) -> None:
    coded = get_codec("int8").encode(np.ones((2, 4), np.float32))
    row, column, value = place
    if column == 7:
        coded[row, 4:] = np.array([np.inf], np.float32).view(np.int8)
    else:
        coded[row, column] = value
    assert not get_codec("int8").is_valid(coded)


# ---- what coding costs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
def test_the_measured_error_is_that_of_plain_arithmetic(name: str) -> None:
    features = with_outliers()
    codec = get_codec(name)
    decoded = codec.decode(codec.encode(features))
    before, after = features.astype(np.float64), decoded.astype(np.float64)
    cosines = (before * after).sum(1) / (np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1))
    measured = measure_error(features, decoded)
    assert measured.relative_error == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-3)
    assert measured.cosine_min == pytest.approx(cosines.min(), abs=2e-9)
    assert measured.cosine_mean == pytest.approx(cosines.mean(), abs=2e-9)
    assert measured.max_abs_error == pytest.approx(np.abs(after - before).max(), rel=1e-3)
    assert (measured == CodingError(0.0, 1.0, 1.0, 0.0)) == (name == "float32")


def test_a_token_that_became_zero_counts_as_lost() -> None:
    features = np.array([[1.0, 0.0], [0.0, 0.0]], np.float32)
    measured = measure_error(features, np.zeros((2, 2), np.float32))
    assert measured == CodingError(1.0, 0.0, 0.5, 1.0)


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_place(name: str, value: float) -> None:
    features = np.zeros((3, 4), np.float32)
    features[2, 1] = value
    with pytest.raises(CodecError, match=r"1 values that are not finite, the first at token 2, channel 1.*float32"):
        get_codec(name).encode(features)


@pytest.mark.parametrize(
    ("name", "largest", "too_large", "remedy"),
    [("float16", 65504.0, 65520.0, "bfloat16"), ("bfloat16", 3.3895314e38, 3.4e38, "float32")],
)
def test_values_out_of_range_are_refused_with_the_codec_to_use(
    name: str, largest: float, too_large: float, remedy: str
) -> None:
    assert round_trip(name, np.full((1, 1), -largest, np.float32))[0, 0] == np.float32(-largest)
    with pytest.raises(CodecError, match=f"store.codec to {remedy}"):
        get_codec(name).encode(np.full((1, 1), too_large, np.float32))


def test_coded_values_that_are_not_finite_are_invalid() -> None:
    assert not get_codec("bfloat16").is_valid(np.full((1, 1), BFLOAT16_NAN, np.uint16))
    assert not get_codec("float16").is_valid(np.full((1, 1), np.inf, np.float16))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(
    "features", [np.zeros((2, 2)), np.zeros(4, np.float32), np.zeros((2, 2), np.int32)], ids=["float64", "1-D", "int32"]
)
def test_other_arrays_are_refused(name: str, features: NDArray[np.generic]) -> None:
    with pytest.raises(CodecError, match="takes features"):
        get_codec(name).encode(features)


@pytest.mark.parametrize("name", CODECS)
def test_strided_features_are_stored_in_token_order(name: str) -> None:
    features = np.arange(24, dtype=np.float32).reshape(4, 6)
    codec = get_codec(name)
    assert codec.encode(features.T).tobytes() == codec.encode(np.ascontiguousarray(features.T)).tobytes()


def test_an_unknown_codec_is_refused_with_the_known() -> None:
    with pytest.raises(CodecError, match="known: float32, float16, bfloat16, int8"):
        get_codec("int3")
