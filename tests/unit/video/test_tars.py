"""Images in tars: listed with their labels, read by one pread, and checked to be what the address says."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mvd_offline.errors import UsageError, VideoError
from mvd_offline.video.catalog import Catalog, scan
from mvd_offline.video.decode import decode
from mvd_offline.video.files import TarMember, file_sha256, read_bytes
from mvd_offline.video.lists import list_videos
from mvd_offline.video.tars import list_images


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="png")
    return content.getvalue()


def pack(path: Path, members: Iterable[tuple[str, bytes]], layout: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=layout) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def links(path: Path, *infos: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for info in infos:
            archive.addfile(info)
    return path


def samples(*numbers: int) -> list[tuple[str, bytes]]:
    """As webdataset writes them."""
    return [pair for n in numbers for pair in ((f"{n:04d}.png", png(n)), (f"{n:04d}.cls", b"%d" % (n % 3)))]


# ---- reading -------------------------------------------------------------------------------------------------------


LONG = "n01440764/" + "x" * 150 + ".png"


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_read_from_their_address_alone(layout: int, tmp_path: Path) -> None:
    members = [("./a.png", png(0)), ("deep/er/b.png", png(1)), ("deep/c d.png", png(2))]
    if layout != tarfile.USTAR_FORMAT:
        members += [(LONG, png(3)), ("ä.png", png(4))]
    tar = pack(tmp_path / "s.tar", members, layout)
    listed = list_images(tar)
    assert [image.name for image in listed] == [str(Path(name)) for name, _ in members]
    for image, (_, content) in zip(listed, members, strict=True):
        address = image.address(str(tar))
        assert address == f"{tar}::{image.offset}+{len(content)}::{image.name}"
        assert read_bytes(address) == read_bytes(Path(address)) == content
        expected = np.asarray(Image.open(io.BytesIO(content)))[None]
        assert np.array_equal(decode(address, (0,)).frames, expected)


@settings(max_examples=30)
@given(contents=st.lists(st.binary(max_size=1500), min_size=1, max_size=6), data=st.data())
def test_an_address_gives_its_content_or_is_refused(
    contents: list[bytes], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tar = pack(tmp_path_factory.mktemp("tar") / "s.tar", [(f"{i}.png", c) for i, c in enumerate(contents)])
    listed = list_images(tar)
    assert [read_bytes(image.address(str(tar))) for image in listed] == contents
    image = data.draw(st.sampled_from(listed))
    offset = image.offset + data.draw(st.sampled_from([-1024, -512, -1, 0, 1, 512, 1024, 1 << 40]))
    size = max(0, image.size + data.draw(st.sampled_from([-1, 0, 1, 1 << 40])))
    name = data.draw(st.sampled_from([image.name, "other.png"]))
    known = {(i.offset, i.size, i.name) for i in listed}
    if (offset, size, name) not in known:
        with pytest.raises(VideoError):
            read_bytes(f"{tar}::{offset}+{size}::{name}")


@pytest.mark.parametrize(
    ("place", "name", "reason"),
    [
        ("512+10", "../../etc/passwd.png", "cannot lead out of it"),
        ("512+10", "/etc/passwd.png", "cannot lead out of it"),
        ("0+10", "a.png", "multiples of 512"),
        ("513+10", "a.png", "multiples of 512"),
        ("512+99999999999", "a.png", "the tar ends at byte 10240"),
        ("512+10", "a.png", "no file of this name and size"),
        ("1024+100", "a.png", "no file of this name and size"),
    ],
)
def test_addresses_that_no_member_has_are_refused(place: str, name: str, reason: str, tmp_path: Path) -> None:
    tar = pack(tmp_path / "s.tar", [("a.png", png(0))])
    with pytest.raises(VideoError, match=reason):
        read_bytes(f"{tar}::{place}::{name}")


def test_a_tar_that_was_packed_anew_is_noticed(tmp_path: Path) -> None:
    tar = pack(tmp_path / "s.tar", samples(1, 2, 3))
    address = list_images(tar)[1].address(str(tar))
    pack(tar, samples(1, 3, 2))
    with pytest.raises(VideoError, match=r"it changed since the videos were scanned; scan again \(and plan again\)"):
        read_bytes(address)
    tar.unlink()
    with pytest.raises(VideoError, match="no such file") as caught:
        read_bytes(address)
    assert caught.value.status == "missing"
    os.mkfifo(tar)
    with pytest.raises(VideoError, match="not a regular file"):
        read_bytes(address)


def test_a_plain_path_is_no_address() -> None:
    for path in ("a.tar", "a.tar/b.png", "a::0+1::b.png", "a.tar::x+1::b.png", "a.tar::512+1::"):
        assert TarMember.parse(path) is None
    member = TarMember.parse("x/a.tar::512+7::b/c.png")
    assert member == TarMember("x/a.tar", 512, 7, "b/c.png")
    assert member.address == "x/a.tar::512+7::b/c.png"


# ---- listing -------------------------------------------------------------------------------------------------------


def test_labels_are_those_of_the_same_key(tmp_path: Path) -> None:
    members = [
        ("d.x/1.cls", b"7\n"),  # before its image, in a folder with a dot
        ("d.x/1.left.png", png(0)),
        ("d.x/1.right.png", png(1)),
        ("1.png", png(2)),
        ("1.json", b"{}"),
        ("2.png", png(3)),
        ("2.cls", b"0"),
    ]
    listed = list_images(pack(tmp_path / "s.tar", members))
    assert {image.name: image.label for image in listed} == {
        "d.x/1.left.png": 7, "d.x/1.right.png": 7, "1.png": -1, "2.png": 0,
    }  # fmt: skip


@pytest.mark.parametrize("text", [b"", b"cat", b"1.5", b"--1", "²".encode(), b"1" * 40])
def test_a_label_that_is_no_number_is_an_error(text: bytes, tmp_path: Path) -> None:
    tar = pack(tmp_path / "s.tar", [("a.png", png(0)), ("a.cls", text)])
    with pytest.raises(UsageError, match=r"a\.cls should hold a class number"):
        list_images(tar)


def test_a_name_that_occurs_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds a\.png twice"):
        list_images(pack(tmp_path / "s.tar", [("a.png", png(0)), ("./a.png", png(1))]))


def test_links_devices_and_names_that_lead_out_are_listed_as_unreadable(tmp_path: Path) -> None:
    def info(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
        made = tarfile.TarInfo(name)
        made.type, made.linkname = kind, target
        return made

    tar = links(
        tmp_path / "s.tar",
        info("soft.png", tarfile.SYMTYPE, "/etc/passwd"),
        info("hard.png", tarfile.LNKTYPE, "a.png"),
        info("pipe.png", tarfile.FIFOTYPE),
        info("../up.png", tarfile.REGTYPE),
        info("a/film.mp4", tarfile.REGTYPE),
        info("folder.png", tarfile.DIRTYPE),
    )
    found = {image.name: image.problem for image in list_images(tar)}
    assert found == {
        "soft.png": "a link, and links in a tar are not followed",
        "hard.png": "a link, and links in a tar are not followed",
        "pipe.png": "not a plain file of the tar",
        "../up.png": "its name leads out of the tar",
        "a/film.mp4": "videos in a tar are not read: unpack them",
        "folder.png": "not a plain file of the tar",
    }
    catalog = scan(tar, workers=1)
    assert catalog.counts["unreadable"] == 6
    assert {video.path for video in catalog.videos} == {"s.tar"}


def damaged(content: bytes, second: int) -> dict[str, bytes]:
    """`second`: where the second member's header lies."""
    return {
        "cut in the second file": content[: second + 600],
        "cut in a header": content[: second + 100],
        "no end mark": content[:second],
        "flipped header": content[: second + 10] + b"\xff" + content[second + 11 :],
        "two tars": content + content,
        "no tar": b"x" * 3000,
        "empty": b"",
    }


