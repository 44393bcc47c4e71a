"""Features in a basis of their own: codec `klt-ERROR-SHA256`, of the Karhunen-Loeve transform (principal components).

The channels of a teacher's features are far from independent. In the basis of their principal components few carry
nearly all of the variance. All components are rounded with one step: for a given squared error that is the allocation
of bits by reverse water-filling (Cover and Thomas, Elements of Information Theory, 2nd ed., section 10.3.3), under
which components of less variance than the step can tell get no bits at all. What is rounded is packed by zstd.

A basis is learnt once for a column and is a file of it, `basis.npy`: float32 (K + 1, D), first the mean of the
features, then the K components, each as long as the step. The codec's name has the relative error that was asked for,
and the sha256 of that file. A coded array is int16 (N, K), and its values x = integers @ components + mean. A payload
is the zstd frame of the lower bytes of the integers u, component after component, and then of their upper bytes, where
u = 0, 1, 2, 3, 4 stands for 0, -1, 1, -2, 2 and so on: small integers of either sign have an upper byte of zero.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numcodecs import Zstd
from numpy.typing import NDArray

from mvd_offline.shards.codecnames import KLT_NAME, klt_family
from mvd_offline.shards.errors import CodecError, CorruptionError

BASIS_FILE: Final = "basis.npy"
LIMIT: Final = 2**15 - 1
_LEVEL: Final = 6
"""Of zstd: above it a row takes 3 times as long for 8 % less."""
_BISECTIONS: Final = 24


@dataclass(frozen=True)
class KltBasis:
    """The mean of a teacher's features, and the components in which they are rounded.

    Attributes:
        table: float32 (K + 1, D); see the module.
        relative_error: that was asked for.
    """

    table: NDArray[np.float32]
    relative_error: float

    def __post_init__(self) -> None:
        rows, finite = len(self.table), bool(np.isfinite(self.table).all())
        if self.table.dtype != np.float32 or self.table.ndim != 2 or rows < 2 or not finite:
            raise CodecError(
                f"{BASIS_FILE} must hold finite float32 (K + 1, D), not {self.table.dtype} {self.table.shape}"
            )

    @cached_property
    def data(self) -> bytes:
        """The content of the file."""
        sink = io.BytesIO()
        np.lib.format.write_array(sink, np.ascontiguousarray(self.table), version=(1, 0), allow_pickle=False)
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, relative_error: float) -> KltBasis:
        """Raises CodecError for what is no such file."""
        try:
            table = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise CodecError(f"{BASIS_FILE} cannot be read ({error})") from None
        return cls(table, relative_error)

    @cached_property
    def codec_name(self) -> str:
        return f"{klt_family(self.relative_error)}-{hashlib.sha256(self.data).hexdigest()}"

    @property
    def mean(self) -> NDArray[np.float32]:
        """(D,)"""
        return self.table[0]

    @property
    def components(self) -> NDArray[np.float32]:
        """(K, D), orthogonal, each as long as the step."""
        return self.table[1:]

    @cached_property
    def projections(self) -> NDArray[np.float32]:
        """(D, K): features less their mean, times this, are the components in steps."""
        wide = self.components.astype(np.float64)
        return np.ascontiguousarray((wide / np.square(wide).sum(axis=1, keepdims=True)).T.astype(np.float32))


class KltCodec:
    """Features in a basis that is known to this process; see `learn` and `remember`."""

    dtype: np.dtype[Any] = np.dtype(np.int16)
    fill_value = ""
    extra_rows = 0

    def __init__(self, basis: KltBasis) -> None:
        self.name, self.basis = basis.codec_name, basis
        self.packing = KltPacking()
        self.typical_bytes: int | None = None
        """Of a payload, where that was measured on the sample."""

    @classmethod
    def named(cls, name: str) -> KltCodec | None:
        """The codec of that name; None for a name of another kind. Raises CodecError for a basis that is not known."""
        if KLT_NAME.fullmatch(name) is None:
            return None
        if name not in _known:
            raise CodecError(f"the basis of codec {name[:16]}... was not read: open the store that has it first")
        return _known[name]

    def shape(self, tokens: int, width: int) -> tuple[int, ...]:
        return tokens, len(self.basis.components)

    def nbytes(self, tokens: int, width: int) -> int:
        return tokens * len(self.basis.components) * self.dtype.itemsize

    def encode(self, features: NDArray[Any]) -> NDArray[np.int16]:
        if features.dtype != np.float32 or features.ndim != 2 or not np.isfinite(features).all():
            raise CodecError(f"codec klt takes finite float32 features (tokens, width), not {features.dtype}")
        steps = (features - self.basis.mean) @ self.basis.projections
        return np.clip(np.rint(steps), -LIMIT, LIMIT).astype(np.int16)

    def decode(self, coded: NDArray[Any]) -> NDArray[np.float32]:
        features: NDArray[np.float32] = coded.astype(np.float32) @ self.basis.components + self.basis.mean
        return features

    def is_valid(self, coded: NDArray[Any]) -> bool:
        return True


class KltPacking:
    """Integers to zstd frames and back."""

    def __init__(self) -> None:
        self._zstd = Zstd(level=_LEVEL)

    def pack(self, values: NDArray[Any]) -> bytes:
        """Coded (N, K)."""
        folded = np.ascontiguousarray(((values << 1) ^ (values >> 15)).T, "<i2")
        packed: bytes = self._zstd.encode(np.ascontiguousarray(folded.view(np.uint8).reshape(-1, 2).T))
        return packed

    def unpack(self, payload: memoryview, out: NDArray[Any]) -> None:
        planes = np.empty((2, out.shape[1], out.shape[0]), np.uint8)
        try:
            # A frame of less would leave the rest of the memory as it was, without a word.
            if (size := _content_size(payload)) != planes.nbytes:
                raise ValueError(f"it holds {size}")
            self._zstd.decode(payload, planes)
        except (RuntimeError, ValueError, IndexError) as error:
            raise CodecError(f"the payload is no zstd frame of {planes.nbytes} bytes ({error})") from None
        folded = np.ascontiguousarray(planes.transpose(1, 2, 0)).view("<u2")[..., 0].T
        out[...] = (folded >> 1).astype(np.int16) ^ -(folded & 1).astype(np.int16)


def _content_size(frame: memoryview) -> int | None:
    """What a zstd frame says that it holds (RFC 8878, section 3.1.1.1); None where it does not say."""
    if bytes(frame[:4]) != b"\x28\xb5\x2f\xfd":
        raise ValueError("no zstd magic")
    descriptor = frame[4]
    single, flag = descriptor >> 5 & 1, descriptor >> 6
    start = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    size = (single, 2, 4, 8)[flag]
    if not size:
        return None
    return int.from_bytes(frame[start : start + size], "little") + (256 if size == 2 else 0)


# ---- bases -------------------------------------------------------------------------------------------------------

_known: Final[dict[str, KltCodec]] = {}
"""By name, which has the hash of the content: what two stores share is one."""


def remember(basis: KltBasis) -> str:
    """Let `get_codec` know a basis; returns the codec's name."""
    _known.setdefault(basis.codec_name, KltCodec(basis))
    return basis.codec_name


