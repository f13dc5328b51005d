"""Gets what a trial reads from the store, and keeps it for the trials that follow on a lane."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch

from sweeper import adapted, decoded, mapped, row_groups, sources
from sweeper.batches import DataRefs, ImageSplit, StreamedSplit, TeacherRefs, TrialData, tensors
from sweeper.errors import RunFailed
from sweeper.losses import COLUMNS
from sweeper.mapped import Arrays, Filled
from sweeper.shard_cache import BOUND_VARIABLE, FOLDER_VARIABLE, ShardCache
from sweeper.sources import CachedTargets, LiveTeacher, TargetSource
from sweeper.streamed import StreamedImages
from sweeper.views import ViewConfig

if TYPE_CHECKING:
    import pyarrow as pa

    from sweeper.store import Record, Store
    from sweeper.teachers import Teacher


def memory_free() -> int:
    """Bytes that this machine could still give to a process."""
    return int(psutil.virtual_memory().available)


class _NoRoom(RunFailed):
    """For images as an array, neither in the node's cache nor in its memory."""


class DataCache:
    """Reads artifacts as trial data and keeps the last few arrays for the trials that follow on a lane."""

    def __init__(self, store: Store, capacity: int = 32) -> None:
        self.store = store
        self.capacity = capacity
        self._held: dict[tuple[str, ...], Arrays] = {}
        self._too_large: set[tuple[str, ...]] = set()
        self._teachers: dict[str, Teacher] = {}
        self._classifiers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def table(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The artifact's rows. Raises RunFailed when the store no longer holds it."""
        return self.store.read_table(self.record(key), columns)

    def record(self, key: str) -> Record:
        """The artifact's record. Raises RunFailed when the store no longer holds it."""
        record = self.store.get(key)
        if record is None:
            raise RunFailed(f"artifact {key[:12]} is not in {self.store.uri}; run again to build it")
        return record

    def trial_data(
        self,
        refs: DataRefs,
        *,
        needs: frozenset[str],
        view_config: ViewConfig,
        view_seed: int,
        with_test: bool,
    ) -> TrialData:
        """Assemble one trial's data on the CPU; `needs` as `losses.INPUTS` names it, `with_test` only for finalists."""
        record = self.record(refs.images)
        size = int(record.meta["image_size"])
        sets = (refs.images, *refs.synthetic)
        pool, is_streamed = self._training_images(sets, size)
        num_real = int(pool["num_real"][0])
        num = num_real + refs.num_synthetic
        if num > len(pool["labels"]):
            left = num - len(pool["labels"])
            raise RunFailed(f"{left} of {refs.num_synthetic} synthetic images are missing from {self.store.uri}")
        keys_N = pool["keys"][:num]
        live = [teacher for teacher in refs.teachers if not teacher.targets]
        source: TargetSource | None = None
        if live:
            source = self._live(live[0], needs, keys_N, view_config, view_seed)
        elif refs.teachers:
            members = [self._cached(teacher, needs, sets, keys_N) for teacher in refs.teachers]
            source = replace(sources.together(members, separate=refs.is_separate), match=view_config.match)
        return TrialData(
            train=self._streamed(sets, pool, num, size) if is_streamed else tensors(pool, num),
            keys_N=keys_N,
            num_real=num_real,
            source=source,
            val=self._split(refs.images, "val", size),
            test=self._split(refs.images, "test", size) if with_test else None,
            class_names=tuple(record.meta["class_names"]),
            image_size=size,
            views=view_config,
            view_seed=view_seed,
        )

    def _arrays(
        self,
        what: str,
        keys: Sequence[str],
        names: Sequence[str],
        make: Callable[[Sequence[str]], Mapping[str, decoded.Made]],
    ) -> Arrays:
        """The named arrays made from these artifacts; the ones that were read last are kept."""
        held = self._held.pop((what, *keys), {})
        missing = [name for name in names if name not in held]
        if missing:
            records = [self.record(key) for key in keys]
            # by contents: an artifact that was damaged and made anew keeps its key
            contents = [[sorted(entry.sha256 for entry in one.files), one.columns] for one in records]
            held = held | mapped.arrays([what, contents], missing, make)
        if len(self._held) >= self.capacity:
            self._held.pop(next(iter(self._held)))
        self._held[(what, *keys)] = held
        return held

    def _training_images(self, sets: Sequence[str], size: int) -> tuple[Arrays, bool]:
        """`decoded.POOL`; or, where that has no room, `decoded.STREAMED`, and that they are to be streamed."""
        if tuple(sets) not in self._too_large:
            try:
                return self._arrays("pool", sets, decoded.POOL, lambda _: self._pool(sets, size)), False
            except _NoRoom:
                self._too_large.add(tuple(sets))
        return self._arrays("streamed", sets, decoded.STREAMED, lambda _: self._pieces(sets)), True

    def _listed(self, sets: Sequence[str]) -> tuple[pa.Table, list[pa.Table]]:
        """Rows of the images and of each synthetic set, without pixels."""
        images, *synthetic = sets
        made = [self.table(key, ["sample_id", "label", "index"]) for key in synthetic]
        return self.table(images, ["sample_id", "label", "split"]), made

    def _pieces(self, sets: Sequence[str]) -> Mapping[str, decoded.Made]:
        records = map(self.record, sets)
        groups = [(n, *group) for n, record in enumerate(records) for group in row_groups.listed(self.store, record)]
        return decoded.in_pieces(*self._listed(sets), np.array(groups, dtype=np.int64))

    def _streamed(self, sets: Sequence[str], arrays: Arrays, num: int, size: int) -> StreamedSplit:
        """The first so many of the training images that `arrays` are of."""
        records = [self.record(key) for key in sets]

        def read(piece: int) -> np.ndarray:
            which, file, number, _ = arrays["groups"][piece].tolist()
            return decoded.pixels(row_groups.read(self.store, records[which], file, number, ["image"])["image"], size)

        images = StreamedImages(arrays["piece"][:num], arrays["row"][:num], size, read)
        return StreamedSplit(images, torch.from_numpy(arrays["labels"][:num]))

    def _pool(self, sets: Sequence[str], size: int) -> dict[str, decoded.Made]:
        return self._in_bounds(decoded.pool(*self._listed(sets), lambda: self._files(sets, "train"), size))

    def _split(self, images: str, name: str, size: int) -> ImageSplit:
        def make(_: Sequence[str]) -> dict[str, decoded.Made]:
            index = decoded.of_split(self.table(images, ["sample_id", "label", "split"]), name)
            return self._in_bounds(decoded.laid_out(index, lambda: self._files([images], name), size))

        return tensors(self._arrays(name, (images,), decoded.SPLIT, make))

    def _files(self, sets: Sequence[str], split: str) -> Iterator[pa.Table]:
        """Rows of one split of the images, and all synthetic ones, a file at a time."""
        images, *synthetic = map(self.record, sets)
        for table in self.store.tables(images, ["sample_id", "split", "image"]):
            yield decoded.of_split(table, split)
        for record in synthetic:
            yield from self.store.tables(record, ["sample_id", "image"])

    @staticmethod
    def _in_bounds(made: dict[str, decoded.Made]) -> dict[str, decoded.Made]:
        """The same, with a refusal in place of images that neither the node's cache nor its memory has room for."""
        images = made["images"]
        assert isinstance(images, Filled)

        def check() -> None:
            needed, free = images.num_bytes, memory_free()
            if needed > free:
                num_images, size = images.shape[0], images.shape[-1]
                raise _NoRoom(
                    f"{num_images:,} images of {size} x {size} pixels take {needed / 1e9:.3g} GB as arrays, once on "
                    f"each node; on {socket.gethostname()} {free / 1e9:.3g} GB of memory are free, and its cache of "
                    f"{ShardCache.from_environment().max_bytes / 1e9:.3g} GB has no room: raise {BOUND_VARIABLE}, "
                    f"with {FOLDER_VARIABLE} on a disk that holds them, or use a smaller dataset.image_size"
                )

        return made | {"images": replace(images, before_memory=check)}

    def _targets(self, tables: Sequence[str], sets: Sequence[str], names: Sequence[str]) -> Arrays:
        images, synthetic = self._listed(sets)
        parts = [decoded.of_split(images, "train"), *map(decoded.in_order, synthetic)]
        ids = [part["sample_id"].to_pylist() for part in parts]
        return decoded.targets([self.table(key, ["sample_id", "view", *names]) for key in tables], ids, names)

    def _cached(
        self, refs: TeacherRefs, needs: frozenset[str], sets: Sequence[str], keys_N: np.ndarray
    ) -> CachedTargets:
        """A teacher's stored columns that the trial needs, for the images of these sets in order."""
        names = [name for name in sorted(COLUMNS) if name in needs]
        keys = (*refs.targets, *sets)
        found = self._arrays("targets", keys, ["box", *names], lambda made: self._targets(refs.targets, sets, made))
        columns = {name: torch.from_numpy(found[name][: len(keys_N)]) for name in names}
        if refs.adapt not in self._classifiers:
            self._classifiers[refs.adapt] = adapted.load_classifier(self.store, self.record(refs.adapt))
        classifier = self._classifiers[refs.adapt]
        return CachedTargets(
            keys_N=keys_N,
            views_NVP=found["box"][: len(keys_N)],
            columns=columns,
            classifiers=(classifier,),
            widths=(classifier[0].shape[1],),
        )

    def _live(
        self,
        refs: TeacherRefs,
        needs: frozenset[str],
        keys_N: np.ndarray,
        view_config: ViewConfig,
        view_seed: int,
    ) -> LiveTeacher:
        """The teacher itself; kept for the trials that follow."""
        if refs.adapt not in self._teachers:
            (images, *_) = self.record(refs.adapt).dependencies  # of the task; those of a pool have no classes
            class_names = self.record(images).meta["class_names"]
            self._teachers = {refs.adapt: adapted.load_teacher(self.store, refs.adapt, refs.config, class_names)}
        teacher = self._teachers[refs.adapt]
        num_maps = len(teacher.tap_points.maps) if "maps" in needs else 0
        return LiveTeacher(
            teacher=teacher, keys_N=keys_N, views=view_config, view_seed=view_seed, needs=needs, num_maps=num_maps
        )