@pytest.mark.parametrize(
    ("damage", "images", "reason"),
    [
        ("cut in the second file", 2, "unexpected end of data"),
        ("cut in a header", 1, "damaged at byte"),
        ("no end mark", 1, "without an end mark"),
        ("flipped header", 1, "damaged at byte"),
        ("two tars", 2, "more data follows its end mark"),
        ("no tar", 0, "not readable as a tar"),
        ("empty", 0, "not readable as a tar"),
    ],
)
def test_a_damaged_tar_is_an_entry_of_its_own_beside_what_it_still_gives(
    damage: str, images: int, reason: str, tmp_path: Path
) -> None:
    tar = pack(tmp_path / "s.tar", [("a.png", png(0)), ("b.png", png(1))])
    second = list_images(tar)[1].offset - 512
    tar.write_bytes(damaged(tar.read_bytes(), second)[damage])
    *found, whole = list_images(tar)
    assert len(found) == images
    assert reason in whole.problem
    assert f"{images} images come before" in whole.problem


def test_a_catalog_has_a_row_for_a_damaged_tar_and_one_for_the_image_that_it_cuts(tmp_path: Path) -> None:
    tar = pack(tmp_path / "s.tar", [("a.png", png(0)), ("b.png", png(1))])
    tar.write_bytes(tar.read_bytes()[: list_images(tar)[1].offset + 88])
    found = scan(tar, workers=1).by_id
    assert {name: video.status for name, video in found.items()} == {
        "s.tar": "unreadable", "s.tar/a.png": "ok", "s.tar/b.png": "unreadable",
    }  # fmt: skip
    assert "before this file's end" in found["s.tar/b.png"].detail


