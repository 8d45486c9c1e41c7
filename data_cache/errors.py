"""Errors that users can cause: one line each that says what is wrong, where, and how to fix it."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from data_cache.messages import printable


class UserError(Exception):
    """A problem with the user's files or machine. The command line exits with 1.

    Each argument is a line; there is nearly always one. They may quote untrusted text: print `lines` instead.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))

    @property
    def lines(self) -> list[str]:
        """The lines to print, one per argument, with unprintable characters escaped."""
        return [printable(str(line)) for line in self.args]

    def prefixed(self, lead: str) -> Self:
        """The same error with text before its first line."""
        return type(self)(f"{lead}{self.args[0]}", *self.args[1:])

    def _render_traceback_(self) -> list[str]:
        """What IPython and notebooks show instead of a traceback."""
        return ["error: " + "\n".join(self.lines)]


class UsageError(UserError):
    """The command is wrong, such as an unknown name or an invalid value. The command line exits with 2."""

    exit_code = 2


class InterruptError(UserError):
    """The user pressed Ctrl-C; says what is kept and how to resume. The command line exits with 1."""


class UnreadableError(UserError):
    """A file exists but cannot be read at the moment, so whether it is damaged is unknown."""


FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
FIXES = {
    **dict.fromkeys(FULL, "free some space or choose another path, and rerun the command"),
    **dict.fromkeys(UNWRITABLE, "change its permissions or choose another path"),
    **dict.fromkeys((errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST), "choose another path"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (`ulimit -n`), and rerun the command"),
    errno.ENAMETOOLONG: "give it a shorter name",
}
"""How to fix a system error, by its number."""


def explain_os_error(error: OSError) -> str:
    """A system error as one line: which file, what is wrong, how to fix it."""
    # after a failed rename, the user knows the second name
    where = error.filename2 or error.filename
    problem = "the disk is full" if error.errno in FULL else error.strerror or one_line(error)
    fix = FIXES.get(error.errno or 0, "fix that and rerun the command")
    return f"{os.fsdecode(where)}: {problem}; {fix}" if isinstance(where, (str, bytes)) else f"{problem}; {fix}"


@contextmanager
def disk_errors(where: Path, fix: str | Callable[[], str]) -> Iterator[None]:
    """Turn an error of a full, read-only or forbidden disk under `where` into a UserError that ends with `fix`.

    `fix` may be a function, if it depends on the progress so far.
    """
    try:
        yield
    except Exception as error:
        number = errno_of(error)
        if number not in (*FULL, *UNWRITABLE):
            if isinstance(error, OSError) and not isinstance(error, ConnectionError) and error.errno:
                error.filename = error.filename or str(where)  # a failed write names no file
            raise
        problem = "the disk is full" if number in FULL else f"cannot be written ({os.strerror(number)})"
        raise UserError(f"{where}: {problem}; {fix() if callable(fix) else fix}") from None


def errno_of(error: BaseException) -> int | None:
    """The `errno` of the system error behind an exception, even if a library only quotes it."""
    if isinstance(error, OSError):
        return error.errno
    # safetensors raises its own errors, with Rust's message: "No space left on device (os error 28)"
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    return int(quoted[1]) if quoted and not isinstance(error, UserError) else None


def one_line(error: Exception, limit: int = 200) -> str:
    """A library's message on one line of at most `limit` characters, to quote in a UserError."""
    reason = " ".join(str(error).split()) or type(error).__name__
    # torch refuses to unpickle such a file and then advises doing it anyway
    return "not a plain file of tensors" if "weights_only" in reason else reason[:limit]
