"""HTML tables for notebooks, without scripts or colors, so that they are legible in any theme."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_LEFT = "text-align:left;vertical-align:top"
SHOWN_FAILURES = 5


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """A table of text cells. The first cell of each row and all cells of `head` are headings."""
    top = "".join(f'<th style="{_LEFT}">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th style="{_LEFT}">{escape(str(first))}</th>'
        + "".join(f'<td style="{_LEFT}">{escape(str(cell))}</td>' for cell in cells)
        + "</tr>"
        for first, *cells in rows
    )
    return f"<table>{f'<thead><tr>{top}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def card(heading: str, *parts: str) -> str:
    """A heading (text) above some parts (HTML)."""
    return f"<div><strong>{escape(heading)}</strong>{''.join(parts)}</div>"


def size(count: float) -> str:
    """A number of bytes in a suitable unit."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def progress(content: Mapping[str, Any]) -> str:
    """How many images are done, failed and not done yet, from `Cache.describe`."""
    pending = content["images"] - content["done"] - content["failed"]
    counts = {"failed": content["failed"], "not done yet": pending}
    done = f"{content['done']} of {content['images']} done"
    return ", ".join([done, *(f"{count} {state}" for state, count in counts.items() if count)])


def failures(reasons: Mapping[str, str]) -> str:
    """The first failed images with their reasons, and how many more failed; empty if none did."""
    if not reasons:
        return ""
    rows = list(reasons.items())
    more = len(rows) - SHOWN_FAILURES
    tail = f"<div>and {more} more: `clipteacher info` lists them all</div>" if more > 0 else ""
    return table(rows[:SHOWN_FAILURES], ["failed", "reason"]) + tail
