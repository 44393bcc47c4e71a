"""Lists of videos and images as data sets publish them: one parser for each format, all giving `Listing`s.

Every path is relative to a root folder and cannot leave it; every error names the file, the line and what was expected.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from braceexpand import braceexpand

from mvd_offline.errors import UsageError
from mvd_offline.video.files import TAR_SUFFIX, is_image, is_video
from mvd_offline.video.tars import list_images

ListFormat = Literal["folder", "webdataset", "csv", "ucf101", "hmdb51", "ssv2"]
Media = Literal["videos", "images", "both"]
Subset = Literal["train", "test"]

_HMDB51_FILE = re.compile(r"(?P<label>.+)_test_split(?P<split>\d+)\.txt")


@dataclass(frozen=True)
class ListedVideo:
    """A path relative to the root, with forward slashes; label -1 and an empty name where none is known.

    An image in a tar has the path of `files.TarMember`. `problem` says why an entry cannot be read, where its list
    already tells.
    """

    path: str
    label: int = -1
    label_name: str = ""
    name: str = ""
    problem: str = ""

    @property
    def video_id(self) -> str:
        """The path; of an image in a tar `TAR/NAME`, which stays when the tar is packed anew."""
        return self.name or self.path


@dataclass(frozen=True)
class Listing:
    """Videos in the list's order, and the names of labels 0, 1, ... where the format has names."""

    videos: tuple[ListedVideo, ...]
    root: Path
    classes: tuple[str, ...] = ()


def list_videos(
    source: Path,
    root: Path | None = None,
    list_format: ListFormat | Literal["auto"] = "auto",
    *,
    split: int = 1,
    subset: Subset = "train",
    media: Media | Literal["auto"] = "auto",
) -> Listing:
    """Reads a list or walks a folder.

    Args:
        source: a folder of videos or images, a list, a tar of images, a folder of tars, a pattern such as
            `train-{000..146}.tar`, or for HMDB51 the folder of its split files.
        root: what the list's paths are relative to; by default the folder that is walked, or the list's own.
        list_format: `auto` tells by the names of files.
        split, subset: which split and side to take; HMDB51 only, whose files hold all of them.
        media: what of a folder to take; `auto` takes what there is, of one sort.

    Raises:
        UsageError: no such source, a malformed line, a path outside the root, a video listed twice, a folder that
            holds both videos and images, or none at all.
    """
    tars = _expand(source) if "{" in str(source) and not source.exists() else []
    if not tars and not source.exists():
        raise UsageError(f"{source}: no such file or folder; give a folder of videos or images, or a list of them")
    chosen = list_format if list_format != "auto" else "webdataset" if tars else detect_format(source)
    if media != "auto" and chosen != "folder":
        raise UsageError(f"{source} is read as {chosen}; --media tells what to take of a folder (--format folder)")
    home = os.path.commonpath([tar.parent for tar in tars]) if tars else source if source.is_dir() else source.parent
    root = Path(os.path.abspath(root or home))
    if not root.is_dir():
        raise UsageError(f"{root}: the root is no folder; --root names the folder that the list's paths start from")
    parsers: dict[str, Callable[[], Listing]] = {
        "folder": lambda: parse_folder(source, root, media),
        "webdataset": lambda: parse_tars(tars or _tars_of(source), root, str(source)),
        "csv": lambda: parse_csv(source, root),
        "ucf101": lambda: parse_ucf101(source, root),
        "hmdb51": lambda: parse_hmdb51(source, root, split, subset),
        "ssv2": lambda: parse_ssv2(source, root),
    }
    if chosen not in parsers:
        raise UsageError(f"list format {chosen!r} is unknown; allowed: auto, {', '.join(parsers)}")
    listing = parsers[chosen]()
    if not listing.videos:
        what = {"videos": "video", "images": "image"}.get(media, "video or image")
        raise UsageError(f"{source}: no {what} found when read as {chosen}; --format names another way to read it")
    return listing


