"""Python and packages: there, new enough, and can be imported."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from typing import Final

from mvd_offline.doctor.findings import Finding, guarded

_DISTRIBUTION: Final = "mvd-offline"

# Those with compiled parts, or that are built for a release of another one: being installed is not enough.
_IMPORTED: Final = {
    "accelerate": "accelerate",
    "av": "av",
    "decord": "decord",
    "eva-decord": "decord",
    "numcodecs": "numcodecs",
    "numpy": "numpy",
    "pillow": "PIL",
    "pyarrow": "pyarrow",
    "simplejpeg": "simplejpeg",
    "timm": "timm",
    "torch": "torch",
    "torchvision": "torchvision",
    "zarr": "zarr",
}
_EXTRAS: Final = {
    "hf": ("transformers", "to load what `convert --to hf` writes"),
    "onnx": ("onnxscript", "for `convert --to onnx`"),
}


def findings() -> list[Finding]:
    found = [_python()]
    try:
        needed = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        do = "pip install mvd-offline, or pip install -e . in its folder."
        return [*found, Finding(_DISTRIBUTION, "missing", "it is not installed: only its folder is there", do)]
    for text in needed:
        if "extra ==" not in text:
            found += guarded(text, partial(package, text), "missing", "Install the packages again.")
    return found + [_extra(*item) for item in _EXTRAS.items()]


def _python() -> Finding:
    # An older Python does not come this far: pip refuses the package.
    return Finding("python", "ok", f"{platform.python_version()} in {sys.prefix}")


def package(text: str) -> Iterator[Finding]:
    """What there is of a requirement, written as in pyproject.toml; nothing where its marker is not of this machine."""
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    if requirement.marker is not None and not requirement.marker.evaluate():
        return
    name, install = requirement.name, f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        yield Finding(name, "missing", "not installed", f"{install}.")
        return
    if not requirement.specifier.contains(version, prereleases=True):
        yield Finding(name, "missing", f"{version}, where {requirement.specifier} is needed", f"{install}.")
        return
    if name in _IMPORTED:
        try:
            importlib.import_module(_IMPORTED[name])
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            found = f"{version} is installed, but cannot be imported ({type(error).__name__}: {reason})"
            yield Finding(name, "missing", found, _mend(name, install))
            return
    yield Finding(name, "ok", version)


def _mend(name: str, install: str) -> str:
    if name in ("torchvision", "timm"):
        return "Install torch and torchvision together: each release of torchvision is built for one of torch."
    return f"{install} --force-reinstall --no-deps, with the system libraries that the message names."


def _extra(extra: str, what: tuple[str, str]) -> Finding:
    package, purpose = what
    try:
        return Finding(f"extra {extra}", "ok", f"{package} {metadata.version(package)}, {purpose}")
    except metadata.PackageNotFoundError:
        return Finding(f"extra {extra}", "ok", f"not installed; pip install 'mvd-offline[{extra}]' {purpose}")
