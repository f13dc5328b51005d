"""What the adapted teachers can do: said before the search, kept with the results, compared with the best student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sweeper import tables
from sweeper.ledger import SECONDS_PER_HOUR
from sweeper.plan import Plan
from sweeper.store import Record

if TYPE_CHECKING:
    from sweeper.finalists import Candidate


def told(plan: Plan, records: Mapping[str, Record]) -> dict[str, str]:
    """By teacher: its accuracy on validation, how it was adapted, and the device time that this took."""
    found = {}
    for name, item in plan.adapt.items():
        record = records[item.key]
        way = "as it is" if record.meta["adapt"] == "none" else record.meta["adapt"].replace("_", " ")
        if record.charge is not None:
            hours = record.charge.seconds / SECONDS_PER_HOUR
            unit, factor = tables.cost_unit([hours], record.charge.device)
            way += f", {tables.significant(hours * factor, 3)} {unit}"
        found[name] = f"{tables.accuracy_text(record.meta['accuracy_val'])} on validation ({way})"
    return found


def weaker(plan: Plan, records: Mapping[str, Record], candidates: Sequence[Candidate]) -> list[str]:
    """A sentence for each teacher that the best student of the search left behind on validation."""
    best = max(candidates, key=lambda candidate: candidate.accuracy_val, default=None)
    if best is None:
        return []
    student = f"the best student ({tables.accuracy_text(best.accuracy_val)}, trial {best.trial})"
    return [
        f"teacher {name} ({tables.accuracy_text(accuracy)}) is worse than {student}, both on validation: who imitates "
        "it learns its mistakes; adapt it otherwise, take a better one, or leave it out"
        for name, item in plan.adapt.items()
        if (accuracy := float(records[item.key].meta["accuracy_val"])) < best.accuracy_val
    ]


def facts(plan: Plan, records: Mapping[str, Record], candidates: Sequence[Candidate]) -> dict[str, str]:
    """Both for the head of the report, as name and text."""
    teachers = "; ".join(f"{name}: {what}" for name, what in told(plan, records).items())
    found = {"teachers": teachers, "warning": " ".join(f"{line}." for line in weaker(plan, records, candidates))}
    return {name: text for name, text in found.items() if text}
