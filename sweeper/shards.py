"""One pass of workers over a table of rows, sharded by Ray Data: the shape that all three stages share.

Workers write their own rows into the store and hand back a one-row summary for each batch, which streams to the driver:
that is the progress bar, the ledger and the check of what was written in one, and a batch that Ray runs a second time
overwrites its own file instead of appending rows (as `Dataset.write_parquet` would).
"""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from sweeper import interrupt, staged
from sweeper.errors import SweeperError
from sweeper.fingerprint import fingerprint
from sweeper.store import Store

Summary = dict[str, Any]
REFUSAL = "refusal"  # the column of a pickled SweeperError


class Progress(Protocol):
    """Told the number of rows that are done since the last call, and of bytes that were written for them.

    Those of an earlier build are not `is_new`.
    """

    def __call__(self, rows: int, size: int = 0, /, *, is_new: bool = True) -> None: ...


class Worker(Protocol):
    """A picklable class whose instances turn one batch of rows into written files and a flat summary of scalars.

    The summary has `rows` and `bytes` that were written.
    """

    def __call__(self, rows: pa.Table) -> Summary: ...


@dataclass(frozen=True)
class Shape:
    """How a pass is spread: rows a batch, and what one worker holds. Never part of an artifact's identity."""

    batch_size: int
    cpus: float = 1
    gpus: float = 0
    pool: int = 1  # workers at most; 0: tasks instead of a pool of actors, for work without a model to load


def quiet() -> None:
    """No progress bars and no log lines of Ray Data on the user's terminal."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error is raised; its log line would come besides


def pool_size(num_rows: int, batch_size: int) -> int:
    """Workers for a pass, at most: none without two batches of work of its own."""
    return max(1, -(-num_rows // (2 * batch_size)))


def _pool(shape: Shape, num_batches: int) -> ray.data.ActorPoolStrategy:
    """A worker a slot to begin with; nodes that join bring more, and those that go take theirs away."""
    most, totals = min(shape.pool, num_batches), ray.cluster_resources()
    slots = int(totals.get("GPU", 0) if shape.gpus else totals.get("CPU", 1))
    return ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=max(1, min(most, slots)))


def _file_name(name_from: Sequence[Any]) -> str:
    return f"{fingerprint([str(x) for x in name_from])[:24]}.parquet"


def write_rows(
    store: Store, prefix: str, table: pa.Table, name_from: Sequence[Any], note: staged.Note | None = None
) -> int:
    """Write rows as one parquet file below a staged prefix, named by what they are; returns its bytes.

    Args:
        note: what a build that takes the file over has to know besides its rows: what they cost.
    """
    buffer = io.BytesIO()
    pq.write_table(staged.with_note(table, note or {}), buffer, compression="zstd", write_page_checksum=True)
    store.write_bytes(prefix, _file_name(name_from), buffer.getvalue())
    return len(buffer.getvalue())


def read_rows(store: Store, prefix: str, name_from: Sequence[Any]) -> pa.Table:
    """Read back what `write_rows` wrote under that name. Raises Spoilt where it is not there, whole."""
    table = staged.read_whole(store, f"{prefix}/{_file_name(name_from)}")
    if table is None:
        raise staged.Spoilt(f"store: {store.uri}/{prefix} does not hold what was just written; run again")
    return table


def written(store: Store, prefix: str, columns: Sequence[str]) -> pa.Table:
    """What lies below a staged prefix, to be checked before it is committed."""
    return staged.read(store, prefix, list(store.storage.files(prefix, deep=False)), columns)[0]


class _TableWorker:
    """What Ray Data calls: builds the worker with its first batch, and turns its summaries into one-row tables.

    A `SweeperError` travels home as a row: Ray Data's own wrapper keeps the message of an exception and loses its type,
    and an actor that fails in its constructor is started again and again.
    """

    def __init__(self, make: Callable[[], Worker]) -> None:
        self.make = make
        self.worker: Worker | None = None

    def __call__(self, rows: pa.Table) -> pa.Table:
        try:
            if self.worker is None:
                self.worker = self.make()
            summary = self.worker(rows)
        except SweeperError as error:
            summary = {REFUSAL: pickle.dumps(error)}
        return pa.table({name: [value] for name, value in summary.items()})


def run(
    rows: pa.Table | Sequence[pa.Table],
    make: Callable[[], Worker],
    shape: Shape,
    progress: Progress | None = None,
) -> list[Summary]:
    """Send all rows through workers and collect their summaries, in no particular order.

    Args:
        rows: light rows (ids, labels, references); a worker reads heavy data from the store itself. A table is cut into
            batches; several tables are the batches.
        make: builds a worker inside its process; called once for each actor, or once for each task.
        progress: told `summary["rows"]` and `summary["bytes"]` as batches come back.

    Raises:
        SweeperError: as a worker raised it.
    """
    batches = rows
    if isinstance(rows, pa.Table):
        batches = [rows.slice(start, shape.batch_size) for start in range(0, len(rows), shape.batch_size)]
    if not batches:  # an earlier build had finished them all
        return []
    quiet()
    source = ray.data.from_arrow(list(batches))
    options: Mapping[str, Any] = {
        "batch_format": "pyarrow",
        "batch_size": None,
        "num_cpus": shape.cpus,
        "num_gpus": shape.gpus or None,
        "zero_copy_batch": True,
    }
    if shape.pool:
        done = source.map_batches(
            _TableWorker,
            fn_constructor_kwargs={"make": make},
            compute=_pool(shape, len(batches)),
            **options,
        )
    else:
        done = source.map_batches(lambda batch: _TableWorker(make)(batch), **options)
    summaries: list[Summary] = []
    for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        interrupt.look()
        for summary in batch.to_pylist():
            if summary.get(REFUSAL) is not None:
                raise pickle.loads(summary[REFUSAL])
            summaries.append(summary)
            if progress is not None:
                progress(int(summary["rows"]), int(summary["bytes"]))
    return summaries


def fixed_lists(values: np.ndarray, dtype: pa.DataType) -> pa.Array:
    """A 2-D array as a column of fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=dtype)
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
