"""Parts of user messages: untrusted text made printable, shortened lists, and spelling suggestions."""

import difflib
import re
from collections.abc import Iterable, Sequence

# C0 and C1 controls, line and paragraph separators, directional marks, lone surrogates
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: str) -> str:
    """Untrusted text, such as a file name, on one line: control characters are escaped as in JSON."""
    return UNPRINTABLE.sub(lambda match: ESCAPES.get(match[0], f"\\u{ord(match[0]):04x}"), text)


def first_names(names: Sequence[str], count: int = 3) -> str:
    """The first few names and the number of the others: "a, b, c and 7 more"."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest known names, ignoring case; "" if there are none."""
    by_lower = {entry.lower(): entry for entry in known}
    typed = name.lower()
    matches = [typed] if typed in by_lower else []
    # users type "floor" and "sky" for "floor-wood" and "sky-other", which are no close matches for difflib
    matches += sorted((key for key in by_lower if typed and typed in key), key=len)
    matches += difflib.get_close_matches(typed, by_lower, n=3, cutoff=0.7)
    quoted = [f"'{by_lower[key]}'" for key in dict.fromkeys(matches)][:3]
    return f"; did you mean {' or '.join(quoted)}?" if quoted else ""