def detect_format(source: Path) -> ListFormat:
    """`folder`, `webdataset` or `hmdb51` for a folder; by name `webdataset`, `ucf101`, `ssv2` or `csv` for a file.

    Raises:
        UsageError: a folder that holds tars beside videos or images, or a compressed tar.
    """
    if source.is_dir():
        if any(_HMDB51_FILE.fullmatch(path.name) for path in source.iterdir()):
            return "hmdb51"
        tars = next(_walk(source, _is_tar), None)
        if tars and (file := next(_walk(source, lambda name: is_video(name) or is_image(name)), None)):
            raise UsageError(
                f"{source} holds tars ({tars.name}) beside other files ({file.name}): --format webdataset takes the "
                "images in its tars, --format folder the files outside of them"
            )
        return "webdataset" if tars else "folder"
    if _is_tar(source.name):
        return "webdataset"
    if re.search(r"\.(tgz|tar\.\w+)$", source.name):
        raise UsageError(f"{source}: images in a compressed tar cannot be read one by one; decompress it to a .tar")
    if source.suffix == ".json":
        return "ssv2"
    return "ucf101" if re.fullmatch(r"(train|test)list\d*\.txt", source.name) else "csv"


# ---- formats -------------------------------------------------------------------------------------------------------


def parse_folder(source: Path, root: Path, media: Media | Literal["auto"] = "auto") -> Listing:
    """Every video, or every image, below `source`.

    When all lie in a tree class/file, the folder is the label, alphabetically.
    """
    folder = Path(os.path.abspath(source))
    found = list(
        _walk(folder, {"videos": is_video, "images": is_image}.get(media, lambda n: is_video(n) or is_image(n)))
    )
    images = sum(is_image(path.name) for path in found)
    if media == "auto" and 0 < images < len(found):
        raise UsageError(
            f"{source} holds {len(found) - images} videos and {images} images; --media videos or --media images takes "
            "one sort, --media both takes each image as a video of one frame"
        )
    inner = [path.relative_to(folder).parts for path in found]
    classes: tuple[str, ...] = ()
    if all(len(parts) == 2 for parts in inner):
        classes = tuple(sorted({parts[0] for parts in inner}))
    label_of = {name: label for label, name in enumerate(classes)}
    videos = [
        ListedVideo(_inside(str(path), root, str(source)), label_of.get(parts[0], -1), parts[0] if classes else "")
        for path, parts in zip(found, inner, strict=True)
    ]
    return Listing(tuple(sorted(videos, key=lambda video: video.path)), root, classes)


def parse_tars(tars: Iterable[Path], root: Path, where: str) -> Listing:
    """Images in tars as webdataset writes them: `key.jpg`, with its class number in `key.cls` where it has one."""
    videos = []
    for path in tars:
        tar = _inside(os.path.abspath(path), root, where)
        videos += [
            ListedVideo(image.address(tar), image.label, "", f"{tar}/{image.name}".rstrip("/"), image.problem)
            for image in list_images(path)
        ]
    return Listing(tuple(videos), root)


def parse_csv(source: Path, root: Path) -> Listing:
    """MVD's and VideoMAE's lists: `path label` a line, parted by blanks or a comma; no header.

    A name without a dot gets `.mp4` (MVD official code).
    """
    videos = _Collector(source, root)
    for number, line in _lines(source):
        match = re.fullmatch(r"(?P<path>.+?)(?:\s*,\s*|\s+)(?P<label>-?\d+)", line)
        if match is None:
            raise _malformed(source, number, line, "a path, a blank or comma, and an integer label")
        path = match["path"].strip('"')
        videos.add(path if "." in PurePosixPath(path).name else f"{path}.mp4", int(match["label"]), "", number)
    return videos.listing()


