"""`shards report`: the page of a store, read as text and opened in a browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from headless import Page, browser
from small_runs import fill, once, plan_small
from small_stores import DECODER, PRODUCER, column_of, hash_of, header_of

from mvd_offline.cli.main import main
from mvd_offline.recipe import ViewSection
from mvd_offline.report.page import write_report
from mvd_offline.shards import create_store, open_store
from mvd_offline.shards.schema import RowRecord
from mvd_offline.video.catalog import Catalog, scan
from mvd_offline.video.synthetic import synthesize
from mvd_offline.video.views import Plan

SCRIPT = "<script>alert(1)</script>.mp4"  # a folder `<script>alert(1)<`, and a file in it
REASON = '<img src="https://example.org/x.png" onerror="alert(2)"> & worse'
VIEW = {"view.frames": 16, "view.stride": 1, "view.groups": 1, "store.codec": "int8"}


def make_store(folder: Path) -> None:
    """`videos/` with names that are HTML, and `store` of them: five good views, and one whose reason is HTML."""
    made = folder / "made"
    synthesize(made, videos_per_class=2, classes=4, seed=0, short_side=(40, 56), frames=(20, 24))
    names = [SCRIPT, "broken.mp4", "a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    for name, path in zip(names, sorted(made.rglob("*.mp4")), strict=False):
        (folder / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "videos" / name)
    catalog = scan(folder / "videos", root=None, workers=1, timeout_seconds=30.0)
    videos = tuple(
        replace(v, status="unreadable", detail=REASON) if v.path == "broken.mp4" else v for v in catalog.videos
    )
    Catalog(videos, catalog.root, catalog.classes).write(folder / "catalog.parquet")
    fill(plan_small(folder / "catalog.parquet", folder / "store", VIEW))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "report", make_store)


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(folder / "store", path)
    return path


# ---- as text -----------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Every tag with its attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_what_comes_from_data_is_text_and_never_markup(page: Path) -> None:
    found = Tags(page.read_text())
    text = "".join(found.text)

    assert SCRIPT in text
    assert REASON in text
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]


def test_the_page_points_at_nothing_outside_itself(page: Path) -> None:
    found = Tags(page.read_text())
    targets = [value or "" for _, attrs in found.tags for name, value in attrs.items() if name in ("src", "href")]

    assert targets
    assert not [target for target in targets if not target.startswith(("data:image/", "#"))]
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in found.tags}
    assert not [attributes for _, attributes in found.tags if "style" in attributes]


def test_the_policy_allows_this_very_script_and_style_and_no_other(page: Path) -> None:
    html = page.read_text()
    (policy,) = (attrs["content"] for tag, attrs in Tags(html).tags if "http-equiv" in attrs)
    assert policy is not None

    def digest(tag: str) -> str:
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.S)
        return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"

    assert f"script-src {digest('script')};" in policy
    assert f"style-src {digest('style')};" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_the_page_says_what_the_store_is(folder: Path, page: Path) -> None:
    text = "".join(Tags(page.read_text()).text)
    store = open_store(folder / "store")

    assert store.store_id in text
    for spec in store.header.columns.values():
        assert spec.source["weights_sha256"] in text
        assert spec.column_id in text
    assert "5 of 5 of image, 5 of 5 of video." in text  # rows sampled


def test_the_same_arguments_give_the_same_page(folder: Path, page: Path, tmp_path: Path) -> None:
    again = write_report(folder / "store", tmp_path / "again.html")
    few = [write_report(folder / "store", tmp_path / f"{seed}.html", views=2, seed=seed).views for seed in range(4)]

    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    assert len(again.views) == 5
    assert len(set(few)) > 1


# ---- stores that are not whole -----------------------------------------------------------------------------------


def test_a_video_that_is_gone_is_said_in_its_place(folder: Path, tmp_path: Path) -> None:
    videos = shutil.copytree(folder / "videos", tmp_path / "videos")
    (videos / "c.mp4").unlink()
    found = write_report(folder / "store", tmp_path / "page.html", root=videos)
    html = (tmp_path / "page.html").read_text()

    plan = Plan.read(folder / "store" / "plan.parquet")
    assert [plan[view].path for view in found.views_without_frames] == ["c.mp4"]
    assert html.count("No frames: missing: no such file") == 1
    assert html.count('alt="frame ') == 4 * 8
    assert html.count('alt="features of slice ') == 5 * 2 * 8  # the targets are still there


def test_the_page_comes_without_any_video(folder: Path, tmp_path: Path) -> None:
    store = shutil.copytree(folder / "store", tmp_path / "store")
    (store / "local.json").unlink()
    found = write_report(store, tmp_path / "page.html")

    assert found.views_without_frames == found.views != ()
    assert "does not know where its videos are" in (tmp_path / "page.html").read_text()


def test_an_unfinished_store_is_called_so(folder: Path, tmp_path: Path) -> None:
    store = plan_small(folder / "catalog.parquet", tmp_path / "store", VIEW)
    empty = write_report(store, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()

    assert "not sealed" in html
    assert empty.views == ()
    assert empty.numbers["coverage"]["columns"]["video"]["rows"]["pending"] == 6
    assert html.count("No target yet.") == 2


def test_the_command_says_what_it_wrote(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store, missing = str(folder / "store"), str(tmp_path / "no" / "page.html")

    assert main(["shards", "report", store, "--views", "1"]) == 0
    assert capsys.readouterr().out.startswith("report.html: ")
    assert main(["shards", "report", store, "-o", "b.html", "--views", "1", "--rows", "2", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["numbers"]["features"]["video"]["rows"] == 2
    assert Path("b.html").stat().st_size == numbers["page_bytes"]
    assert main(["shards", "report", store, "-o", missing]) == 2
    assert "a folder that exists" in capsys.readouterr().err
    assert main(["shards", "report", store, "--root", missing]) == 2
    assert main(["shards", "report", store, "-o", f"{store}/store.json"]) == 2
    assert open_store(store).sealed


# ---- in a browser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


WIDTHS = "[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
def test_the_page_opens_without_a_word_and_fits_the_screen(tab: Page, page: Path, width: int, dark: bool) -> None:
    assert tab.open(page, width=width, dark=dark) == []
    assert tab.evaluate(WIDTHS) == [width] * 3
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 150) == dark


def test_a_view_plays_and_still_fits_a_phone(tab: Page, page: Path) -> None:
    tab.open(page, width=390)
    shown = """[...document.querySelector('.exhibit').querySelectorAll('.strip img')]
        .filter(image => image.offsetParent !== null).length"""
    assert tab.evaluate(shown) == 4 * 8
    tab.evaluate("document.querySelector('.exhibit button').click()")
    assert tab.evaluate(shown) == 4  # frame, crop, two teachers
    assert tab.evaluate(WIDTHS) == [390] * 3
    waits = """new Promise(done => { const slider = document.querySelector('.exhibit input');
        const wait = () => slider.value === '2' ? done(true) : setTimeout(wait, 20); wait(); })"""
    assert tab.evaluate(waits)  # it moves by itself
    tab.evaluate("document.querySelector('.exhibit button').click()")
    assert tab.evaluate(shown) == 4 * 8


def test_the_browser_tells_of_errors_requests_and_overflow(tab: Page, tmp_path: Path) -> None:
    """What the tests above rely on."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<meta name=viewport content='width=device-width'><div style='width:900px'>wide</div>"
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('one'); null.two</script>"
    )
    found = " ".join(tab.open(bad, width=390))
    assert "console.error" in found
    assert "exception" in found
    assert "request: http://127.0.0.1:9/x.png" in found
    assert max(tab.evaluate(WIDTHS)[:2]) == 900 or tab.evaluate(WIDTHS)[0] > 390