def read_basis(path: Path, name: str, repair: str) -> None:
    """Remember the basis of a store's column, unless this process knows it already.

    Raises:
        CorruptionError: the file is gone, or is not the one that the codec's name means; `repair` says what to do.
    """
    if name in _known:
        return
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptionError(f"{path} cannot be read ({error.strerror}). {repair}") from None
    found = KLT_NAME.fullmatch(name)
    if found is None or hashlib.sha256(data).hexdigest() != found[2]:
        raise CorruptionError(f"{path}: the file does not match the sha256 in store.json. {repair}")
    _known[name] = KltCodec(KltBasis.from_bytes(data, float(found[1].removeprefix("klt-"))))


def learn(features: NDArray[np.float32], relative_error: float) -> KltBasis:
    """A basis in which rows like these have a relative error (L2, of all rows together) of at most that.

    Args:
        features: float32 (rows, D): tokens of many clips.

    Raises:
        CodecError: fewer tokens than channels, of which no basis can be learnt; or features that are all the same.
    """
    rows, width = features.shape
    if rows < 4 * width:
        raise CodecError(
            f"codec klt learns a basis of {width} channels from at least {4 * width} tokens, and has {rows}: sample "
            "more views (store.klt.sample_views)"
        )
    mean = features.mean(axis=0, dtype=np.float64)
    centred = features - mean
    variances, vectors = np.linalg.eigh(centred.T @ centred / rows)
    variances, vectors = variances[::-1], vectors[:, ::-1]
    if not variances[0] > 0:
        raise CodecError("codec klt: all tokens of the sample are the same, so that there is nothing to learn")
    # Signs are the library's whim; the largest entry of each component is positive.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(width)])
    components = centred @ vectors
    wanted = relative_error**2 * float(np.square(features, dtype=np.float64).sum())
    step = _step(components, wanted)
    kept = np.flatnonzero((np.rint(components / step) != 0).any(axis=0))
    count = int(kept[-1]) + 1 if len(kept) else 1
    table = np.concatenate([mean[None], (vectors[:, :count] * step).T])
    return KltBasis(np.ascontiguousarray(table, np.float32), relative_error)


def _step(components: NDArray[np.float64], wanted: float) -> float:
    """The largest step whose rounding costs at most `wanted`, squared and summed."""
    scale = float(np.sqrt(np.square(components).mean()))
    low, high = np.log(scale * 1e-4), np.log(scale * 1e3)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        step = float(np.exp(middle))
        cost = float(np.square(components - np.rint(components / step) * step).sum())
        low, high = (middle, high) if cost <= wanted else (low, middle)
    return float(np.exp(low))
