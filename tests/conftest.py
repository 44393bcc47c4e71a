"""Fixtures that every room's tests may use."""

from __future__ import annotations

import signal
from pathlib import Path

import hypothesis
import pytest

# The same examples in every run, and no failure because a machine is busy.
hypothesis.settings.register_profile("repository", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repository")

REPOSITORY = Path(__file__).parent.parent


def pytest_configure() -> None:
    """A background job of a shell ignores Ctrl-C, and so would every process that the tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of whole processes first: they take longest, and at the end one worker would wait for the other's."""
    items.sort(key=lambda item: not {"e2e", "crash"} & set(item.path.parts))


@pytest.fixture(scope="session")
def shared_clips() -> Path:
    """Real videos that lie beside the repository on some machines, never in it."""
    folder = REPOSITORY.parent / "shared" / "clips"
    if not folder.is_dir():
        pytest.skip("needs the real videos of ../shared/clips, which are not on this machine")
    return folder


@pytest.fixture(scope="session")
def synthetic_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree class/video: 16 classes, one small video each, about half of them shorter than 64 frames."""
    from mvd_offline.video.synthetic import synthesize

    folder = tmp_path_factory.mktemp("synthetic")
    synthesize(folder, videos_per_class=1, seed=0, short_side=(48, 80), frames=(30, 90))
    return folder
