"""Errors that a user can cause or act upon; every other exception is a defect of sweeper.

The command line turns a `SweeperError` into its message and its `exit_status`, without a stack trace.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from sweeper.redact import redacted

# What the system refuses whatever sweeper does: no room, no right, a disk that fails.
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE}


class SweeperError(Exception):
    """What was wrong, what was given, what is allowed and the next step, in one message without secrets."""

    exit_status = 1

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class InputError(SweeperError):
    """The input is wrong: a file, an option, a dataset. Nothing was written."""

    exit_status = 2


class SpaceError(InputError):
    """Every problem of a search space file at once.

    Args:
        problems: one line each, in the order of the file: `path: what (file:line; how to go on)`.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class RunFailed(SweeperError):
    """The input was right and the run still could not be finished; its state is kept."""


def users_error(error: BaseException) -> SweeperError | None:
    """What a user can act upon in an exception, out of the layers that others wrap around it; None: a defect."""
    inner: BaseException | None = error
    seen: set[int] = set()
    while inner is not None and id(inner) not in seen:
        if isinstance(inner, SweeperError):
            return inner
        seen.add(id(inner))
        if type(inner).__module__ == "builtins" and isinstance(inner, OSError) and inner.errno in REFUSALS:
            where = f"{inner.filename}: " if inner.filename else ""
            return RunFailed(f"{where}{inner.strerror}; everything finished is kept: run again once that is mended")
        inner = getattr(inner, "cause", None) or inner.__cause__
    return None
