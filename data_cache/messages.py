"""Parts of the messages that users read: text from outside made printable, lists cut short, near spellings."""

import difflib
import re
from collections.abc import Iterable, Sequence

# C0 and C1 controls, line and paragraph separators, directional marks, lone surrogates
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: str) -> str:
    """Text from outside, such as a file name, on one line: what a terminal would obey is escaped as in JSON."""
    return UNPRINTABLE.sub(lambda found: ESCAPES.get(found[0], f"\\u{ord(found[0]):04x}"), text)


def first_names(names: Sequence[str], count: int = 3) -> str:
    """The first few of some names, and how many more there are: "a, b, c and 7 more"."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known names, whatever their case; "" if none is near."""
    by_lower = {one.lower(): one for one in known}
    typed = name.lower()
    near = [typed] if typed in by_lower else []
    # users type "floor" and "sky" for "floor-wood" and "sky-other", which difflib does not find near
    near += sorted((key for key in by_lower if typed and typed in key), key=len)
    near += difflib.get_close_matches(typed, by_lower, n=3, cutoff=0.7)
    quoted = [f"'{by_lower[key]}'" for key in dict.fromkeys(near)][:3]
    return f"; did you mean {' or '.join(quoted)}?" if quoted else ""
