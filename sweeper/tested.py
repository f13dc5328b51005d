"""What the finalists reached: the Pareto table and the ablation, each retraining by itself, and the students' mistakes.

The test split is for readers only: rows were chosen on validation before any of this was looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sweeper import finalists
from sweeper.ledger import SECONDS_PER_HOUR, Cost
from sweeper.plan import Plan, artifact_uses
from sweeper.results import RunFolder
from sweeper.rows import FinalRow, Record

if TYPE_CHECKING:
    from sweeper.harvest import Final
    from sweeper.store import Record as Artifact


def write(
    folder: RunFolder, plan: Plan, artifacts: Mapping[str, Artifact], finals: Sequence[Final], rows: Sequence[FinalRow]
) -> None:
    """Write pareto.*, ablation.*, finalists.parquet, confusion.parquet and models/; one row a final, in their order."""
    front = sorted((row for row in rows if row.role == "front"), key=lambda r: (-r.accuracy_val, r.cost.total))
    ranks = [front.index(row) + 1 if row.role == "front" else None for row in rows]
    folder.write_pareto([replace(row, rank=rank) for rank, row in enumerate(front, 1)])
    folder.write_ablation([row for row in rows if row.role != "front"])
    folder.write_finalists(
        [record for pair in zip(finals, ranks, strict=True) for record in by_seed(*pair, plan, artifacts)]
    )
    mistakes: list[Record] = []
    for final, rank, row in zip(finals, ranks, rows, strict=True):
        if rank is not None:
            name = _job_name(final, final.summary.model_seed)
            folder.write_model(row.extra["model"], final.outcomes.model(name))
            counts = _outcome(final, final.summary.model_seed).get("confusion", ())  # none in an earlier version's
            mistakes += confusion(counts, {"rank": rank, "model": row.extra["model"]}, plan.index.class_names)
    folder.write_confusion(mistakes)


def by_seed(final: Final, rank: int | None, plan: Plan, artifacts: Mapping[str, Artifact]) -> Iterator[Record]:
    """One record a retraining; `rank` is None for an arm of the ablation."""
    entry = final.entry
    uses = artifact_uses(plan, entry.config, artifacts)
    for seed in final.seeds:
        outcome = _outcome(final, seed)
        yield {
            "role": entry.role,
            "rank": rank,
            "trial": entry.trial,
            "epochs": outcome["epochs"],
            "seed": seed,
            "accuracy_val": outcome["accuracy_val"],
            "accuracy_test": outcome["accuracy_test"],
            "gpu_hours": Cost.alone(outcome["train_seconds"], uses).total / SECONDS_PER_HOUR,
            "gpu_hours_train": outcome["train_seconds"] / SECONDS_PER_HOUR,
        }


def confusion(counts: Sequence[Sequence[int]], student: Record, class_names: Sequence[str]) -> Iterator[Record]:
    """One record a pair of classes that occurred, named.

    Args:
        counts: class, what it was taken for, images. student: what the records say of whose mistakes they are.
    """
    for truth, taken, images in counts:
        yield {**student, "truth": class_names[truth], "taken_for": class_names[taken], "images": images}


def _job_name(final: Final, seed: int) -> str:
    return finalists.job_name(final.entry.config, seed, final.entry.epochs)


def _outcome(final: Final, seed: int) -> dict[str, Any]:
    found = final.outcomes.get(_job_name(final, seed))
    assert found is not None, "it was summarised"
    return found
