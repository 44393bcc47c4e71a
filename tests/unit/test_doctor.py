"""`doctor`: what is there is ok, what is broken is a finding with a remedy, and a traceback is neither."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from mvd_offline.cli.main import main
from mvd_offline.doctor import Finding, decoders, devices, packages, system


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


def test_this_machine_passes_and_says_so_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--store", str(tmp_path), "--workers", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    states = {finding["what"]: finding["state"] for finding in report["findings"]}
    assert report["ok"]
    assert {states[name] for name in ("torch", "PyAV", "decord", "JPEG", "locks", "libx264")} == {"ok"}
    assert set(states.values()) <= {"ok", "warning"}
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_cannot_be_imported_is_missing_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # what `import torch` meets when it is broken
    found = by_name(packages.findings() + devices.findings())
    assert found["torch"].state == "missing"
    assert "cannot be imported" in found["torch"].found
    assert "--force-reinstall" in found["torch"].do
    assert found["GPU"] == Finding("GPU", "warning", found["GPU"].found, found["GPU"].do)
    assert main(["doctor", "--store", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "1 missing" in shown
    assert "Traceback" not in shown


def test_a_package_that_is_not_there_or_too_old_is_missing_with_the_command() -> None:
    (absent,) = packages.package("no-such-package-of-ours>=2; python_version >= '3.11'")
    assert absent == Finding(
        "no-such-package-of-ours", "missing", "not installed", "pip install 'no-such-package-of-ours>=2'."
    )
    (old,) = packages.package("numpy>=1000")
    assert old.state == "missing"
    assert "where >=1000 is needed" in old.found
    assert list(packages.package("nothing>=1; python_version < '3'")) == []


def test_a_reader_that_is_broken_is_missing_and_the_others_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    found = by_name(decoders.findings())
    assert found["decord"].state == "missing"
    assert found["decord"].do == "pip install --force-reinstall --no-deps decord."
    assert found["PyAV"].state == found["JPEG"].state == "ok"


def test_codecs_that_are_lacking_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import av.codec

    monkeypatch.setattr(av.codec, "codecs_available", {"h264", "libvpx-vp9"})
    found = by_name(decoders.findings())["codecs"]
    assert (found.state, found.found) == ("warning", "PyAV has no decoder of hevc, av1")


def test_little_room_and_few_files_are_warnings_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(system.shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(system.resource, "getrlimit", lambda kind: (1024, 8192))
    monkeypatch.setattr(system, "SHARED_MEMORY", tmp_path)
    found = by_name(system.findings(tmp_path / "stores" / "k400", workers=64))
    for name in ("disk", "temporary files", "shared memory", "open files", "cores"):
        assert found[name].state == "warning", name
        assert found[name].do, name
    assert "ulimit -n 4096" in found["open files"].do
    assert f"to be made in {tmp_path}" in found["disk"].found


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/1").is_dir(), reason="nowhere that cannot be written")
def test_a_folder_that_cannot_be_written_is_missing() -> None:
    found = by_name(system.findings(Path("/proc/1"), workers=1))
    assert found["disk"].state == "missing" or found["locks"].state == "missing"
    assert found["locks"].do
