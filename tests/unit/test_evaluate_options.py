"""Options of `mvd-offline evaluate` that would be ignored are refused, before anything is read."""

from __future__ import annotations

import pytest

from mvd_offline.cli.main import main

PROBE = ("none", "--train", "none.parquet", "--videos", "none.parquet")


@pytest.mark.parametrize(
    "option",
    [
        ("--train", "none.parquet"),
        ("--store", "none"),
        ("--views", "2"),
        ("--epochs", "3"),
        ("--heads", "3"),
        ("--frames", "8"),
        ("--stride", "2"),
        ("--image-size", "64"),
        ("--precision", "bfloat16"),
        ("--workers", "3"),
    ],
    ids=" ".join,
)
def test_an_option_of_probes_is_refused_without_one(
    option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "none", "--videos", "none.parquet", *option]) == 2
    assert f"{option[0]} cannot go with a test without --probe: leave it out." in capsys.readouterr().err


def test_epochs_are_refused_where_no_probe_has_any(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *PROBE, "--probe", "linear", "--probe", "knn", "--epochs", "3"]) == 2
    assert "--epochs cannot go with probes without --probe attentive" in capsys.readouterr().err


def test_several_refused_options_are_named_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "none", "--videos", "none.parquet", "--views", "2", "--image-size", "64"]) == 2
    assert "--views, --image-size cannot go with a test without --probe: leave them out." in capsys.readouterr().err
