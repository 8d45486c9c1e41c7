"""Parts of user messages: untrusted text made printable, shortened lists, and spelling suggestions."""

import difflib
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

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
    """The end of a message about an unknown name: the closest known names; "" if there are none.

    Case and punctuation do not count: "vit-b/16" is close to "ViT-B-16".
    """
    plain = {entry: _letters(entry) for entry in dict.fromkeys(known)}
    typed = _letters(name)
    # users type "floor" and "sky" for "floor-wood" and "sky-other", which are no close matches for difflib
    matches = sorted((entry for entry in plain if typed and typed in plain[entry]), key=lambda entry: len(plain[entry]))
    close = difflib.get_close_matches(typed, plain.values(), n=3, cutoff=0.65)
    matches += sorted((entry for entry in plain if plain[entry] in close), key=lambda entry: close.index(plain[entry]))
    quoted = [f"'{entry}'" for entry in dict.fromkeys(matches)][:3]
    return f"; did you mean {' or '.join(quoted)}?" if quoted else ""


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:02:33."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def program() -> str:
    """How the user started the command line, for commands to copy: "python cli.py" or "clipteacher"."""
    return "python cli.py" if Path(sys.argv[0]).name == "cli.py" else "clipteacher"


def count(amount: int, noun: str) -> str:
    """A number and its noun: "1 shard", "1,449 images"."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def binary_size(amount: float) -> str:
    """Bytes in the largest binary unit that is at most the amount, such as 3.0 MiB."""
    power = min(int(math.log2(max(amount, 1)) // 10), 3)
    return f"{amount / 2 ** (10 * power):,.{min(power, 1)}f} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


def _letters(name: str) -> str:
    """A name's letters and digits in lower case; all of it in lower case if there are none."""
    return "".join(filter(str.isalnum, name.lower())) or name.lower()
