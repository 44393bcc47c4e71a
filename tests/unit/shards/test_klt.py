"""Features in a basis that was learnt: what it keeps, what it costs, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mvd_offline.shards.codecnames import codec_family
from mvd_offline.shards.codecs import get_codec, measure_error
from mvd_offline.shards.errors import CodecError, CorruptionError
from mvd_offline.shards.klt import LIMIT, KltBasis, KltCodec, KltPacking, learn, read_basis, remember

TOKENS, WIDTH = 40, 24


def correlated(rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Tokens of few underlying factors, with a mean and an outlying channel, as a teacher's are."""
    draw = np.random.default_rng(seed)
    factors = np.random.default_rng(99).standard_normal((6, WIDTH)) * np.array([8, 4, 2, 1, 0.5, 0.25])[:, None]
    tokens = draw.standard_normal((rows, 6)) @ factors + 0.02 * draw.standard_normal((rows, WIDTH))
    tokens[:, 3] = 30 * tokens[:, 3] + 100
    return tokens.astype(np.float32)


def known(relative_error: float = 0.05) -> KltCodec:
    codec = get_codec(remember(learn(correlated(4000), relative_error)))
    assert isinstance(codec, KltCodec)
    return codec


@pytest.mark.parametrize("relative_error", [0.3, 0.05, 0.005])
def test_new_rows_lose_what_was_asked_for(relative_error: float) -> None:
    codec = known(relative_error)
    lost = []
    for seed in range(1, 30):
        row = correlated(TOKENS, seed)
        lost.append(measure_error(row, codec.decode(codec.encode(row))).relative_error)

    assert np.sqrt(np.mean(np.square(lost))) == pytest.approx(relative_error, rel=0.15)


def test_the_components_are_orthogonal_as_long_as_the_step_and_fewer_for_a_larger_error() -> None:
    fine, coarse = (learn(correlated(4000), error) for error in (0.005, 0.2))
    for basis in (fine, coarse):
        products = basis.components.astype(np.float64) @ basis.components.T
        step = np.sqrt(products[0, 0])
        np.testing.assert_allclose(products, np.eye(len(products)) * step**2, atol=1e-4 * step**2)
    assert len(coarse.components) < len(fine.components) <= WIDTH
    assert coarse.components[0] @ coarse.components[0] > fine.components[0] @ fine.components[0]


def test_it_takes_less_than_rounding_each_channel_at_the_same_error() -> None:
    codec, row = known(0.05), correlated(400, 7)
    packed = len(codec.packing.pack(codec.encode(row)))
    error = measure_error(row, codec.decode(codec.encode(row))).relative_error
    # The same uniform rounding without the transform, with a step that loses as much.
    step = float(np.sqrt(12) * error * np.linalg.norm(row) / np.sqrt(row.size))
    plain = len(KltPacking().pack(np.rint(row / step).astype(np.int16)))

    assert packed < 0.5 * plain


def test_a_basis_is_the_same_whoever_learns_it_and_named_by_its_content() -> None:
    one, other = (learn(correlated(4000), 0.05) for _ in range(2))
    assert one.codec_name == other.codec_name
    assert one.codec_name != learn(correlated(4000, seed=1), 0.05).codec_name
    assert codec_family(one.codec_name) == "klt-0.05"
    assert codec_family("float16") == "float16"
    again = KltBasis.from_bytes(one.data, 0.05)
    np.testing.assert_array_equal(again.table, one.table)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_any_integers_are_packed_without_loss(seed: int, tokens: int, components: int) -> None:
    values = np.random.default_rng(seed).integers(-LIMIT, LIMIT + 1, (tokens, components)).astype(np.int16)
    out = np.zeros_like(values)
    KltPacking().unpack(memoryview(KltPacking().pack(values)), out)
    np.testing.assert_array_equal(out, values)


def test_the_sign_and_size_of_every_byte_survive() -> None:
    values = np.array([[0, 1, -1], [255, 256, -256], [LIMIT, -LIMIT, -128]], np.int16)
    out = np.zeros_like(values)
    KltPacking().unpack(memoryview(KltPacking().pack(values)), out)
    np.testing.assert_array_equal(out, values)


def test_what_is_no_payload_of_its_own_is_refused() -> None:
    codec = known()
    coded = codec.encode(correlated(TOKENS, 3))
    payload, out = codec.packing.pack(coded), np.empty_like(coded)
    shorter = codec.packing.pack(coded[:-1])
    for damaged in (b"", payload[:-1], payload + b"x", b"x" * len(payload), shorter):
        with pytest.raises(CodecError, match="no zstd frame of"):
            codec.packing.unpack(memoryview(damaged), out)


def test_values_beyond_any_step_are_cut_and_measured() -> None:
    codec, row = known(), correlated(TOKENS, 3)
    row[0] *= 1e6
    decoded = codec.decode(codec.encode(row))
    assert np.isfinite(decoded).all()
    assert measure_error(row, decoded).relative_error > 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    row = correlated(TOKENS)
    row[2, 1] = value
    with pytest.raises(CodecError, match="finite"):
        known().encode(row)


def test_a_sample_that_is_too_small_or_of_one_token_is_refused() -> None:
    with pytest.raises(CodecError, match="at least 96 tokens, and has 95"):
        learn(correlated(95), 0.05)
    with pytest.raises(CodecError, match="nothing to learn"):
        learn(np.ones((4000, WIDTH), np.float32), 0.05)


def test_a_basis_that_was_not_read_is_named(tmp_path: Path) -> None:
    name = f"klt-0.05-{'0' * 64}"
    with pytest.raises(CodecError, match=r"the basis of codec klt-0\.05-0000.* was not read"):
        get_codec(name)
    with pytest.raises(CorruptionError, match=r"basis.npy cannot be read"):
        read_basis(tmp_path / "basis.npy", name, "")
    (tmp_path / "basis.npy").write_bytes(learn(correlated(4000), 0.05).data)
    with pytest.raises(CorruptionError, match="does not match the sha256"):
        read_basis(tmp_path / "basis.npy", name, "")


@pytest.mark.parametrize(
    "table",
    [np.zeros((1, 4), np.float32), np.zeros((3, 4)), np.full((3, 4), np.nan, np.float32), np.zeros(4, np.float32)],
)
def test_a_table_that_is_no_basis_is_refused(table: NDArray[np.float32]) -> None:
    with pytest.raises(CodecError, match="must hold finite float32"):
        KltBasis(table, 0.05)
