"""Images in tars, as webdataset writes them: `key.jpg` with its label in `key.cls`."""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mvd_offline.errors import UsageError, VideoError
from mvd_offline.video.files import TAR_BLOCK, TarMember, check_regular, is_image, is_video

LABEL_SUFFIX = "cls"

# Room for any label; a longer member is none.
_LABEL_BYTES = 32
_TAIL_BYTES = 1 << 20
_LARGEST_LABEL = 2**31 - 1


@dataclass(frozen=True)
class TarImage:
    """An image of a tar. `problem` says why it cannot be read; a `name` that is empty stands for the tar itself."""

    name: str
    offset: int = 0
    size: int = 0
    label: int = -1
    problem: str = ""

    def address(self, tar: str) -> str:
        """The path under which a catalog has it, `tar` being the tar's."""
        readable = self.name and not self.problem
        return TarMember(tar, self.offset, self.size, self.name).address if readable else tar


def list_images(tar: Path) -> list[TarImage]:
    """Every image of a tar, in its order; damage, links and the like are entries with a problem, nothing is skipped.

    Raises:
        UsageError: a label that is no number, or a name that occurs twice.
    """
    images: dict[str, TarImage] = {}
    labels: dict[str, int] = {}
    end = ""
    try:
        check_regular(tar)
        with tarfile.open(tar, "r:") as archive:
            last = -1
            for info in archive:
                if info.size < 0 or info.offset <= last:
                    # `tarfile` would step back and read the same members for ever.
                    raise tarfile.ReadError(f"the member at byte {info.offset} has a size that cannot be")
                last = info.offset
                name = str(PurePosixPath(info.name))
                if is_image(name) or is_video(name):
                    if name in images:
                        raise UsageError(f"{tar}: holds {name} twice; an image has one place and one label")
                    images[name] = _image(info, name)
                elif info.isreg() and _key_and_suffix(name)[1] == LABEL_SUFFIX:
                    labels[_key_and_suffix(name)[0]] = _label(tar, archive, info)
            end = _how_it_ends(tar, archive.offset)
    except UsageError:
        raise
    except VideoError as error:
        end = error.reason
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        end = f"not readable as a tar ({error or type(error).__name__})"
    found = [replace(image, label=labels.get(_key_and_suffix(image.name)[0], -1)) for image in images.values()]
    if end:
        found.append(TarImage("", problem=f"{end}; {len(found)} images come before"))
    return found


def _image(info: tarfile.TarInfo, name: str) -> TarImage:
    problem, kept = "", name.encode("utf-8", "backslashreplace").decode()
    if kept != name:
        problem = "its name is not text in UTF-8"
    elif ".." in PurePosixPath(name).parts or name.startswith("/"):
        problem = "its name leads out of the tar"
    elif is_video(name):
        problem = "videos in a tar are not read: unpack them"
    elif info.islnk() or info.issym():
        problem = "a link, and links in a tar are not followed"
    elif info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.sparse is not None:
        problem = "not a plain file of the tar"
    return TarImage(kept, info.offset_data, info.size, problem=problem)


def _label(tar: Path, archive: tarfile.TarFile, info: tarfile.TarInfo) -> int:
    content = archive.extractfile(info)
    text = content.read(_LABEL_BYTES).decode("ascii", "replace").strip() if content else ""
    if info.size > _LABEL_BYTES or not re.fullmatch("[0-9]+", text) or int(text) > _LARGEST_LABEL:
        raise UsageError(
            f"{tar}: {info.name} should hold a class number, found {text!r}; labels are numbers from 0 to "
            f"{_LARGEST_LABEL}"
        )
    return int(text)


def _key_and_suffix(name: str) -> tuple[str, str]:
    """webdataset's: the key ends at the first dot of the file's own name."""
    path = PurePosixPath(name)
    key, _, suffix = path.name.partition(".")
    return str(path.with_name(key)) if key else name, suffix.lower()


def _how_it_ends(tar: Path, offset: int) -> str:
    """Empty where the tar ends as it should: at its end mark. (`tarfile` takes damage in the middle for the end.)"""
    with tar.open("rb") as file:
        file.seek(offset)
        mark, tail = file.read(TAR_BLOCK), file.read(_TAIL_BYTES)
    if mark.strip(b"\0"):
        return f"damaged at byte {offset}: what follows cannot be told"
    if tail.strip(b"\0"):
        return f"more data follows its end mark at byte {offset}: two tars in one?"
    return "" if len(mark) == TAR_BLOCK else f"cut off at byte {offset}, without an end mark"
