"""The bytes of a video or image: a file of its own, or a file inside a tar, read by one `pread`."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mvd_offline.errors import VideoError

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv".split()  # noqa: SIM905
)
IMAGE_SUFFIXES = frozenset(".bmp .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())  # noqa: SIM905
TAR_SUFFIX = ".tar"
TAR_BLOCK = 512

_ADDRESS = re.compile(r"(?P<tar>.+?\.tar)::(?P<offset>\d+)\+(?P<size>\d+)::(?P<name>.+)", re.DOTALL)


@dataclass(frozen=True)
class TarMember:
    """A file inside a tar, addressed as `TAR::OFFSET+SIZE::NAME`.

    `train-000.tar::1536+4821::n01440764/10026.jpg` is the 4821 bytes that begin at byte 1536 of `train-000.tar`. The
    512 bytes before them are the member's tar header: it is read with them, and must name a plain file of this size.
    """

    tar: str
    offset: int
    size: int
    name: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.name).parts
        if ".." in parts or self.name.startswith("/"):
            raise VideoError(self.address, "the name of a file in a tar cannot lead out of it")
        if self.offset < TAR_BLOCK or self.offset % TAR_BLOCK:
            raise VideoError(
                self.address, f"files in a tar begin at multiples of {TAR_BLOCK} after its first header: scan again"
            )

    @property
    def address(self) -> str:
        return f"{self.tar}::{self.offset}+{self.size}::{self.name}"

    @classmethod
    def parse(cls, path: str | Path) -> TarMember | None:
        """The member that a path addresses; None for a path of a file of its own.

        Raises:
            VideoError: an address that no file in a tar can have.
        """
        match = _ADDRESS.fullmatch(str(path))
        return cls(match["tar"], int(match["offset"]), int(match["size"]), match["name"]) if match else None

    def read(self) -> bytes:
        """The member's content.

        Raises:
            VideoError: no such tar, or another file at this place than the address says.
        """
        check_regular(Path(self.tar))
        handle = os.open(self.tar, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if self.offset + self.size > (end := os.fstat(handle).st_size):
                wanted = self.offset + self.size
                raise VideoError(self.address, f"the tar ends at byte {end}, before this file's end at {wanted}")
            found = os.pread(handle, TAR_BLOCK + self.size, self.offset - TAR_BLOCK)
        finally:
            os.close(handle)
        if len(found) < TAR_BLOCK + self.size or not self._is_described_by(found[:TAR_BLOCK]):
            raise VideoError(
                self.address,
                "the tar has no file of this name and size at this place: it changed since the videos were scanned; "
                "scan again (and plan again), or put the old tar back",
            )
        return found[TAR_BLOCK:]

    def _is_described_by(self, header: bytes) -> bool:
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return False
        # Long and non-ASCII names lie in blocks of their own before the header, which then has them cut or garbled.
        name_tells = len(self.name) < 100 and self.name.isascii()
        named = PurePosixPath(info.name) == PurePosixPath(self.name) or not name_tells
        return named and info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and info.size == self.size


def is_image(path: str | Path) -> bool:
    """Whether a file's name is that of an image."""
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def is_video(path: str | Path) -> bool:
    """Whether a file's name is that of a video."""
    return PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES


def read_bytes(path: str | Path) -> bytes:
    """All bytes of a file or tar member.

    Raises:
        VideoError: missing, not a regular file, or not readable.
    """
    if member := TarMember.parse(path):
        return member.read()
    check_regular(Path(path))
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise VideoError(str(path), error.strerror or "cannot be read") from None


def size_and_mtime(path: str | Path) -> tuple[int, int]:
    """Bytes, and nanoseconds of the last change: of a tar member its own size and its tar's time.

    Raises:
        VideoError: missing, or an address that no file in a tar can have.
    """
    member = TarMember.parse(path)
    facts = _stat(Path(member.tar if member else path))
    return (member.size if member else facts.st_size), facts.st_mtime_ns


def file_sha256(path: str | Path) -> str:
    """SHA-256 of the bytes of a file or tar member."""
    if member := TarMember.parse(path):
        return hashlib.sha256(member.read()).hexdigest()
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_regular(path: Path) -> None:
    """Refuse what is no regular file, which a decoder could wait for without end.

    Raises:
        VideoError: also for a file that is missing.
    """
    if not stat.S_ISREG(_stat(path).st_mode):
        raise VideoError(str(path), "not a regular file")


def _stat(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except FileNotFoundError:
        raise VideoError(str(path), "no such file", status="missing") from None
    except OSError as error:
        raise VideoError(str(path), error.strerror or "cannot be opened") from None
