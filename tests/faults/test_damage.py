"""Files that somebody damaged: shards of the store between two runs, and the tails of all that a killed run left."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import finish
from harness import SEARCH, Row, Sweep, kill_at
from tails import TAILS

from sweeper.store import Store

pytestmark = pytest.mark.slow
KINDS = ("images", "adapt", "synthetic", "targets")
SAID = re.compile(r"error: store: \S+/(data/\S+) is gone or was changed since it was made; run again to rebuild (\w+) ")


def truncated(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def flipped(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]


@pytest.mark.parametrize("damage", ["truncated", "missing", "bit flipped"])
def test_a_shard_of_each_kind_is_damaged_between_two_runs(
    damage: str,
    finished: Sweep,
    undisturbed: Mapping[str, Any],
    row: Callable[[str], Row],
    tmp_path: Path,
    generator_folder: Path,
) -> None:
    """What is short or gone is built again without a word; a flipped bit is met while reading, and told of by name."""
    line, draw = row(f"a shard of each kind of artifact {damage}"), random.Random(damage)
    sweep = Sweep.make(tmp_path, generator_folder)
    store = Store(str(shutil.copytree(finished.folder / "store", tmp_path / "store")))
    harmed: dict[str, str] = {}
    for kind in KINDS:
        record = draw.choice([record for record in store.records() if record.kind == kind])
        name = draw.choice([entry.name for entry in record.files if entry.name != "digests.bin"])
        path = Path(store.path(f"{record.prefix}/{name}"))
        harmed[f"{record.prefix}/{name}"] = kind
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes((truncated if damage == "truncated" else flipped)(path.read_bytes(), draw))
        line.tried += 1
    told: dict[str, str] = {}
    while (ended := finish(sweep.start())).returncode:
        assert ended.returncode == 1
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        said = SAID.match(ended.stderr)
        assert said is not None, ended.stderr
        assert said[1] not in told, "it was built anew"
        told[said[1]] = said[2]
    assert (ended.stderr, ended.returncode) == ("", 0)
    assert told.items() <= harmed.items()
    assert bool(told) == (damage == "bit flipped")
    unread = set() if damage != "bit flipped" else harmed.keys() - told.keys()  # a head that only its targets need
    assert {finding.path for finding in store.verify(deep=True)} == unread
    assert sweep.outcome() == undisturbed
    line.is_equal = True


# ------------------------------------------------------------------------------------------------- tails


# Where the driver is killed before: with a note of its build, with a study and rungs, with a retraining on the disk.
MOMENTS = {
    "store/pending/*.json": r"^targets.*: \d",
    "results/*/*/rungs.jsonl": r"^\[2/",
    "results/*/*/finalists/*.json": r"^search: ended",
}


def state_files(sweep: Sweep) -> Iterator[Path]:
    """All that a later run reads but the shards, and what it must not trip over."""
    for path in sorted(sweep.folder.rglob("*")):
        place = path.relative_to(sweep.folder).parts
        is_shard = place[:2] == ("store", "data")
        is_ours = place[0] in ("store", "results") and not {"train", "tune"} & {*place}
        if path.is_file() and is_ours and not is_shard and path.name not in (".lock", "ray.log"):
            yield path


@pytest.mark.parametrize("tail", TAILS)
def test_the_tail_of_every_file_of_state(
    tail: str, undisturbed: Mapping[str, Any], row: Callable[[str], Row], tmp_path: Path, generator_folder: Path
) -> None:
    """Killed in each part of the sweep, each time all of its files are damaged; it goes on, and comes out the same."""
    line, draw = row(f"tail of every state file {tail}"), random.Random(tail)
    keeping = {"kind": "mo_asha", "grace": 1, "reduction": 2, "keep": 1.0}  # rungs on disk, and nobody is stopped
    sweep = Sweep.make(tmp_path, generator_folder, search={**SEARCH, "scheduler": keeping})
    for pattern, moment in MOMENTS.items():
        assert kill_at(sweep, moment, line, lambda pattern=pattern: any(sweep.folder.glob(pattern)))  # type: ignore[misc]
        files = list(state_files(sweep))
        assert {*sweep.folder.glob(pattern)} <= {*files}
        for path in files:
            path.write_bytes(TAILS[tail](path.read_bytes(), draw))
    sweep.run()
    assert sweep.outcome() == undisturbed
    line.is_equal = True
