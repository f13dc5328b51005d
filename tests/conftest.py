"""What tests share: one Ray session for the whole run, started by the first test that asks for it, and a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in Ray's workers, which inherit it

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray of two CPUs, whose workers import this checkout even where it is not installed."""
    import ray

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *([before] if before else [])])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    yield
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def store(tmp_path: Path):
    """An empty store in a folder of the test's own."""
    from sweeper.store import Store

    return Store(str(tmp_path / "store"))
