"""The readers that are compared: plain reads of the same bytes, this project's store, and its peers.

Each gives rows one by one in a process, and batches through torch's DataLoader as its users would run it. Those that
find a row by its number follow the order given; the others shuffle as they do by themselves.
"""

from __future__ import annotations

import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mvd_offline.bench.samples import Samples, make_litdata, make_store, make_streaming
from mvd_offline.shards.containers import CONTAINERS
from mvd_offline.shards.store import Store
from mvd_offline.training.memory import batch_memory

CEILING: Final = "np.fromfile"
PREFETCH_BATCHES: Final = 2
PEERS: Final = {"mosaicml-streaming": "streaming", "litdata": "litdata"}
"""Peers that are no dependency of this project, and the module to import of each."""


class Reader(Protocol):
    """One way of reading the samples."""

    @property
    def name(self) -> str: ...

    @property
    def checked(self) -> bool:
        """Whether every payload is compared with a checksum."""
        ...

    @property
    def files(self) -> Sequence[Path]: ...

    def rows(self, order: Sequence[int]) -> Iterable[NDArray[Any]]:
        """Every row, one by one, in this process."""
        ...

    def loader(self, batches: Sequence[list[int]], workers: int) -> Iterable[Tensor]:
        """Every row, in batches, from loader processes that outlive an epoch."""
        ...


def open_readers(samples: Samples, *, tokens: int, width: int) -> list[Reader]:
    """Make the samples in every form and open them. Peers that are not installed are left out."""
    stores = {name: make_store(samples, name, tokens=tokens, width=width) for name in CONTAINERS}
    plain = stores["zarr"]
    readers: list[Reader] = [FromFile(plain, samples), Pread(plain, samples)]
    readers += [StoreReader(name, store, samples) for name, store in stores.items()]
    readers += [ZarrPython(plain, samples), WebDataset(stores["tar"], samples)]
    if installed("mosaicml-streaming"):
        readers.append(Streaming(make_streaming(samples)))
    if installed("litdata"):
        readers.append(LitData(make_litdata(samples)))
    return readers


def installed(peer: str) -> bool:
    return importlib.util.find_spec(PEERS[peer]) is not None


# ---- by row number -----------------------------------------------------------------------------------------------


class _ByRow(Dataset[NDArray[Any]], ABC):
    """Reads the row that is asked for."""

    @abstractmethod
    def __getitem__(self, number: int) -> NDArray[Any]: ...

    def rows(self, order: Sequence[int]) -> Iterable[NDArray[Any]]:
        return map(self.__getitem__, order)

    def loader(self, batches: Sequence[list[int]], workers: int) -> Iterable[Tensor]:
        return DataLoader(self, batch_sampler=batches, **_worker_options(workers))


class FromFile(_ByRow):
    """The ceiling: what numpy reads from a file at an offset, unchecked."""

    name, checked = CEILING, False

    def __init__(self, store: Store, samples: Samples) -> None:
        self.files, self._where, self._like = _files_of(store, samples.codec), _where(store, samples), samples.row(0)

    def __getitem__(self, number: int) -> NDArray[Any]:
        shard, offset = self._where[number]
        row: NDArray[Any] = np.fromfile(self.files[shard], self._like.dtype, self._like.size, offset=offset)
        return row.reshape(self._like.shape)


class _InPlace(_ByRow):
    """Fills memory that it is given: for single rows always the same, for a loader that of the batch."""

    def __init__(self, row: NDArray[Any]) -> None:
        self._row = row[None]

    @abstractmethod
    def fill(self, numbers: Sequence[int], out: NDArray[Any]) -> None: ...

    def __getitem__(self, number: int) -> NDArray[Any]:
        self.fill([number], self._row)
        return self._row[0]

    def loader(self, batches: Sequence[list[int]], workers: int) -> Iterable[Tensor]:
        dataset = _Batches(self.fill, self._row[0])
        return DataLoader(dataset, sampler=batches, batch_size=None, **_worker_options(workers))


class _Batches(Dataset[Tensor]):
    """Batches of rows that `fill` writes where the training process can see them."""

    def __init__(self, fill: Callable[[Sequence[int], NDArray[Any]], None], row: NDArray[Any]) -> None:
        self._fill, self._shape, self._dtype = fill, row.shape, row.dtype

    def __getitem__(self, numbers: list[int]) -> Tensor:
        batch, array = batch_memory((len(numbers), *self._shape), self._dtype)
        self._fill(numbers, array)
        return batch


