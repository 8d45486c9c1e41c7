"""Checks that a user's mistake raises an error of one line."""

from collections.abc import Callable

import pytest

from data_cache.errors import UserError


def refused(action: Callable[[], object], *words: object, kind: type[UserError] = UserError) -> str:
    """The message of the error that `action` raises: of this kind, one line, and with these words."""
    with pytest.raises(UserError) as error:
        action()
    message = str(error.value)
    assert type(error.value) is kind, message
    assert "\n" not in message
    for word in words:
        assert str(word) in message
    return message
