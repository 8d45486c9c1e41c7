"""The errors a user can cause: one line each, saying what is wrong, where, and how to mend it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something in the user's files or machine prevents the work. The command line exits with 1."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """What IPython, and with it a notebook, shows in place of a traceback."""
        return [f"error: {self}"]


class UsageError(UserError):
    """The command itself asks for something that does not exist. The command line exits with 2."""

    exit_code = 2


class InterruptError(UserError):
    """The user pressed Ctrl-C; says what is kept and how to go on. The command line exits with 1."""


@contextmanager
def disk_errors(where: Path, cure: str) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk under `where` into a UserError that ends with the `cure`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        problem = "the disk is full" if full else f"cannot be written ({error.strerror})"
        raise UserError(f"{where}: {problem}; {cure}") from None


def one_line(error: Exception, limit: int = 200) -> str:
    """What a library's exception says, on one line of at most `limit` characters, for use in an error of ours."""
    reason = " ".join(str(error).split()) or type(error).__name__
    # torch answers a file it will not unpickle with the advice to do so all the same
    return "not a plain file of tensors" if "weights_only" in reason else reason[:limit]