# ---- catalogs ------------------------------------------------------------------------------------------------------


def facts(catalog: Catalog) -> dict[str, tuple[object, ...]]:
    return {
        v.video_id.rpartition("/")[2]: (v.label, v.frames, v.width, v.height, v.size, v.sha256, v.status, v.decoder)
        for v in catalog.videos
    }


def test_a_tar_and_a_folder_of_the_same_images_give_the_same_facts(tmp_path: Path) -> None:
    pack(tmp_path / "tars/s.tar", samples(0, 1, 2))
    for number in range(3):
        folder = tmp_path / "files" / f"class{number % 3}"
        folder.mkdir(parents=True)
        (folder / f"{number:04d}.png").write_bytes(png(number))
    packed, loose = scan(tmp_path / "tars", workers=1), scan(tmp_path / "files", workers=1)
    assert facts(packed) == facts(loose)
    assert (packed.classes, loose.classes) == ((), ("class0", "class1", "class2"))
    video = packed.by_id["s.tar/0001.png"]
    with tarfile.open(tmp_path / "tars/s.tar") as archive:
        assert video.path == f"s.tar::{archive.getmember('0001.png').offset_data}+{len(png(1))}::0001.png"
    assert read_bytes(packed.root / video.path) == png(1)
    assert file_sha256(packed.root / video.path) == video.sha256
    assert video.mtime_ns == (tmp_path / "tars/s.tar").stat().st_mtime_ns


def test_what_webdataset_writes_and_reads_is_what_a_catalog_has(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "s.tar")) as writer:
        for number in range(4):
            writer.write({"__key__": f"val/{number:06d}", "png": png(number), "cls": number + 5, "txt": "a word"})
    theirs = {
        f"s.tar/{sample['__key__']}.png": (sample["png"], int(sample["cls"]))
        for sample in webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False)
    }
    listing = list_videos(tmp_path / "s.tar")
    assert {v.video_id: (read_bytes(listing.root / v.path), v.label) for v in listing.videos} == theirs


def test_a_folder_of_tars_one_tar_and_a_pattern_agree(tmp_path: Path) -> None:
    for shard in range(3):
        pack(tmp_path / f"train-{shard:03d}.tar", samples(2 * shard, 2 * shard + 1))
    by_folder = list_videos(tmp_path)
    by_pattern = list_videos(tmp_path / "train-{000..002}.tar")
    assert by_folder == by_pattern
    assert [video.video_id for video in by_folder.videos][:3] == [
        "train-000.tar/0000.png", "train-000.tar/0001.png", "train-001.tar/0002.png",
    ]  # fmt: skip
    (tmp_path / "more").mkdir()
    os.link(tmp_path / "train-000.tar", tmp_path / "more" / "train-000.tar")
    spread = list_videos(tmp_path.parent / f"{{{tmp_path.name},{tmp_path.name}/more}}" / "train-000.tar")
    assert spread.root == tmp_path
    assert [video.video_id for video in spread.videos][::2] == ["train-000.tar/0000.png", "more/train-000.tar/0000.png"]
    one = list_videos(tmp_path / "train-001.tar")
    assert one.videos == by_folder.videos[2:4]
    assert list_videos(tmp_path / "train-{002,001}.tar").root == tmp_path
    below = list_videos(tmp_path / "train-001.tar", tmp_path.parent)
    assert below.videos[0].path.startswith(f"{tmp_path.name}/train-001.tar::")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("train-{000..003}.tar", r"no such file as .*train-001\.tar \(the pattern gives 4 names\)"),
        ("train-{000.tar", "its braces do not pair"),
        ("{a,b}.txt", "no such file as"),
        ("train.tar.gz", "decompress it to a .tar"),
        ("train.tgz", "decompress it to a .tar"),
        ("empty.tar", "no video or image found when read as webdataset"),
    ],
)
def test_patterns_and_tars_that_cannot_be_are_refused(source: str, message: str, tmp_path: Path) -> None:
    pack(tmp_path / "train-000.tar", samples(0))
    pack(tmp_path / "empty.tar", [("a.txt", b"")])
    for name in ("train.tar.gz", "train.tgz"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=message):
        list_videos(tmp_path / source)


