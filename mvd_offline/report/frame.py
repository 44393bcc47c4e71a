"""What the pages have in common: their frame, style, script and policy, and how numbers read on them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mvd_offline import __version__

_PACKAGE: Final = "mvd_offline.report"


def render_page(template: str, **values: Any) -> str:
    """A page of one of this package's templates, which extends `base.html`; values are escaped where they are used."""
    style, script = _fragment("style.html"), _fragment("script.html")
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            version=__version__,
            style=style,
            script=script,
            policy=(
                f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
                "base-uri 'none'; form-action 'none'"
            ),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"grouped": _grouped, "percent": _percent, "cosine": _cosine, "short": _short, "flat": _flat}
    return environment


def data_uri(kind: str, content: bytes) -> str:
    """A picture (`jpeg`, `png`) inside the page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _fragment(file: str) -> Markup:
    """What stands inside the one element of a file of this package, as it will stand on the page."""
    text = resources.files(_PACKAGE).joinpath(file).read_text(encoding="utf-8")
    # Ours, not data: the only text of the page that is not escaped.
    return Markup(text[text.index(">") + 1 : text.rindex("</")])


def _digest(inline: str) -> str:
    """The source expression of the content security policy that allows this very text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode('ascii')}'"


# ---- numbers as text ---------------------------------------------------------------------------------------------


def _grouped(count: int) -> str:
    return f"{count:,}"


def _percent(share: float) -> str:
    """Three significant digits, and never 0 for what is not."""
    if share == 0 or share >= 1:
        return f"{100 * share:.0f} %"
    return f"{100 * share:#.3g} %" if share >= 1e-6 else f"{100 * share:.1e} %"


def _cosine(value: float) -> str:
    """Six decimals, or how far it is from 1 where these would not say."""
    missing = 1 - value
    return f"{value:.6f}" if missing >= 1e-5 else f"1 − {missing:.1e}" if missing > 0 else "1"


def _short(value: float) -> str:
    return f"{value:.4g}"


def _flat(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each entry of a mapping, those of mappings inside it on one line."""
    return [(str(key), _text(entry)) for key, entry in value.items()]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {_text(entry)}" for key, entry in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
