"""What more nodes bring, and what more lanes cost the head.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py            both parts
    OMP_NUM_THREADS=1 python benchmarks/scaling.py --nodes    1 and 2 nodes of one CPU on this machine
    OMP_NUM_THREADS=1 python benchmarks/scaling.py --lanes    1 to 64 lanes that train nothing

Nodes: the whole of a small sweep through `sweeper run --address`, an empty store each time; rows a second of targets
and generation, epochs of training a second, and their ratio to one node. A stage's time has the start of its processes
in it, as a user sees it. Last, the memory (of its own, not shared: USS) of each process that a lane has on the head.

Lanes: searcher, Tune, mailbox and journal of a run, in Ray, on this machine. In the place of the lanes' workers one
process plays all of them: it sleeps each epoch of a recorded training (`curves/anytime.parquet`) and reports what was
reached. A line: how much of their time the lanes trained, CPU-seconds of the driver and of the mailbox over the
clock's, memory of the processes that Tune keeps for its trials, and what lies in Ray's object store. For more lanes
than fit here, on a virtual clock: `scale.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pickle
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from replay import Grid, key_of

from sweeper import search, spacefile
from sweeper.config import SearchConfig
from sweeper.desk import Desk
from sweeper.lane import LanePool
from sweeper.ledger import Cost
from sweeper.session import session
from sweeper.slots import LanePlan
from sweeper.study import Study
from sweeper.trial import TrialConfig

FOLDER = Path(__file__).parent / "curves"
LANES = (1, 4, 16, 64)
OF_A_LANE = (
    "TrainController",
    "DatasetManager",
    "PlacementGroupCleaner",
    "PreemptionWatcher",
    "SynchronizationActor",
    "ResourceTrainable",  # which Tune keeps for a trial
)
SPACE = """
name: scaling
dataset: {kind: noise, classes: 10, train: 6000, val: 96, test: 96, image_size: 32}
views: {per_image: 4, crop_scale: [0.5, 1.0]}
teachers: {cnn: {kind: timm, model: test_resnet, weights: none, adapt: linear_probe, input_size: 64}}
synthetic: {ddpm: {kind: diffusers, model: "zoo:generator", steps: 5, max_ratio: 0.6}}
trial:
  teacher: {choice: [cnn]}
  student: {model: test_resnet}
  synthetic: {source: ddpm, ratio: {choice: [0.6]}}
  loss: {kl: {weight: 1.0}}
  train: {epochs: 10, epoch_size: 1920, batch_size: 32, lr: {loguniform: [1.0e-3, 1.0e-2]}}
search: {trials: 8, sampler: random, scheduler: {kind: fifo}}
finalists: {count: 1, seeds: 1, ablate: false}
"""
NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
for _ in range(COUNT):
    cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextmanager
def cluster(count: int) -> Iterator[str]:
    """Its address; a process of its own."""
    command = [sys.executable, "-c", NODES.replace("COUNT", str(count))]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield next(line.split()[1] for line in process.stdout if line.startswith("address"))
        process.stdin.close()


class HeadMemory:
    """MB of the processes that each lane has beside its worker, by name: the largest seen while a block runs."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> HeadMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(2.0):
            for process in psutil.process_iter(["cmdline"]):
                command = "".join(process.info["cmdline"] or [])
                for name in (name for name in OF_A_LANE if command.startswith(f"ray::{name}")):
                    with suppress(psutil.Error):
                        own = process.memory_full_info().uss / 1e6
                        self.found[name] = max(self.found.get(name, 0.0), own)


def on_nodes(count: int) -> dict[str, float]:
    """Rates of the stages of one sweep, a second."""
    with tempfile.TemporaryDirectory() as name, cluster(count) as address:
        folder = Path(name)
        (folder / "space.yaml").write_text(SPACE)
        command = [sys.executable, "-m", "sweeper", "run", "space.yaml", "--address", address]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        (told,) = folder.glob("results/scaling/*/forecast.json")
        fact = json.loads(told.read_text())["fact"]
        said = dict(re.findall(r"^(targets|synthetic).*: ([\d,]+) .* in ", done.stdout, re.MULTILINE))
        rows = {stage: float(count.replace(",", "")) for stage, count in said.items()} | {"search": 8 * 10}
        return {stage: count / fact[stage]["wall_s"] for stage, count in rows.items()}


class Crowd:
    """All lanes in one process: each takes a job, sleeps its epochs and reports them."""

    async def play(self, mailbox: Any, lane: str) -> None:
        incarnation = await mailbox.enlist.remote(lane, 0, [])
        while (taken := await mailbox.take.remote(lane, incarnation)) is not None:
            name, packed = taken
            accuracy, seconds = pickle.loads(packed)
            stopping, state, reached = mailbox.stopping.remote(name), "completed", 0
            for epoch, (now, past) in enumerate(zip(seconds, [0.0, *seconds], strict=False), 1):
                await asyncio.sleep(now - past)
                done = {"epoch": epoch, "epochs": len(seconds), "accuracy_val": accuracy[epoch - 1], "loss": 0.0}
                await mailbox.report.remote(lane, name, {**done, "train_seconds": now, "pretrain_seconds": 0.0})
                reached = epoch
                if ray.wait([stopping], timeout=0)[0]:
                    state = "stopped"
                    break
            await mailbox.finish.remote(lane, name, {"state": state, "train_seconds": seconds[reached - 1]})


