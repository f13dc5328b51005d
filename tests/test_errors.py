"""What of an exception a user can act upon, however deep it lies; everything else stays a defect with its traceback."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sweeper.errors import InputError, RunFailed, users_error
from sweeper.files import write_atomically

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/results/space.yaml")


class Remote(Exception):
    """As Ray wraps what a task raised."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("remote")
        self.cause = cause


def raised_from(cause: BaseException) -> BaseException:
    try:
        raise ValueError("outer") from cause
    except ValueError as error:
        return error


def test_an_error_of_sweepers_own_is_found() -> None:
    own = InputError("wrong")
    for error in (own, Remote(own), raised_from(own), raised_from(Remote(raised_from(own)))):
        assert users_error(error) is own


@pytest.mark.parametrize("error", [FULL, Remote(FULL), raised_from(Remote(FULL))])
def test_what_the_system_refuses_is_said_with_its_place(error: BaseException) -> None:
    found = users_error(error)
    assert isinstance(found, RunFailed)
    assert str(found) == (
        "/data/results/space.yaml: No space left on device; everything finished is kept: run again once that is mended"
    )


@pytest.mark.parametrize("error", [ValueError("bug"), FileNotFoundError(errno.ENOENT, "gone", "x"), OSError("odd")])
def test_a_defect_is_none_of_the_users(error: BaseException) -> None:
    assert users_error(error) is None
    assert users_error(Remote(error)) is None


def test_a_circle_of_causes_ends() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert users_error(one) is None


def test_a_file_that_has_no_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space") as raised:
        write_atomically(tmp_path / "space.yaml", b"data")
    assert str(users_error(raised.value)).startswith(f"{tmp_path}/space.yaml: No space left on device; ")
    assert not list(tmp_path.iterdir())
