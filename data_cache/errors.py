"""The errors a user can cause: one line each, saying what is wrong, where, and how to mend it."""


class UserError(Exception):
    """Something in the user's files or machine prevents the work. The command line exits with 1."""

    exit_code = 1


class UsageError(UserError):
    """The command itself asks for something that does not exist. The command line exits with 2."""

    exit_code = 2
