"""HTML tables for notebooks: without scripts, and without colours, so that they are legible in any theme."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_LEFT = "text-align:left;vertical-align:top"
SHOWN_FAILURES = 5


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """Rows of cells; the first cell of each row, and all of `head`, are headings. Cells are text, not HTML."""
    top = "".join(f'<th style="{_LEFT}">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th style="{_LEFT}">{escape(str(first))}</th>'
        + "".join(f'<td style="{_LEFT}">{escape(str(cell))}</td>' for cell in cells)
        + "</tr>"
        for first, *cells in rows
    )
    return f"<table>{f'<thead><tr>{top}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def card(heading: str, *parts: str) -> str:
    """A heading, which is text, above parts, which are HTML."""
    return f"<div><strong>{escape(heading)}</strong>{''.join(parts)}</div>"


def size(count: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def progress(about: Mapping[str, Any]) -> str:
    """How many images are done, failed and not done yet, from `Cache.describe`."""
    rest = about["images"] - about["done"] - about["failed"]
    parts = {"failed": about["failed"], "not done yet": rest}
    return ", ".join([f"{about['done']} of {about['images']} done", *(f"{n} {word}" for word, n in parts.items() if n)])


def failures(reasons: Mapping[str, str]) -> str:
    """The first failed images with their reasons, and how many more failed; an empty text if none did."""
    if not reasons:
        return ""
    rows = list(reasons.items())
    more = len(rows) - SHOWN_FAILURES
    tail = f"<div>and {more} more: `python cli.py info` lists them all</div>" if more > 0 else ""
    return table(rows[:SHOWN_FAILURES], ["failed", "reason"]) + tail
