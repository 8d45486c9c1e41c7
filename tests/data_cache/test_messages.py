"""Numbers and names in messages read as a person would write them."""

import sys

import pytest

from data_cache.messages import binary_size, count, program


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (3 * 2**20, "3.0 MiB"), (5000 * 2**30, "5,000.0 GiB")],
)
def test_sizes_are_in_the_largest_unit_that_fits(amount, text):
    assert binary_size(amount) == text.replace("1023", "1,023")


def test_one_has_no_plural():
    assert [count(n, "image") for n in (0, 1, 1449)] == ["0 images", "1 image", "1,449 images"]


@pytest.mark.parametrize(
    ("started", "copied"),
    [("cli.py", "python cli.py"), ("bin/clipteacher", "clipteacher"), ("clipteacher/__main__.py", "clipteacher")],
)
def test_commands_to_copy_start_as_the_user_started_this_one(monkeypatch, started, copied):
    monkeypatch.setattr(sys, "argv", [started])
    assert program() == copied
