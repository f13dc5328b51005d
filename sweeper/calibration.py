"""How long models take on this device, as measured: timed once for each device and set of versions, then looked up.

    <cache>/calibration/<sha256>.json      what was timed, where, and its seconds

`<cache>` is `SWEEPER_CACHE`, or `~/.cache/sweeper`. On a CPU as many processes time models at once as the run will have
lanes, each with one thread, because lanes share the memory's bandwidth; on GPUs, of which each lane has its own, one.
Seconds are those of the device alone (`timing`): the ledger goes by the clock, so that a run on a machine that is busy
with something else takes longer than its forecast.
"""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

from sweeper import cpu
from sweeper.devices import Slot, cpu_name
from sweeper.files import write_atomically
from sweeper.fingerprint import canonical_json, fingerprint
from sweeper.record import versions
from sweeper.shard_cache import DEFAULT_FOLDER, FOLDER_VARIABLE
from sweeper.timing import Run, Seconds

MOST_PROCESSES = 8
PACKAGES = ("python", "torch", "timm", "diffusers")


def folder_from_environment() -> Path:
    """Where measurements are kept."""
    given = os.environ.get(FOLDER_VARIABLE)
    return (Path(given).expanduser() if given else Path(DEFAULT_FOLDER).expanduser().parent) / "calibration"


class Calibration:
    """Measurements of one device.

    Args:
        slot: the device, which is here.
        lanes: trainings that will run at a time.
    """

    def __init__(self, slot: Slot, lanes: int, folder: Path | None = None) -> None:
        self.slot, self.folder = slot, folder or folder_from_environment()
        self.processes = min(lanes, MOST_PROCESSES) if slot.processor == "CPU" else 1
        installed = versions()
        self.where = {
            "device": cpu_name() if slot.processor == "CPU" else slot.device,
            "processes": self.processes,
            "versions": {name: installed[name] for name in PACKAGES if name in installed},
        }
        self._found: dict[str, Seconds | None] = {}

    def seconds(self, run: Run) -> Seconds | None:
        """What was measured; None where nothing was."""
        key = self._key(run)
        if key not in self._found:
            self._found[key] = _read(self.folder / f"{key}.json")
        return self._found[key]

    def measure(self, runs: Sequence[Run], within_s: float, *, again: bool = False) -> int:
        """Time those that are not known, in this order, none begun after `within_s` but the first; returns how many.

        Args:
            again: also those that are known.
        """
        missing = {self._key(run): run for run in runs if again or self.seconds(run) is None}
        for (key, run), found in zip(missing.items(), self._all(list(missing.values()), within_s), strict=True):
            if found is not None:
                self._found[key] = found
                told = {"run": run.identity, "where": self.where, "seconds": dict(found)}
                with suppress(OSError):  # a cache that can not be written to costs the next plan a few seconds
                    write_atomically(self.folder / f"{key}.json", canonical_json(told))
        return sum(self._found.get(key) is not None for key in missing)

    def _key(self, run: Run) -> str:
        return fingerprint({"run": run.identity, "where": self.where})

    def _all(self, runs: list[Run], within_s: float) -> list[Seconds | None]:
        if not runs:
            return []
        deadlines = [float("inf"), *[time.monotonic() + within_s] * (len(runs) - 1)]
        devices = ["cpu" if self.slot.processor == "CPU" else "cuda"] * len(runs)
        if self.processes == 1 and self.slot.processor == "CPU":
            return [_timed(*each) for each in zip(runs, devices, deadlines, strict=True)]
        # torch is here already: a fork has it at once. What CUDA has begun does not survive one.
        how = get_context("fork" if self.slot.processor == "CPU" else "spawn")
        with ProcessPoolExecutor(self.processes, mp_context=how, initializer=_deaf) as pool:
            try:
                return list(pool.map(_timed, runs, devices, deadlines))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _deaf() -> None:
    """Ctrl-C is the driver's to hear."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _timed(run: Run, device: str, deadline: float) -> Seconds | None:
    """What it takes with one thread; None after the deadline, or where it does not work."""
    import torch

    if time.monotonic() > deadline:
        return None
    threads = torch.get_num_threads()
    cpu.prepare(threads=1)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run.measure(torch.device(device))
    except Exception:  # it is counted instead; whether the model is right is asked where it is built
        return None
    finally:
        torch.set_num_threads(threads)


def _read(path: Path) -> Seconds | None:
    """A measurement; None where there is none, or something else lies there."""
    try:
        found = json.loads(path.read_bytes())["seconds"]
        return {str(name): float(value) for name, value in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