def test_a_root_that_does_not_hold_the_tars_is_refused(tmp_path: Path) -> None:
    pack(tmp_path / "a/s.tar", samples(0))
    (tmp_path / "b").mkdir()
    with pytest.raises(UsageError, match="is outside the root"):
        list_videos(tmp_path / "a/s.tar", tmp_path / "b")


def test_images_of_a_tar_that_did_not_change_are_not_read_again(tmp_path: Path) -> None:
    tar = pack(tmp_path / "s.tar", samples(0, 1, 2))
    first = scan(tar, workers=1)
    calls: list[tuple[int, int]] = []
    assert scan(tar, workers=1, previous=first, on_progress=lambda *call: calls.append(call)) == first
    assert calls == []
    times = tar.stat().st_mtime_ns
    pack(tar, samples(2, 1, 0))  # the same images elsewhere, even at the same time: other addresses
    os.utime(tar, ns=(times, times))
    again = scan(tar, workers=1, previous=first, on_progress=lambda *call: calls.append(call))
    assert {video.video_id: video.sha256 for video in again.videos} == {v.video_id: v.sha256 for v in first.videos}
    assert calls[-1] == (2, 2)  # the middle one stayed where it was


# ---- folders that hold several sorts -------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_folder_of_videos_and_images_wants_to_be_told(tmp_path: Path) -> None:
    touch(tmp_path, "a/film.mp4", "a/poster.jpg", "b/clip.webm")
    with pytest.raises(UsageError, match=r"holds 2 videos and 1 images; --media videos or --media images"):
        list_videos(tmp_path)
    paths = {media: [v.path for v in list_videos(tmp_path, media=media).videos] for media in ("videos", "images")}  # type: ignore[arg-type]
    assert paths == {"videos": ["a/film.mp4", "b/clip.webm"], "images": ["a/poster.jpg"]}
    both = list_videos(tmp_path, media="both")
    assert [(v.path, v.label) for v in both.videos] == [("a/film.mp4", 0), ("a/poster.jpg", 0), ("b/clip.webm", 1)]


def test_a_folder_of_tars_and_files_wants_to_be_told(tmp_path: Path) -> None:
    pack(tmp_path / "x/s.tar", samples(0))
    touch(tmp_path, "x/a.jpg")
    with pytest.raises(UsageError, match="--format webdataset takes the images in its tars"):
        list_videos(tmp_path)
    assert [v.path for v in list_videos(tmp_path, list_format="folder").videos] == ["x/a.jpg"]
    assert [v.video_id for v in list_videos(tmp_path, list_format="webdataset").videos] == ["x/s.tar/0000.png"]


def test_what_to_take_is_a_question_for_folders_alone(tmp_path: Path) -> None:
    tar = pack(tmp_path / "s.tar", samples(0))
    with pytest.raises(UsageError, match="is read as webdataset; --media tells what to take of a folder"):
        list_videos(tar, media="images")


def test_an_image_list_is_read_like_a_list_of_videos(tmp_path: Path) -> None:
    touch(tmp_path, "n01/a b.JPEG", "n02/c.png")
    (tmp_path / "train.csv").write_text("n01/a b.JPEG 0\nn02/c.png 1\n")
    assert [(v.path, v.label) for v in list_videos(tmp_path / "train.csv").videos] == [
        ("n01/a b.JPEG", 0),
        ("n02/c.png", 1),
    ]


def test_a_member_of_negative_size_is_damage_and_ends_the_listing(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.txt")
    info.size = -512
    header = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + bytes(1024))
    (found,) = list_images(tmp_path / "a.tar")
    assert "size that cannot be" in found.problem


@pytest.mark.parametrize("label", [b"-7", b"4294967296", b"9" * 25, b"two", b""])
def test_labels_are_numbers_that_a_catalog_holds(label: bytes, tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [("a.png", png(0)), ("a.cls", label)])
    with pytest.raises(UsageError, match="labels are numbers from 0 to 2147483647"):
        list_images(path)


def test_a_shard_that_is_not_called_tar_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar.part", samples(0))
    with pytest.raises(UsageError, match=r"a shard of webdataset is a \.tar file"):
        list_videos(path, list_format="webdataset")