def parse_ucf101(source: Path, root: Path) -> Listing:
    """`trainlistNN.txt` (`Class/name.avi 1`) or `testlistNN.txt` (no number); label = number in classInd.txt - 1."""
    index = source.parent / "classInd.txt"
    if not index.is_file():
        raise UsageError(f"{index}: not there; UCF101 keeps classInd.txt beside its split files")
    labels: dict[str, int] = {}
    for number, line in _lines(index):
        match = re.fullmatch(r"(\d+)\s+(\S+)", line)
        if match is None or int(match[1]) < 1:
            raise _malformed(index, number, line, "a class number from 1 and a class name")
        labels[match[2]] = int(match[1]) - 1
    videos = _Collector(source, root)
    for number, line in _lines(source):
        match = re.fullmatch(r"(?P<path>(?P<name>[^/\s]+)/.+?)(?:\s+(?P<label>\d+))?", line)
        if match is None or match["name"] not in labels:
            raise _malformed(source, number, line, "Class/name.avi with a class of classInd.txt, and its number")
        label = labels[match["name"]]
        if match["label"] is not None and int(match["label"]) - 1 != label:
            raise _malformed(source, number, line, f"the number {label + 1} that classInd.txt gives {match['name']}")
        videos.add(match["path"], label, match["name"], number)
    return videos.listing(_names(labels, f"{index} (numbers from 1)"))


def parse_hmdb51(source: Path, root: Path, split: int, subset: Subset) -> Listing:
    """A folder of `<class>_test_split<N>.txt` with lines `name.avi 0|1|2`: 1 is train, 2 is test, 0 unused.

    Classes are numbered alphabetically; a video lies at `<class>/<name>` below the root.
    """
    if not source.is_dir():
        raise UsageError(f"{source}: not a folder; HMDB51 is read from the folder of its split files")
    matches = [(path, _HMDB51_FILE.fullmatch(path.name)) for path in sorted(source.iterdir())]
    files = {match["label"]: path for path, match in matches if match is not None and int(match["split"]) == split}
    if not files:
        raise UsageError(f"{source}: no file <class>_test_split{split}.txt; HMDB51 has splits 1, 2 and 3")
    if missing := {match["label"] for _, match in matches if match is not None} - files.keys():
        # Without it all later classes would have other numbers than in the other splits.
        raise UsageError(f"{source}: no file {min(missing)}_test_split{split}.txt, but one of another split")
    videos = _Collector(source, root)
    wanted = {"train": "1", "test": "2"}[subset]
    for label, (name, path) in enumerate(sorted(files.items())):
        for number, line in _lines(path):
            match = re.fullmatch(r"(?P<file>.+?)\s+(?P<use>[012])", line)
            if match is None:
                raise _malformed(path, number, line, "a file name and 0 (unused), 1 (train) or 2 (test)")
            if match["use"] == wanted:
                videos.add(f"{name}/{match['file']}", label, name, number)
    return videos.listing(tuple(sorted(files)))


def parse_ssv2(source: Path, root: Path) -> Listing:
    """Something-Something V2: a JSON list of `{"id", "template"}` with its labels' JSON beside it.

    Test lists have no label.
    A template without its brackets is a key of the labels. Files are `<id>.webm`, or `<id>.mp4` once converted.
    """
    entries = _json(source, list, 'a list of {"id": "78687", "template": "..."}')
    labels, labels_file = _ssv2_labels(source.parent)
    names = _names(labels, f"{labels_file} (numbers from 0)")
    videos = _Collector(source, root)
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not re.fullmatch(r"\w+", str(entry.get("id", ""))):
            raise UsageError(f"{source}, entry {number}: expected an object with an id, found {json.dumps(entry)[:80]}")
        name = re.sub(r"[\[\]]", "", str(entry.get("template", "")))
        if name and name not in labels:
            raise UsageError(f"{source}, entry {number}: template {name!r} is not among the {len(labels)} labels")
        webm = f"{entry['id']}.webm"
        path = webm if (root / webm).exists() else f"{entry['id']}.mp4"
        videos.add(path, labels.get(name, -1), name, number)
    return videos.listing(names)


