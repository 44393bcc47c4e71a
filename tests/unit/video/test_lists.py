"""Lists of videos in every format that is read, and what is wrong with those that are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvd_offline.errors import UsageError
from mvd_offline.video.lists import ListedVideo, detect_format, list_videos


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def touch(root: Path, *names: str) -> None:
    for name in names:
        write(root / name, "")


# ---- folders


def test_a_tree_of_class_folders_labels_alphabetically(tmp_path: Path) -> None:
    touch(tmp_path, "walk/b.mp4", "walk/a.MKV", "jump/c.webm", "jump/notes.txt", "jump/.hidden.mp4", ".cache/x/d.mp4")
    listing = list_videos(tmp_path)
    assert listing.classes == ("jump", "walk")
    assert listing.videos == (
        ListedVideo("jump/c.webm", 0, "jump"),
        ListedVideo("walk/a.MKV", 1, "walk"),
        ListedVideo("walk/b.mp4", 1, "walk"),
    )


def test_class_folders_may_be_links_and_links_in_a_circle_end(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "real" / name).mkdir(parents=True)
        (tmp_path / "real" / name / "clip.mp4").touch()
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "b").symlink_to(tmp_path / "real" / "b")
    (chosen / "b" / "again").symlink_to(chosen)
    listing = list_videos(chosen)
    assert [video.path for video in listing.videos] == ["b/clip.mp4"]
    assert listing.classes == ("b",)


def test_a_flat_or_uneven_folder_has_no_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "walk/b.mp4")
    listing = list_videos(tmp_path)
    assert [video.label for video in listing.videos] == [-1, -1]
    assert listing.classes == ()


def test_paths_of_a_folder_are_relative_to_the_root(tmp_path: Path) -> None:
    touch(tmp_path, "data/train/walk/b.mp4")
    assert list_videos(tmp_path / "data/train", tmp_path / "data").videos[0].path == "train/walk/b.mp4"


def test_a_folder_without_videos_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no video or image found when read as folder"):
        list_videos(tmp_path)


# ---- MVD's and VideoMAE's CSV


def test_csv_lines_part_path_and_label_by_blanks_or_a_comma(tmp_path: Path) -> None:
    text = "a/x.mp4 3\nb/y.mkv  11\nc.avi,0\nd.mp4 , 2\n\ne.mp4\t-1\n"
    listing = list_videos(write(tmp_path / "train.csv", text))
    assert [(video.path, video.label) for video in listing.videos] == [
        ("a/x.mp4", 3), ("b/y.mkv", 11), ("c.avi", 0), ("d.mp4", 2), ("e.mp4", -1),
    ]  # fmt: skip


def test_csv_paths_may_hold_blanks_and_need_no_extension(tmp_path: Path) -> None:
    listing = list_videos(write(tmp_path / "train.csv", "making tea/abc_000 1.mp4 5\nplain/video 6\n"))
    assert [video.path for video in listing.videos] == ["making tea/abc_000 1.mp4", "plain/video.mp4"]


def test_csv_absolute_paths_must_lie_under_the_root(tmp_path: Path) -> None:
    inside = write(tmp_path / "train.csv", f"{tmp_path}/videos/a.mp4 0\n")
    assert list_videos(inside, tmp_path).videos[0].path == "videos/a.mp4"
    with pytest.raises(UsageError, match=r"line 1: /elsewhere/a\.mp4 is outside the root"):
        list_videos(write(tmp_path / "bad.csv", "/elsewhere/a.mp4 0\n"), tmp_path)


@pytest.mark.parametrize("path", ["../a.mp4", "x/../../a.mp4", "./../b.mp4"])
def test_csv_paths_cannot_leave_the_root(path: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="outside the root"):
        list_videos(write(tmp_path / "train.csv", f"ok.mp4 0\n{path} 1\n"))


def test_two_ways_to_write_a_path_are_one_video(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"line 2: a\.mp4 is listed a second time"):
        list_videos(write(tmp_path / "train.csv", "a.mp4 0\nx/../a.mp4 0\n"))


@pytest.mark.parametrize("line", ["a.mp4", "a.mp4 walk", "path,label", "7", "a.mp4 1.5"])
def test_csv_malformed_lines_are_named(line: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.csv, line 2: expected a path, a blank or comma"):
        list_videos(write(tmp_path / "train.csv", f"ok.mp4 0\n{line}\n"))


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.from_regex(r"[a-z][a-z0-9 _]{0,8}[a-z]", fullmatch=True), st.integers(0, 999)), min_size=1)
)
def test_any_csv_that_is_written_is_read_back(rows: list[tuple[str, int]]) -> None:
    import tempfile

    rows = list(dict(rows).items())
    with tempfile.TemporaryDirectory() as folder:
        text = "".join(f"{name}.mp4 {label}\n" for name, label in rows)
        listing = list_videos(write(Path(folder, "l.csv"), text))
    assert [(video.path, video.label) for video in listing.videos] == [(f"{name}.mp4", label) for name, label in rows]


def test_a_video_given_as_a_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match="expected a list in UTF-8"):
        list_videos(tmp_path / "a.mp4")


# ---- UCF101

CLASS_INDEX = "1 ApplyEyeMakeup\n2 Archery\n"


def test_ucf101_train_and_test_lists(tmp_path: Path) -> None:
    write(tmp_path / "classInd.txt", CLASS_INDEX)
    train = write(tmp_path / "trainlist01.txt", "Archery/v_Archery_g08_c01.avi 2\nApplyEyeMakeup/v_a.avi 1\n")
    test = write(tmp_path / "testlist01.txt", "Archery/v_Archery_g01_c01.avi\n")
    assert list_videos(train).videos[0] == ListedVideo("Archery/v_Archery_g08_c01.avi", 1, "Archery")
    assert list_videos(test).videos == (ListedVideo("Archery/v_Archery_g01_c01.avi", 1, "Archery"),)
    assert list_videos(test).classes == ("ApplyEyeMakeup", "Archery")


@pytest.mark.parametrize("line", ["Archery/a.avi 1", "Swimming/a.avi 3", "a.avi 1"])
def test_ucf101_lines_must_agree_with_the_class_index(line: str, tmp_path: Path) -> None:
    write(tmp_path / "classInd.txt", CLASS_INDEX)
    with pytest.raises(UsageError, match=r"trainlist01\.txt, line 1: expected"):
        list_videos(write(tmp_path / "trainlist01.txt", line))


def test_ucf101_needs_its_class_index(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"classInd\.txt: not there"):
        list_videos(write(tmp_path / "trainlist01.txt", "Archery/a.avi 1"))
    write(tmp_path / "classInd.txt", "0 Archery\n")
    with pytest.raises(UsageError, match=r"classInd\.txt, line 1: expected a class number from 1"):
        list_videos(tmp_path / "trainlist01.txt")


@pytest.mark.parametrize(("index", "what"), [("1 A\n1 B\n", "'B' has a number twice"), ("1 A\n3 B\n", "after a gap")])
def test_ucf101_classes_are_numbered_one_by_one(index: str, what: str, tmp_path: Path) -> None:
    write(tmp_path / "classInd.txt", index)
    with pytest.raises(UsageError, match=rf"classInd\.txt \(numbers from 1\): the 2 classes .*{what}"):
        list_videos(write(tmp_path / "trainlist01.txt", "A/a.avi\n"))


# ---- HMDB51


def test_hmdb51_splits_and_subsets(tmp_path: Path) -> None:
    write(tmp_path / "splits/wave_test_split1.txt", "w1.avi 1 \nw2.avi 2 \nw3.avi 0 \n")
    write(tmp_path / "splits/brush_hair_test_split1.txt", "b[1]#x.avi 1\nb2.avi 2\n")
    write(tmp_path / "splits/wave_test_split2.txt", "w1.avi 2\n")
    write(tmp_path / "splits/brush_hair_test_split2.txt", "")
    train = list_videos(tmp_path / "splits", tmp_path)
    assert train.classes == ("brush_hair", "wave")
    assert train.videos == (
        ListedVideo("brush_hair/b[1]#x.avi", 0, "brush_hair"),
        ListedVideo("wave/w1.avi", 1, "wave"),
    )
    test = list_videos(tmp_path / "splits", tmp_path, subset="test")
    assert [video.path for video in test.videos] == ["brush_hair/b2.avi", "wave/w2.avi"]
    assert [v.path for v in list_videos(tmp_path / "splits", tmp_path, split=2, subset="test").videos] == [
        "wave/w1.avi"
    ]


def test_hmdb51_problems_are_named(tmp_path: Path) -> None:
    write(tmp_path / "wave_test_split1.txt", "w1.avi 1\nw2.avi 5\n")
    with pytest.raises(UsageError, match=r"wave_test_split1\.txt, line 2: expected a file name and 0"):
        list_videos(tmp_path)
    with pytest.raises(UsageError, match="splits 1, 2 and 3"):
        list_videos(tmp_path, split=7)
    with pytest.raises(UsageError, match="not a folder"):
        list_videos(tmp_path / "wave_test_split1.txt", list_format="hmdb51")
    write(tmp_path / "brush_hair_test_split2.txt", "b.avi 1\n")
    with pytest.raises(UsageError, match=r"no file brush_hair_test_split1\.txt, but one of another split"):
        list_videos(tmp_path)


# ---- Something-Something V2

LABELS = json.dumps({"Holding something": "0", "Pushing something with something": "1"})


def test_ssv2_templates_lose_their_brackets(tmp_path: Path) -> None:
    write(tmp_path / "labels.json", LABELS)
    touch(tmp_path, "videos/2.webm")
    entries = [
        {"id": "1", "label": "pushing a cup with a pen", "template": "Pushing [something] with [something]"},
        {"id": "2", "template": "Holding [something]"},
        {"id": "3"},
    ]
    listing = list_videos(write(tmp_path / "train.json", json.dumps(entries)), tmp_path / "videos")
    assert listing.videos == (
        ListedVideo("1.mp4", 1, "Pushing something with something"),
        ListedVideo("2.webm", 0, "Holding something"),
        ListedVideo("3.mp4", -1, ""),
    )
    assert listing.classes == ("Holding something", "Pushing something with something")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": "1"},', "train.json, line 1: not JSON"),
        ('{"id": "1"}', "expected a list of"),
        ('[{"label": "x"}]', "entry 1: expected an object with an id"),
        ('[{"id": "../1"}]', "entry 1: expected an object with an id"),
        ('[{"id": "1", "template": "Eating [something]"}]', "entry 1: template 'Eating something' is not among"),
    ],
)
def test_ssv2_problems_are_named(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "labels.json", LABELS)
    with pytest.raises(UsageError, match=message):
        list_videos(write(tmp_path / "train.json", text))


def test_ssv2_needs_labels_that_are_numbers(tmp_path: Path) -> None:
    source = write(tmp_path / "train.json", '[{"id": "1"}]')
    with pytest.raises(UsageError, match=r"nor labels\.json is there"):
        list_videos(source)
    write(tmp_path / "labels.json", '{"Holding something": "zero"}')
    with pytest.raises(UsageError, match="expected a number for each label"):
        list_videos(source)


def test_ssv2_labels_are_numbered_one_by_one(tmp_path: Path) -> None:
    write(tmp_path / "labels.json", '{"Holding something": "0", "Pushing something": "2"}')
    with pytest.raises(
        UsageError, match=r"labels\.json \(numbers from 0\): the 2 classes .* 'Pushing something' has .* gap"
    ):
        list_videos(write(tmp_path / "train.json", '[{"id": "1", "template": "Pushing [something]"}]'))


# ---- formats in general


NAMES = ("v 1.mp4", "v[1](2){3}.mp4", "a.b.c.mp4", "v_x_g01_c01.avi", "#20_Rhythm_np1_goo_0.avi", "é 東京.webm")


@pytest.mark.parametrize("blanks", [" ", "  ", "\t", " \t "])
def test_every_list_of_paths_takes_any_names_and_any_blanks(blanks: str, tmp_path: Path) -> None:
    """Blanks, brackets, braces, several dots, and one name in two folders: the whole path is the video."""
    paths = [f"{folder}/{name}" for folder in ("A b", "A.c") for name in NAMES]
    lists = {"csv": (write(tmp_path / "test.csv", "".join(f"{path}{blanks}1\n" for path in paths)), paths)}
    plain = [path.replace("A b", "Ab") for path in paths]
    write(tmp_path / "ucf/classInd.txt", f"1{blanks}Ab\n2{blanks}A.c\n")
    lists["ucf101"] = (write(tmp_path / "ucf/testlist01.txt", "".join(f"{path}\r\n" for path in plain)), plain)
    for folder in ("A b", "A.c"):
        write(tmp_path / f"hmdb/{folder}_test_split1.txt", "".join(f"{name}{blanks}2{blanks}\n" for name in NAMES))
    lists["hmdb51"] = (tmp_path / "hmdb", paths)
    for list_format, (source, expected) in lists.items():
        assert detect_format(source) == list_format
        found = list_videos(source, subset="test")
        assert [video.path for video in found.videos] == expected
        assert len({video.video_id for video in found.videos}) == len(expected)


def test_formats_are_told_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "h/wave_test_split1.txt", "f/a.mp4", "trainlist02.txt", "train.json", "train.csv", "list.txt")
    formats = [
        detect_format(tmp_path / n) for n in ("h", "f", "trainlist02.txt", "train.json", "train.csv", "list.txt")
    ]
    assert formats == ["hmdb51", "folder", "ucf101", "ssv2", "csv", "csv"]


def test_sources_and_roots_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        list_videos(tmp_path / "none")
    with pytest.raises(UsageError, match="the root is no folder"):
        list_videos(write(tmp_path / "a.csv", "a 1"), tmp_path / "none")
    with pytest.raises(UsageError, match="'parquet' is unknown; allowed: auto, folder, webdataset, csv"):
        list_videos(tmp_path / "a.csv", list_format="parquet")  # type: ignore[arg-type]