class Played(LanePool):
    """A pool whose lanes are a crowd's."""

    def start(self) -> None:
        crowd = ray.remote(num_cpus=0, max_concurrency=1000)(Crowd).remote()
        self.playing = [crowd.play.remote(self.mailbox, str(number)) for number in range(self.plan.num_lanes)]

    def submit(self, job_id: str, job: Any) -> None:
        ray.get(self.mailbox.submit.remote(job_id, pickle.dumps(job)))


def with_lanes(num: int, trials_a_lane: int) -> dict[str, float]:
    """One search; what it cost the head."""
    space = spacefile.load(FOLDER / "space.yaml").space
    grid = Grid.read(FOLDER / "anytime.parquet", space)
    with tempfile.TemporaryDirectory() as name, session(None, Path(name) / "ray.log"):
        folder = Path(name)
        (folder / "work").mkdir()
        settings = SearchConfig.model_validate({"trials": num * trials_a_lane, "scheduler": {"kind": "mo_asha"}})
        study = Study(folder / "journal.log", settings, space, 0)

        def recorded(trial: TrialConfig) -> Any:
            curve = grid(key_of(space, trial.model_dump(mode="json")))
            return [[float(value) for value in values] for values in (curve.accuracy_E, curve.seconds_E)]

        pool = Played(LanePlan(num, 1, 1, 0.0), "", folder / "work")
        pool.start()
        desk = Desk(study, settings, lambda trial, seconds: Cost(train=seconds), 0.0)
        seen: dict[str, float] = {"memory_mb": 0.0, "store_mb": 0.0}

        def look(event: Any) -> None:
            if event["type"] == "end":
                held = [p for p in psutil.process_iter(["cmdline"]) if "Trainable" in "".join(p.info["cmdline"] or [])]
                seen["memory_mb"] = max(seen["memory_mb"], sum(p.memory_full_info().uss for p in held) / 1e6)
                total, free = ray.cluster_resources(), ray.available_resources()
                used = total["object_store_memory"] - free.get("object_store_memory", 0.0)
                seen["store_mb"] = max(seen["store_mb"], used / 1e6)

        began, cpu = time.monotonic(), time.process_time()
        hooks = search.Hooks(make_job=recorded, on_event=look)
        ended = search.run(desk, pool, grid.epochs, hooks, folder / "work", folder / "rungs.jsonl")
        wall = time.monotonic() - began
        mailbox = next(p for p in psutil.process_iter(["cmdline"]) if "Mailbox" in "".join(p.info["cmdline"] or []))
        times = mailbox.cpu_times()
        ray.get(pool.mailbox.close.remote())
        ray.get(pool.playing)
        return {
            "lanes": num,
            "trials": num * trials_a_lane,
            "busy": ended.busy or 0.0,
            "driver": (time.process_time() - cpu) / wall,
            "mailbox": (times.user + times.system) / wall,
            **seen,
            "wall_s": wall,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", action="store_true")
    parser.add_argument("--lanes", action="store_true")
    parser.add_argument("--most-lanes", type=int, default=LANES[-1])
    parser.add_argument("--trials-a-lane", type=int, default=4)
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    if options.nodes or not options.lanes:
        one = on_nodes(1)
        with HeadMemory() as memory:
            two = on_nodes(2)
        print(f"{'':<12}{'1 node':>12}{'2 nodes':>12}{'ratio':>8}")
        for stage in one:
            print(f"{stage:<12}{one[stage]:>10.1f}/s{two[stage]:>10.1f}/s{two[stage] / one[stage]:>8.2f}")
            figures[f"{stage}_ratio"] = round(two[stage] / one[stage], 3)
        print("a lane on the head: " + ", ".join(f"{name} {mb:.0f} MB" for name, mb in memory.found.items()), end="")
        print(f", together {sum(memory.found.values()):.0f} MB")
        figures["head_mb_a_lane"] = round(sum(memory.found.values()))
    if options.lanes or not options.nodes:
        print(
            f"{'lanes':>6}{'trials':>8}{'busy':>8}{'driver':>8}{'mailbox':>9}{'of trials':>12}{'store':>9}{'clock':>9}"
        )
        for num in [n for n in LANES if n <= options.most_lanes]:
            row = with_lanes(num, options.trials_a_lane)
            print(
                f"{num:>6}{row['trials']:>8.0f}{row['busy']:>8.1%}{row['driver']:>8.1%}{row['mailbox']:>9.1%}"
                f"{row['memory_mb']:>9.0f} MB{row['store_mb']:>6.1f} MB{row['wall_s']:>7.0f} s",
                flush=True,
            )
            figures[f"busy_{num}"], figures[f"memory_mb_{num}"] = round(row["busy"], 4), round(row["memory_mb"])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
