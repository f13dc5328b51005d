"""Records the learning curve of every configuration of a grid, with sweeper's own lanes.

    python benchmarks/record_curves.py --name final
    python benchmarks/record_curves.py --name anytime --set trial.train.schedule=wsd --set trial.train.ema=0.99

The grid is `benchmarks/curves/space.yaml`. A copy of it whose `search.points` lists every configuration goes through
`sweeper run`, with as many trials and nobody stopped; killed, the same command goes on where it was. Then accuracy and
device-seconds at every epoch, and the shared artifacts' device-seconds as far as each configuration used them, are
packed into `benchmarks/curves/<name>.parquet`, which `replay.Grid.read` reads. About 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from replay import key_of

from sweeper import spacefile
from sweeper.ledger import SHARED_STAGES
from sweeper.located_yaml import Document
from sweeper.prepared import Options, prepare
from sweeper.space import Space, nested

FOLDER = Path(__file__).parent / "curves"
SPACE = FOLDER / "space.yaml"
SECONDS = 3600.0  # in an hour


def configurations(space: Space, limit: int | None = None) -> list[dict[str, Any]]:
    """Every configuration as trees of the leaves that vary, or `limit` of them, evenly spread."""
    found = [nested(values) for values in space.joint_finite(list(space.domains))]
    if limit is None or limit >= len(found):
        return found
    return [found[number * len(found) // limit] for number in range(limit)]


def recording(overrides: Sequence[str], limit: int | None) -> dict[str, Any]:
    """The space file of the recording: all configurations as points, and nothing that could stop one."""
    document = Document(SPACE)
    for override in overrides:
        document.override(override)
    points = configurations(spacefile.load(SPACE, overrides).space, limit)
    search = {
        "objectives": {"accuracy": "max", "gpu_hours": "min"},
        "trials": len(points),
        "sampler": "random",
        "scheduler": {"kind": "fifo"},
        "points": points,
    }
    finalists = {"count": 1, "seeds": 1, "ablate": False}
    return {**document.tree, "search": search, "finalists": finalists}


def pack(run: Path, space: Space, target: Path, facts: Mapping[str, str]) -> int:
    """Pack a finished run's trials and curves into one small file; returns how many configurations it holds.

    A row is one configuration: its leaves that vary, device-seconds of adapt, targets and synthetic as far as it used
    them, and the lists `accuracy` and `seconds` by epoch. A trial that failed has shorter lists.

    Raises:
        SystemExit: a configuration is missing from the run.
    """
    trials = pq.read_table(run / "trials.parquet").to_pylist()
    reports: dict[int, list[tuple[int, float, float]]] = {}
    for row in pq.read_table(run / "curves.parquet").to_pylist():
        entry = (row["epoch"], row["accuracy_val"], row["train_seconds"])
        reports.setdefault(row["trial"], []).append(entry)
    rows: dict[Any, dict[str, Any]] = {}
    epochs = 0
    for trial in trials:
        config = json.loads(trial["config"])
        curve = sorted(reports.get(trial["trial"], []))
        epochs = max(epochs, int(config["train"]["epochs"]))
        key = key_of(space, config)
        if key not in rows or trial["state"] == "completed":
            rows[key] = {
                **{path: dict(key).get(path) for path in space.domains},
                **{stage: trial[f"gpu_hours_{stage}"] * SECONDS for stage in SHARED_STAGES},
                "accuracy": [accuracy for _, accuracy, _ in curve],
                "seconds": [seconds for _, _, seconds in curve],
            }
    types = {**dict.fromkeys(SHARED_STAGES, pa.float32())}
    types |= dict.fromkeys(("accuracy", "seconds"), pa.list_(pa.float32()))
    columns = {
        name: pa.array([row[name] for row in rows.values()], types.get(name))
        for name in (*space.domains, *SHARED_STAGES, "accuracy", "seconds")
    }
    table = pa.table(columns).replace_schema_metadata({**facts, "epochs": str(epochs)})
    pq.write_table(table, target, compression="zstd", compression_level=19)
    return len(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", default="final", help="of the file below benchmarks/curves")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="as for `sweeper run`")
    parser.add_argument("--limit", type=int, help="so many configurations only, to try it out")
    parser.add_argument("--results", default="results")
    parser.add_argument("--store", default=".sweeper/store")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the packed file")
    options = parser.parse_args(arguments)
    tree = recording(options.set, options.limit)
    tree["name"] = f"curves-{options.name}"
    Path(options.results).mkdir(parents=True, exist_ok=True)
    path = Path(options.results) / f"{tree['name']}.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    where = Options(results=options.results, store=options.store)
    command = ["run", str(path), "--results", where.results, "--store", where.store]
    done = subprocess.run([sys.executable, "-c", "from sweeper.cli import main; main()", *command])
    if done.returncode:
        sys.exit(done.returncode)
    prepared = prepare(spacefile.load(path), where)
    space = Space(spacefile.load(SPACE, options.set).config.trial)
    target = options.out / f"{options.name}.parquet"
    found = pack(prepared.folder.path, space, target, {"overrides": " ".join(options.set)})
    wanted = len(tree["search"]["points"])
    print(json.dumps({"configurations": found, "wanted": wanted, "bytes": target.stat().st_size, "file": str(target)}))
    if found < wanted:
        sys.exit(f"{wanted - found} configurations are missing from {prepared.folder.path}")


if __name__ == "__main__":
    main()
