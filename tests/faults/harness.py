"""A small sweep that comes out the same however often it is disturbed, and what the tests do to it.

One search objective, quasi-random points alone and nobody stopped: then neither the clock nor the order in which trials
end has a say in any figure but those of cost, and a disturbed sweep can be compared with an undisturbed one to the bit.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from command_line import NOISE, finish, start
from small_sweep import write_space

TRIALS = 5
PATIENCE_S = 600.0
TRIAL = {
    "teacher": {"choice": ["cnn", "vit"]},
    "student": {"model": "test_efficientnet"},
    "synthetic": {"source": "tiny", "ratio": {"choice": [0, 1]}, "labels": "distill_only"},
    "loss": {"ce": {"uniform": [0.2, 1]}, "kl": {"weight": 1.0}},
    "train": {"epochs": 8, "batch_size": 16, "epoch_size": 192, "lr": 3e-3},
}
SEARCH = {"trials": TRIALS, "startup": TRIALS, "objectives": {"accuracy": "max"}, "scheduler": {"kind": "fifo"}}
ONE_LANE = {"gpus_per_trial": 0, "workers_per_trial": 1, "cpus_per_trial": 1}


@dataclass
class Row:
    """A line of the table that the harness prints: what was done, how often, and what it cost."""

    fault: str
    tried: int = 0
    lost_s: list[float] = field(default_factory=list)  # between the last thing on disk and each fault
    is_equal: bool = False

    def text(self) -> str:
        lost = f"{sum(self.lost_s) / len(self.lost_s):6.1f} s {max(self.lost_s):6.1f} s" if self.lost_s else " " * 17
        return f"{self.fault:<58}{self.tried:>6}  {lost}  {'yes' if self.is_equal else 'NO':>6}"


@dataclass(frozen=True)
class Sweep:
    """A folder with a space file, a store and results of its own.

    Attributes:
        store: its URI, where it is no folder within `folder`.
        more: of the environment of its processes.
    """

    folder: Path
    store: str = ""
    more: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def make(
        cls, folder: Path, generator: Path, *, store: str = "", more: Mapping[str, str] | None = None, **sections: Any
    ) -> Sweep:
        folder.mkdir(parents=True, exist_ok=True)
        tree = {"name": "faults", "trial": TRIAL, "search": SEARCH, "finalists": {"count": 1, "seeds": 2}}
        write_space(folder / "space.yaml", generator, **{**tree, **sections})
        return cls(folder, store, more or {})

    def start(self, *options: str) -> subprocess.Popen[str]:
        store = self.store or str(self.folder / "store")
        return start(self.folder, "run", "space.yaml", "--store", store, *options, more=self.more)

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        """To its end, which must be a good one."""
        done = finish(self.start(*options), PATIENCE_S)
        assert (done.stderr, done.returncode) == ("", 0), done.stdout + done.stderr
        assert not NOISE.search(done.stdout), NOISE.findall(done.stdout)
        return done

    @property
    def results(self) -> Path:
        (path,) = (self.folder / "results" / "faults").iterdir()
        return path

    @property
    def is_finished(self) -> bool:
        return any((self.folder / "results").glob("faults/*/pareto.parquet"))

    def outcome(self) -> Mapping[str, list[dict[str, Any]]]:
        """All of the tables that no clock has a part in."""
        wanted = {
            "trials": ["trial", "state", "error", "epochs", "accuracy_val", "config", "on_front"],
            "curves": ["trial", "epoch", "accuracy_val", "loss"],
            "pareto": ["rank", "trial", "epochs", "accuracy_val", "accuracy_test", "accuracy_test_std", "seeds"],
            "ablation": ["role", "trial", "accuracy_val", "accuracy_test"],
        }
        return {n: pq.read_table(self.results / f"{n}.parquet", columns=c).to_pylist() for n, c in wanted.items()}

    def last_written(self) -> float:
        """When anything of it was last put on the disk."""
        times = [0.0]
        for path in self.folder.rglob("*"):
            try:
                times += [path.stat().st_mtime] if path.is_file() and path.suffix != ".log" else []
            except FileNotFoundError:
                continue
        journals = [path.stat().st_mtime for path in self.folder.glob("results/*/*/journal.log")]
        return max(times + journals)


def kill_at(sweep: Sweep, line: str, row: Row, is_there: Callable[[], bool] = lambda: True) -> bool:
    """Start the sweep and kill its driver once it has said something that matches, and something is on the disk.

    Returns False where it had ended before.
    """
    process = sweep.start()
    assert process.stdout is not None
    for said in process.stdout:
        if re.search(line, said):
            while not is_there() and process.poll() is None:
                time.sleep(0.02)
            row.tried += 1
            row.lost_s.append(max(0.0, time.time() - sweep.last_written()))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return True
    process.communicate()
    return False


def kill_after(sweep: Sweep, seconds: float, row: Row) -> bool:
    """Start the sweep and kill its driver after so many seconds; False where it had ended before."""
    process = sweep.start()
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        row.tried += 1
        row.lost_s.append(max(0.0, time.time() - max(sweep.last_written(), time.time() - seconds)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    return False
