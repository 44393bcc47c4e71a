"""Random draws that are a function of a key alone.

Every draw that must not depend on order, process or restart (views, masks, the epoch's order) comes from a
`KeyedStream`. It uses the raw 64-bit output of Philox, whose stream numpy guarantees never to change, and its own
arithmetic on top, because numpy's `Generator` methods may change between versions.
"""

from __future__ import annotations

import hashlib
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_LOW: Final = (1 << 64) - 1


class KeyedStream:
    """A counter-based generator keyed by a tuple of integers and strings.

    >>> KeyedStream("view", 0, "a.mp4", 0).below(10) == KeyedStream("view", 0, "a.mp4", 0).below(10)
    True
    """

    def __init__(self, *key: int | str) -> None:
        self._bits = np.random.Philox(key=_philox_key(key))
        self._state: Any = None

    def restart(self, *key: int | str) -> KeyedStream:
        """Become the stream of another key, from its start: a tenth of the time of a new one. Returns itself."""
        if self._state is None:
            self._state = np.random.Philox(key=0).state
        number = _philox_key(key)
        self._state["state"]["key"][:] = number & _LOW, number >> 64
        self._bits.state = self._state
        return self

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound), without modulo bias."""
        if bound < 1:
            raise ValueError(f"bound must be at least 1, not {bound}")
        limit = (1 << 64) - (1 << 64) % bound
        while True:
            draw = int(self._bits.random_raw())
            if draw < limit:
                return draw % bound

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A uniform double in [low, high), from 53 random bits."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def uniforms(self, n: int) -> NDArray[np.float64]:
        """`n` uniform doubles in [0, 1): the same as `n` calls of `uniform`."""
        return ((self._bits.random_raw(n) >> np.uint64(11)) * 2.0**-53).astype(np.float64)

    def normal(self, mean: float = 0.0, std: float = 1.0) -> float:
        """A double from a normal distribution, by inversion."""
        return mean + std * NormalDist().inv_cdf(max(self.uniform(), 2.0**-54))

    def beta(self, a: float, b: float) -> float:
        """A double from a beta distribution, by Joehnk's rejection: quick for parameters of up to 2 or so."""
        while True:
            x, y = self.uniform() ** (1.0 / a), self.uniform() ** (1.0 / b)
            if 0.0 < x + y <= 1.0:
                return x / (x + y)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """A uniform permutation of 0..n-1: the order of n random 64-bit keys."""
        keys = self._bits.random_raw(n) if n else np.empty(0, np.uint64)
        return np.argsort(keys, kind="stable").astype(np.int64)

    def torch_seed(self) -> int:
        """A non-negative 63-bit seed for a `torch.Generator`."""
        return int(self._bits.random_raw()) >> 1


def _philox_key(key: tuple[int | str, ...]) -> int:
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