class Pread(_InPlace):
    """Bare system calls on open files, unchecked: what checksums and the index cost is the difference to it."""

    name, checked = "pread", False

    def __init__(self, store: Store, samples: Samples) -> None:
        super().__init__(store.read_coded(samples.codec, [0])[0])
        self.files, self._where = _files_of(store, samples.codec), _where(store, samples)
        self._descriptors = [os.open(path, os.O_RDONLY) for path in self.files]

    def __del__(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def fill(self, numbers: Sequence[int], out: NDArray[Any]) -> None:
        for number, target in zip(numbers, out, strict=True):
            shard, offset = self._where[number]
            os.preadv(self._descriptors[shard], [target], offset)


class StoreReader(_InPlace):
    """`Store.read_coded` of one container."""

    checked = True

    def __init__(self, container: str, store: Store, samples: Samples) -> None:
        super().__init__(store.read_coded(samples.codec, [0])[0])
        self.name, self.files = f"mvd-offline {container}", _files_of(store, samples.codec)
        self._store, self._column = store, samples.codec

    def fill(self, numbers: Sequence[int], out: NDArray[Any]) -> None:
        self._store.read_coded(self._column, numbers, out=out)


class ZarrPython(_ByRow):
    """The same zarr files through zarr-python, one row a read."""

    name, checked = "zarr-python", True

    def __init__(self, store: Store, samples: Samples) -> None:
        import zarr

        self.files = _files_of(store, samples.codec)
        self._array: Any = zarr.open_array(store.root / samples.codec, mode="r")

    def __getitem__(self, number: int) -> NDArray[Any]:
        return self._array[number]


# ---- peers with an order of their own ----------------------------------------------------------------------------


class WebDataset:
    """The same tar files through webdataset, shard after shard: it cannot go to a row."""

    name, checked = "webdataset", False

    def __init__(self, store: Store, samples: Samples) -> None:
        self.files = _files_of(store, samples.codec)
        self._field = f"{samples.codec}.npy"

    def _samples(self) -> Any:
        import webdataset

        urls = [str(path) for path in self.files]
        return webdataset.WebDataset(urls, shardshuffle=False).decode().to_tuple(self._field)

    def rows(self, order: Sequence[int]) -> Iterable[NDArray[Any]]:
        return (row for (row,) in self._samples())

    def loader(self, batches: Sequence[list[int]], workers: int) -> Iterable[Tensor]:
        return _Field(DataLoader(self._samples(), batch_size=len(batches[0]), **_worker_options(workers)), 0)


class Streaming:
    """mosaicml-streaming on local shards; shuffled by its default algorithm in a loader."""

    name, checked = "mosaicml-streaming", False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files = sorted(folder.glob("*.mds"))

    def rows(self, order: Sequence[int]) -> Iterable[NDArray[Any]]:
        from streaming import StreamingDataset

        dataset = StreamingDataset(local=str(self._folder), batch_size=1)
        return (dataset[number]["row"] for number in order)

    def loader(self, batches: Sequence[list[int]], workers: int) -> Iterable[Tensor]:
        from streaming import StreamingDataset

        size = len(batches[0])
        dataset = StreamingDataset(local=str(self._folder), batch_size=size, shuffle=True)
        return _Field(DataLoader(dataset, batch_size=size, **_worker_options(workers)), "row")


class LitData:
    """litdata on local chunks; shuffled by its default in a loader."""

    name, checked = "litdata", False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files = sorted(folder.glob("*.bin"))

    def rows(self, order: Sequence[int]) -> Iterable[NDArray[Any]]:
        from litdata import StreamingDataset

        dataset = StreamingDataset(str(self._folder))
        return (np.asarray(dataset[number]) for number in order)

    def loader(self, batches: Sequence[list[int]], workers: int) -> Iterable[Tensor]:
        from litdata import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(str(self._folder), shuffle=True)
        loader: Iterable[Tensor] = StreamingDataLoader(dataset, batch_size=len(batches[0]), **_worker_options(workers))
        return loader


class _Field:
    """One field of each batch of a loader."""

    def __init__(self, loader: Iterable[Any], key: int | str) -> None:
        self._loader, self._key = loader, key

    def __iter__(self) -> Iterator[Tensor]:
        return (batch[self._key] for batch in self._loader)


def _worker_options(workers: int) -> dict[str, Any]:
    return {"num_workers": workers, "prefetch_factor": PREFETCH_BATCHES, "persistent_workers": True}


def _where(store: Store, samples: Samples) -> list[tuple[int, int]]:
    """Shard and first byte of each row's payload."""
    offsets = store.status(samples.codec).offset.tolist()
    return [(number // store.header.rows_per_shard, offset) for number, offset in enumerate(offsets)]


def _files_of(store: Store, column: str) -> list[Path]:
    return [store.shard_path(column, shard) for shard in range(store.shard_count)]