# ---- a large store -----------------------------------------------------------------------------------------------

ROWS, SHARD = 100_000, 1000


def large_plan(path: Path) -> bytes:
    """A real plan's one view, 100,000 times, of as many videos."""
    catalog = Catalog.read(path)
    video = next(video for video in catalog.videos if video.status == "ok")
    view = ViewSection(frames=4, stride=2, image_size=32)
    one = Plan.from_catalog(Catalog((video,), catalog.root), view, SHARD)
    table = pq.read_table(pa.BufferReader(one.to_bytes())).take(np.zeros(ROWS, int))
    ids = np.arange(ROWS)
    values = (ids, (ids // SHARD).astype(np.int32), [f"v{view}.mp4" for view in ids])
    for position, column in enumerate(values):
        table = table.set_column(position, table.schema.field(position), pa.array(column))
    ((key, facts),) = table.schema.metadata.items()
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({key: json.dumps(json.loads(facts) | {"videos": ROWS})}), sink)
    return sink.getvalue()


def make_large(folder: Path, catalog: Path) -> None:
    """`store`, sealed, of 100,000 rows of 48 bytes; every hundredth failed."""
    plan, column = large_plan(catalog), column_of(width=2)
    store = create_store(folder / "store", header_of(plan, [column], rows=ROWS, rows_per_shard=SHARD), plan)
    payload = np.arange(12, dtype="<f4").tobytes()
    row = RowRecord(0, "ok", length=len(payload), crc32c=google_crc32c.value(payload), decoder=DECODER, cosine_mean=1.0)
    for shard in range(store.shard_count):
        with store.write_shard(column.name, shard, producer=PRODUCER) as writer:
            for view in store.shard_view_ids(shard).tolist():
                if view % 100 == 7:
                    writer.fail(view, "timeout", f"no frame within {view} ms")
                else:
                    error = 0.25 if view == 54_321 else 0.125
                    writer.keep(replace(row, view_id=view, pixels=hash_of(view), relative_error=error), payload)
    store.seal()


@pytest.fixture(scope="module")
def large(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "large", lambda made: make_large(made, folder / "catalog.parquet")) / "store"


MEASURED = """
import re, resource, sys
from mvd_offline.cli.main import main
status = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
print(used.ru_utime + used.ru_stime, int(peak) // 1024, file=sys.stderr)
sys.exit(status)
"""


def measured(*words: str | Path) -> tuple[str, float, int]:
    """Run a command in a process of its own; what it printed, its processor seconds and its peak in MB."""
    command = [sys.executable, "-c", MEASURED, *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    seconds, megabytes = done.stderr.split()[-2:]
    return done.stdout, float(seconds), int(megabytes)


def test_a_hundred_thousand_rows_are_reported_from_a_sample(large: Path, tmp_path: Path) -> None:
    text, seconds, megabytes = measured("shards", "report", large, "-o", tmp_path / "page.html", "--json")
    numbers = json.loads(text)["numbers"]

    assert seconds < 15
    assert megabytes < 500
    assert numbers["features"]["video"]["rows"] == 256
    assert (
        numbers["coverage"]["columns"]["video"]["rows"] | {"ok": 99_000, "timeout": 1000}
        == (numbers["coverage"]["columns"]["video"]["rows"])
    )
    assert numbers["coding"]["video"]["worst_view"] == 54_321
    assert numbers["failures"]["reasons"] == 1  # they differ in a number
    html = (tmp_path / "page.html").read_text()
    assert "256 of 99,000 of video." in html
    assert len(html) < 400_000


def test_a_hundred_thousand_rows_are_listed_in_a_few_lines_within_seconds(large: Path) -> None:
    said = {}
    for words in ("ls", "ls --rows", "info", "stats"):
        said[words], seconds, megabytes = measured("shards", *words.split(), large)
        assert len(said[words].splitlines()) <= 52, words
        assert seconds < 3, words
        assert megabytes < 400, words
    assert "0 to 99" in said["ls"]
    assert "950 more" in said["ls --rows"]
    assert "99000 ok, 1000 timeout" in said["info"]
    assert "worst 0.25 (view 54321), of 99,000 rows" in said["stats"]
    assert len(json.loads(measured("shards", "ls", "--rows", "--json", large)[0])) == 1000
