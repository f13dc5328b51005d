"""What the store's artifacts took on a device like this one: the best that can be known of others like them."""

from __future__ import annotations

import math

from sweeper.fingerprint import fingerprint
from sweeper.plan import Artifact, Plan
from sweeper.store import Record, Store


class Past:
    """Measured seconds by teacher or generator.

    Args:
        device: as `ledger.device_name` gives it; records of other devices say nothing.
        fixed: seconds of an adaptation that do not grow with its images.
    """

    def __init__(self, plan: Plan, store: Store, device: str, fixed: float) -> None:
        self.fixed = fixed
        self.makers = {item.key: item.spec["teacher"] for item in plan.adapt.values()}
        records = [r for r in store.records() if r.kind != "images"] if plan.missing(store) else []
        self.makers |= {r.key: r.spec["teacher"] for r in records if r.kind == "adapt"}
        self.groups: dict[str, list[Record]] = {}
        for record in records:
            if record.charge is not None and record.charge.device == device and record.charge.units:
                self.groups.setdefault(self._group(record), []).append(record)

    def _group(self, made: Artifact | Record) -> str:
        """Artifacts of one kind by one teacher or generator."""
        if made.kind == "targets":
            return fingerprint([made.kind, self.makers.get(made.spec["adapt"])])
        return fingerprint([made.kind, made.spec["teacher" if made.kind == "adapt" else "generator"]])

    def seconds(self, item: Artifact) -> float | None:
        """The seconds a unit of its like, without what does not grow with the images; None where there is none."""
        charges = [record.charge for record in self.groups.get(self._group(item), ()) if record.charge]
        if not charges:
            return None
        fixed = self.fixed if item.kind == "adapt" else 0.0
        grows = math.fsum(max(0.0, charge.seconds - fixed) for charge in charges) / sum(c.units for c in charges)
        return min(fixed, min(c.seconds for c in charges)) + grows * item.units
