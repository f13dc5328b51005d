"""How many views of an image a cache needs: test accuracy against their number, and against a teacher in the loop.

    python benchmarks/views.py

The task of `search_spaces/datalimited.yaml` (30 labelled digits, teacher `cnn`, student `test_resnet`, 15 epochs of
640 samples), plain torch, no Ray; cross-entropy, KL and `align_uniform`, each at weight 1. The arms differ in targets:

- **V views**: cached for V views an image. View 0 is the canonical one, which is only trained on where there is no
  other, so that a student sees V - 1 crops of each image again and again. Fewer views are the first ones of more.
- **fresh**: the teacher in the loop, a view that was never seen before in every pass.
- **fixed**: `views.match: fixed`, the views of the most that are cached while every target is that of view 0: the
  negative control of Beyer et al. 2022 (arXiv 2106.05237), "one fixed teacher output per image".
- **no teacher**: cross-entropy alone, fresh views.

Every arm is trained with the same seeds, which decide its weights and its order. `against fresh` is the mean over the
seeds of the difference in points, with its standard error. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from cached_vs_online import RECIPE, test_accuracy, trial
from teacher_pairs import PAIRS, Task, prepare

from sweeper import cpu
from sweeper.batches import TrialData
from sweeper.ledger import device_name
from sweeper.sources import CachedTargets, LiveTeacher
from sweeper.views import ViewConfig

FRESH, FIXED, ALONE = "fresh", "fixed", "no_teacher"
NEVER_TWICE = 2**40  # views of an image: a live teacher draws them when they are looked at


def arms(task: Task, counts: Sequence[int]) -> dict[str, TrialData]:
    """What each arm trains on, by name; the targets of all counts are those of the task's own cache."""
    taught, live = task.data["cached"], task.data["online"].source
    assert isinstance(taught.source, CachedTargets)
    assert isinstance(live, LiveTeacher)
    law = live.views.model_copy(update={"per_image": NEVER_TWICE})
    found = {f"views_{count}": replace(taught, source=first_views(taught.source, count)) for count in counts}
    found[FRESH] = replace(taught, source=replace(live, views=law))
    found[FIXED] = replace(taught, source=replace(first_views(taught.source, max(counts)), match="fixed"))
    found[ALONE] = task.data["no_teacher"]
    return found


def first_views(source: CachedTargets, count: int) -> CachedTargets:
    """The cache of the first views alone, which is what a pass over so many would have made."""
    columns = {name: column[:, :count].contiguous() for name, column in source.columns.items()}
    return replace(source, views_NVP=source.views_NVP[:, :count], columns=columns)


def figures(found: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The JSON line from the accuracies of each arm, a figure a seed."""
    flat: dict[str, Any] = {}
    for name, accuracies in found.items():
        flat[f"{name}_test"] = round(statistics.fmean(accuracies), 4)
        flat[f"{name}_test_std"] = _rounded(_deviation(accuracies))
        if name != FRESH:
            less = [one - fresh for one, fresh in zip(accuracies, found[FRESH], strict=True)]
            flat[f"{name}_against_fresh"] = round(statistics.fmean(less), 4)
            flat[f"{name}_against_fresh_error"] = _rounded(_deviation(less) / math.sqrt(len(less)))
    return flat


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def table(found: Mapping[str, Any], names: Sequence[str]) -> str:
    """Markdown, accuracies in percent."""
    lines = ["| targets | test, % | against fresh, points |", "|---|---:|---:|"]
    for name in names:
        cells = [name.replace("views_", "views: ").replace("_", " ")]
        for what, error in (("test", "test_std"), ("against_fresh", "against_fresh_error")):
            mean, spread = found.get(f"{name}_{what}"), found.get(f"{name}_{error}")
            sign = "+" if what == "against_fresh" else ""
            cells.append("" if mean is None else f"{100 * mean:{sign}.1f}")
            cells[-1] += "" if spread is None else f" ± {100 * spread:.1f}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--views", nargs="+", type=int, default=[1, 2, 4, 8, 16], metavar="V")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=RECIPE["epochs"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json-only", action="store_true")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cpu":
        cpu.prepare(threads=1)
    pair = replace(PAIRS["embedded"], views=ViewConfig(per_image=max(options.views)))
    data = arms(prepare(pair, 0, device), options.views)
    found: dict[str, list[float]] = {name: [] for name in data}
    for seed in range(options.seeds):
        for name, read in data.items():
            found[name].append(test_accuracy(trial(pair, name, epochs=options.epochs), read, seed, device))
            if not options.json_only:
                print(f"seed {seed}, {name}: {100 * found[name][-1]:.1f}%", flush=True)
    said = figures(found)
    if not options.json_only:
        print(f"\n{table(said, list(data))}\n")
    print(json.dumps({**said, "seeds": options.seeds, "epochs": options.epochs, "device": device_name(device)}))


if __name__ == "__main__":
    main()
