"""Errors that a user can cause or act upon; every other exception is a defect of sweeper.

The command line turns a `SweeperError` into its message and its `exit_status`, without a stack trace.
"""

from __future__ import annotations

from collections.abc import Sequence


class SweeperError(Exception):
    """What was wrong, what was given, what is allowed and the next step, in one message."""

    exit_status = 1


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