def _ssv2_labels(folder: Path) -> tuple[dict[str, int], Path]:
    for name in ("something-something-v2-labels.json", "labels.json"):
        if (folder / name).is_file():
            labels = _json(folder / name, dict, 'an object of "label": "number"')
            try:
                return {str(label): int(number) for label, number in labels.items()}, folder / name
            except (TypeError, ValueError):
                raise UsageError(f"{folder / name}: expected a number for each label") from None
    raise UsageError(f"{folder}: neither something-something-v2-labels.json nor labels.json is there")


# ---- shared by the formats -----------------------------------------------------------------------------------------


class _Collector:
    """Collects a list's videos, checking each path once."""

    def __init__(self, source: Path, root: Path) -> None:
        self._source, self._root = source, root
        self._videos: dict[str, ListedVideo] = {}

    def add(self, path: str, label: int, name: str, number: int) -> None:
        where = f"{self._source}, line {number}"
        inner = _inside(path, self._root, where)
        if inner in self._videos:
            raise UsageError(f"{where}: {inner} is listed a second time; a video has one row and one label")
        self._videos[inner] = ListedVideo(inner, label, name)

    def listing(self, classes: tuple[str, ...] = ()) -> Listing:
        return Listing(tuple(self._videos.values()), self._root, classes)


def _inside(path: str, root: Path, where: str) -> str:
    """`path` relative to `root`, with forward slashes. Checked by name alone: links may lead anywhere."""
    full = os.path.normpath(os.path.join(root, path))
    inner = os.path.relpath(full, root)
    if inner.split(os.sep)[0] == os.pardir or inner == os.curdir:
        raise UsageError(f"{where}: {path} is outside the root {root}; --root names the folder that holds all videos")
    return Path(inner).as_posix()


def _walk(folder: Path, wanted: Callable[[str], bool]) -> Iterator[Path]:
    """Files below a folder whose name is wanted, hidden ones left out; in an order that is the same everywhere.

    Links to folders are followed, as class folders often are links; a folder that was seen is not entered again.
    """
    seen = set[str]()
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith(".") and wanted(name))


def _is_tar(name: str) -> bool:
    return name.endswith(TAR_SUFFIX)


def _tars_of(source: Path) -> Iterable[Path]:
    if source.is_dir():
        return _walk(source, _is_tar)
    if not _is_tar(source.name):
        raise UsageError(f"{source}: a shard of webdataset is a .tar file; rename it if it is one")
    return [source]


def _expand(pattern: Path) -> list[Path]:
    """The tars of a pattern such as `train-{000..146}.tar`."""
    try:
        paths = [Path(name) for name in braceexpand(str(pattern))]
    except ValueError:  # its UnbalancedBracesError
        raise UsageError(f"{pattern}: its braces do not pair; write a pattern like train-{{000..146}}.tar") from None
    missing = [path for path in paths if not path.is_file()]
    if missing or not all(_is_tar(path.name) for path in paths):
        wrong = f"no such file as {missing[0]}" if missing else "a pattern names .tar files"
        raise UsageError(f"{pattern}: {wrong} (the pattern gives {len(paths)} names)")
    return paths


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, stripped, empty ones left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected a list in UTF-8 text; is it a video or an archive?") from None
    numbered = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
    return ((number, line) for number, line in numbered if line)


def _json(path: Path, kind: type, expected: str) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected JSON in UTF-8") from None
    if not isinstance(data, kind):
        raise UsageError(f"{path}: expected {expected}, found {type(data).__name__}")
    return data


def _names(labels: dict[str, int], where: str) -> tuple[str, ...]:
    """The names of labels 0, 1, ...: the place of a name is its label."""
    names = tuple(sorted(labels, key=lambda name: labels[name]))
    for label, name in enumerate(names):
        if labels[name] != label:
            what = "twice" if labels[name] < label else "after a gap"
            raise UsageError(
                f"{where}: the {len(names)} classes are numbered one by one, and {name!r} has a number {what}"
            )
    return names


def _malformed(path: Path, number: int, line: str, expected: str) -> UsageError:
    return UsageError(f"{path}, line {number}: expected {expected}; found {line[:120]!r}")
