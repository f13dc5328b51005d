"""A run on a cluster, from here: submitted, followed, brought home, and its cluster taken down.

The driver works on the head as one of Ray's jobs, so that this machine may go away. All that passes between the two
goes through the store: the space on its way there, and the journal and results, which a `Mirror` copies as they grow,
on their way back. So a head that dies loses a few seconds, and results come home from any cluster.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sweeper import driver, interrupt, jobs, launcher, submitted
from sweeper.console import Console
from sweeper.errors import InputError, RunFailed, SweeperError
from sweeper.jobs import Interrupted, Jobs
from sweeper.pairs import check_models
from sweeper.results import RunFolder
from sweeper.spacefile import SpaceFile
from sweeper.storage import Storage
from sweeper.submitted import Submission


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Where a user works: the folder of results, the terminal, and who is asked before money is spent."""

    results: str
    console: Console
    agree: Callable[[str], None]  # raises where the answer is no


def submit(space: SpaceFile, place: str, store: str, desk: Desk, *, detach: bool = False) -> int:
    """Start a run on a cluster, or join the one that goes on there, and follow it; returns its exit status.

    Args:
        place: a file of Ray's launcher (absolute), whose cluster is brought up if it is not, or a dashboard's address.

    Raises:
        SweeperError: the input is wrong, or the cluster could not be brought up or reached.
    """
    submitted.check(space, store)
    earlier = submitted.earlier(space, desk.results)
    mine = Submission(name=submitted.name_of(space), place=place, store=store)
    if _is_finished(mine):
        return _show(_home(mine, desk), desk, fresh=False)
    known = {run.name: run for run in submitted.known(desk.results)}.get(mine.name)
    if known is not None and known.place != place and not known.is_home and _may_go_on(known.place):
        raise InputError(
            f"{mine.name} was submitted to {known.place}, which is up: `sweeper attach {mine.name}` follows it there, "
            "and ends it with --stop"
        )
    if not launcher.is_address(place) and not launcher.is_up(Path(place)):
        check_models(space)
        _bring_up(Path(place), desk)
    with Jobs(place, desk.console.message) as client:
        last = client.latest(mine.name)
        if last is not None and not last.status.is_terminal():
            job = last.submission_id
            mine = replace(mine, store=(last.metadata or {}).get("store", store))
            desk.console.message(f"{mine.name} goes on there already")
        else:
            check_models(space)
            submitted.send(mine, space, earlier)
            quiet = ["--quiet"] if desk.console.quiet else []
            command = shlex.join(["python", "-m", "sweeper", "on-head", mine.name, "--store", store, *quiet])
            number = 1 if last is None else jobs.number_of(last.submission_id, mine.name) + 1
            job = client.start(mine.name, number, command, {"store": store})
            desk.console.message(f"submitted to {place} as {mine.name}")
        submitted.remember(desk.results, mine)
        if detach:
            desk.console.message(_how_to_come_back(mine))
            return 0
        return _follow(mine, job, client, desk)


def attach(text: str, place: str | None, desk: Desk, *, stop: bool = False) -> int:
    """Follow a submitted run again, or bring home and show what it left; returns its exit status.

    Raises:
        SweeperError: no such run, or its cluster can not be reached or is gone.
    """
    mine = submitted.find(desk.results, text)
    if mine is None and place is not None:
        mine = _on_cluster(text, place, desk)
    if mine is None:
        there = ", ".join(run.name for run in submitted.known(desk.results)) or "none"
        raise InputError(
            f"run: {text!r} was not submitted from here (there are: {there}); name its cluster (--cluster)"
        )
    mine = mine if place is None else replace(mine, place=place)
    if _is_finished(mine):
        return _show(_home(mine, desk), desk, fresh=True)
    last = None
    with Jobs(mine.place, desk.console.message) as client:
        if launcher.is_address(mine.place) or launcher.is_up(Path(mine.place)):
            last = client.latest(mine.name)
        if last is not None and stop and not last.status.is_terminal():
            desk.console.message(f"stopping {mine.name}")
            client.stop(last.submission_id)
            _home(mine, desk)
            desk.console.message("stopped; everything finished is kept: `sweeper submit` with the same file goes on")
            return 0
        if last is not None:
            submitted.remember(desk.results, mine)
            return _follow(mine, last.submission_id, client, desk)
    home = _home(mine, desk)
    where = f" and lies in {home.path}" if home is not None else ""
    raise RunFailed(
        f"{mine.place} is gone, or knows nothing of {mine.name}; what was finished is kept{where}: "
        "`sweeper submit` with the same file goes on"
    )


