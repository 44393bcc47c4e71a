"""Names in figures as they are written."""

from __future__ import annotations


def literal(text: str) -> str:
    r"""Text for matplotlib, to which a pair of dollar signs is a formula.

    >>> print(literal("x$1_$"))
    x\$1_\$
    """
    return text.replace("$", r"\$")
