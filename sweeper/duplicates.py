"""Images that lie in two places, found by a digest of their pixels as they are stored, whatever their files look like.

They are kept, because splits and pools are the user's own, and reported: an image of test that is in train or in a
pool, too, makes `accuracy_test` better than it is, and one of val the search's choice worse.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sweeper.datasets import SPLITS, DatasetIndex
from sweeper.plan import Plan
from sweeper.record import Record
from sweeper.store import Store

DIGEST_BYTES = 16
MAX_EXAMPLES = 20
FILE = "digests.bin"  # of an images artifact: `DIGEST_BYTES` of each image of the index; zeros for an unreadable one


def digest(image: bytes) -> bytes:
    """Of an image's raw pixels."""
    return hashlib.blake2b(image, digest_size=DIGEST_BYTES).digest()


def across_splits(digests: bytes, index: DatasetIndex) -> list[dict[str, Any]]:
    """Images that lie in two splits.

    Args:
        digests: `DIGEST_BYTES` of each image of `index`, in its order; zeros count as no image.

    Returns:
        For each pair of splits that share some: `splits` (two names), `count` (how many images of the second are in the
        first) and `examples` (at most `MAX_EXAMPLES` pairs of sample ids).
    """
    by_split: dict[str, dict[bytes, list[str]]] = {split: {} for split in SPLITS if split in index.splits}
    for split, key, sample_id in zip(index.splits, _cut(digests), index.sample_ids, strict=True):
        if any(key):
            by_split[split].setdefault(key, []).append(sample_id)
    names = list(by_split)
    pairs = [(one, other) for number, one in enumerate(names) for other in names[number + 1 :]]
    return list(_shared((one, by_split[one], other, by_split[other]) for one, other in pairs))


def across_pools(plan: Plan, store: Store, records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Images of val and test that a pool holds, too, as of `across_splits`; the first of the names is the pool's.

    Nothing is known of artifacts that were made before they had `FILE`.
    """
    sets = {name: (plan.pool_indexes[name], records[item.key]) for name, item in plan.pools.items()}
    sets = {name: item for name, item in sets.items() if _has_digests(item[1])}
    task = records[plan.images.key]
    if not sets or not _has_digests(task):
        return []
    held: dict[str, dict[bytes, list[str]]] = {"val": {}, "test": {}}
    rows = zip(plan.index.splits, _cut(store.read_bytes(task, _file(task))), plan.index.sample_ids, strict=True)
    for split, key, sample_id in rows:
        if split in held and any(key):
            held[split].setdefault(key, []).append(sample_id)
    wanted = held["val"].keys() | held["test"].keys()
    found: list[dict[str, Any]] = []
    for name, (index, record) in sets.items():
        pool: dict[bytes, list[str]] = {}
        for key, sample_id in zip(_cut(store.read_bytes(record, _file(record))), index.sample_ids, strict=True):
            if key in wanted:
                pool.setdefault(key, []).append(sample_id)
        found += _shared((f"pool {name}", pool, split, images) for split, images in held.items())
    return found


def _shared(
    pairs: Iterable[tuple[str, Mapping[bytes, Sequence[str]], str, Mapping[bytes, Sequence[str]]]],
) -> Iterator[dict[str, Any]]:
    """What `across_splits` tells of each pair of names and images by digest that has some in common."""
    for one, first, other, second in pairs:
        examples = [[first[key][0], name] for key in second if key in first for name in second[key]]
        if examples:
            yield {"splits": [one, other], "count": len(examples), "examples": sorted(examples)[:MAX_EXAMPLES]}


def _cut(digests: bytes) -> Iterator[bytes]:
    return (digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES))


def _has_digests(record: Record) -> bool:
    return any(entry.name.endswith(FILE) for entry in record.files)


def _file(record: Record) -> str:
    return next(entry.name for entry in record.files if entry.name.endswith(FILE))