def down(path: Path, desk: Desk, *, force: bool = False) -> None:
    """Bring home what was submitted to a cluster, and take the cluster down.

    Raises:
        InputError: a run goes on there, or its results can not be brought home, and it is not to be forced.
    """
    mine = [run for run in submitted.known(desk.results) if run.place == str(path)]
    if not force and launcher.is_up(path):
        with Jobs(str(path), desk.console.message) as client:
            going = [job.submission_id for job in client.all() if not job.status.is_terminal()]
        if going:
            raise InputError(
                f"{path}: {', '.join(going)} {'goes' if len(going) == 1 else 'go'} on there; `sweeper attach RUN` "
                "follows a run, and ends it with --stop; --force takes the cluster down all the same"
            )
    for run in mine:
        try:
            home = None if run.is_home else _home(run, desk)
        except SweeperError as error:
            if not force:
                raise InputError(
                    f"{run.name}: is not home: {error}; --force takes the cluster down all the same"
                ) from None
            continue
        if home is not None and not home.finished:
            desk.console.message(f"{home.label} is not finished: `sweeper submit` with the same file goes on")
    launcher.down(path)


def _bring_up(path: Path, desk: Desk) -> None:
    cost = launcher.costs(path)
    if cost is not None:
        desk.agree(f"{path} is not up. Ray would start it: {cost}. Go on?")
    try:
        launcher.up(path)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; what `ray up` has started is billed until `sweeper down {path}`") from None


def _follow(mine: Submission, job: str, client: Jobs, desk: Desk) -> int:
    def show(line: str) -> None:
        if line.startswith("error: "):
            desk.console.error(line.removeprefix("error: "))
        else:
            desk.console.message(line)

    try:
        ended = client.follow(job, show)
    except KeyboardInterrupt:
        desk.console.message(f"detached: {_how_to_come_back(mine)}")
        return interrupt.STATUS
    except RunFailed as error:
        raise RunFailed(f"{error}; {_how_to_come_back(mine)}") from error
    status, home = jobs.exit_status(ended), _home(mine, desk)
    if status == 0:
        return _show(home, desk, fresh=True)
    if ended.driver_exit_code is None and ended.status != "STOPPED":
        desk.console.error(ended.message.splitlines()[0] if ended.message else f"{job} failed, and Ray knows no reason")
    return status


def _how_to_come_back(mine: Submission) -> str:
    return f"the run goes on; `sweeper attach {mine.name}` follows it, and ends it with --stop"


def _is_finished(mine: Submission) -> bool:
    found = Storage(mine.store).files(f"{mine.prefix}/results/{mine.space_name}", deep=False)
    label = mine.labelled().label
    return bool(label) and f"{label.rpartition('/')[2]}/done.json" in found


def _home(mine: Submission, desk: Desk) -> RunFolder | None:
    """Bring home what the store has of the run; None where it had not begun."""
    mine = mine.labelled()
    submitted.mirror(mine, Path(desk.results)).pull(replace=True)
    folder = RunFolder(Path(desk.results) / mine.space_name / mine.label.rpartition("/")[2]) if mine.label else None
    submitted.remember(desk.results, replace(mine, is_home=folder is not None and folder.finished))
    return folder


def _show(home: RunFolder | None, desk: Desk, *, fresh: bool) -> int:
    if home is None or not home.finished:
        raise RunFailed("the job has ended well, and the store does not hold all of its results")
    driver.show(home, desk.console, fresh=fresh)
    return 0


def _may_go_on(place: str) -> bool:
    """An address tells nothing when it does not answer; two drivers of one run wait for each other in the store."""
    return Path(place).is_file() and launcher.is_up(Path(place))


def _on_cluster(text: str, place: str, desk: Desk) -> Submission | None:
    """A run that was submitted from elsewhere, by what its job says."""
    with Jobs(place, desk.console.message) as client:
        found = {
            job.submission_id.removeprefix(jobs.PREFIX).rpartition("-")[0]: job.metadata["store"]
            for job in client.all()
            if job.submission_id.startswith(jobs.PREFIX) and (job.metadata or {}).get("store")
        }
    candidates = (Submission(name=name, place=place, store=store) for name, store in found.items())
    return next((run for run in candidates if run.fits(text)), None)
