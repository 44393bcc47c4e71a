"""Codecs: exact where they promise it, near where they do not, and loud where they cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mvd_offline.shards import CodecError
from mvd_offline.shards.codecs import BFLOAT16_NAN, CODECS, get_codec

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
    payload = codec.encode(features)
    assert len(payload) == codec.nbytes(*features.shape)
    decoded = codec.decode(payload, *features.shape)
    assert decoded.dtype == codec.dtype
    return codec.to_float32(decoded)


@pytest.mark.parametrize("name", CODECS)
@settings(deadline=None, max_examples=150, derandomize=True)
@given(features=arrays(65504.0))
def test_values_come_back_within_the_codecs_stated_error(name: str, features: NDArray[np.float32]) -> None:
    back = round_trip(name, features)
    bound = np.maximum(ROUNDOFF[name] * np.abs(features.astype(np.float64)), SMALLEST_STEP[name])
    assert (np.abs(back.astype(np.float64) - features) <= bound).all()


@pytest.mark.parametrize("name", CODECS)
@settings(deadline=None, max_examples=150, derandomize=True)
@given(features=arrays(65504.0))
def test_rounding_is_that_of_torch_to_the_bit(name: str, features: NDArray[np.float32]) -> None:
    expected = torch.from_numpy(features.copy()).to(TORCH[name])
    assert get_codec(name).encode(features) == expected.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", CODECS)
@settings(deadline=None, max_examples=50, derandomize=True)
@given(features=arrays(65504.0))
def test_what_was_decoded_encodes_to_the_same_bytes(name: str, features: NDArray[np.float32]) -> None:
    codec = get_codec(name)
    payload = codec.encode(features)
    decoded = codec.decode(payload, *features.shape)
    assert codec.encode(decoded) == payload
    assert codec.encode(codec.to_float32(decoded)) == payload


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


def test_coded_values_that_are_not_finite_are_refused_too() -> None:
    with pytest.raises(CodecError, match="not finite"):
        get_codec("bfloat16").encode(np.full((1, 1), BFLOAT16_NAN, np.uint16))
    with pytest.raises(CodecError, match="not finite"):
        get_codec("float16").encode(np.full((1, 1), np.inf, np.float16))


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
    assert codec.encode(features.T) == codec.encode(np.ascontiguousarray(features.T))


@pytest.mark.parametrize("name", CODECS)
def test_a_payload_of_another_size_is_refused(name: str) -> None:
    with pytest.raises(CodecError, match="bytes, not 3"):
        get_codec(name).decode(b"abc", 2, 2)


def test_an_unknown_codec_is_refused_with_the_known() -> None:
    with pytest.raises(CodecError, match="known: float32, float16, bfloat16"):
        get_codec("int3")
