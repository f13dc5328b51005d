"""What tests share: one Ray session and the artifacts of one small sweep, made for the first test that asks."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from small_student import Small
    from small_sweep import Built

    from sweeper.lane import LanePool
    from sweeper.store import Store

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in Ray's workers, which inherit it
os.environ["SWEEPER_CACHE"] = tempfile.mkdtemp(prefix="sweeper-tests-")
atexit.register(shutil.rmtree, os.environ["SWEEPER_CACHE"], ignore_errors=True)

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray set up as `sweeper run` does it, with room for the shared lane and for one of two workers."""
    import ray

    from sweeper import session

    wanted = {**session.DRIVER_ENVIRONMENT, **session.WORKER_ENVIRONMENT}
    wanted["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH")])
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            patch.setenv(name, value)
        session.hush_daemons()
        ray.init(
            address="local",
            num_cpus=3,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def generator_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional diffusers pipeline of ten classes with random weights, as a folder."""
    import torch
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        num_class_embeds=10,
    )
    path = tmp_path_factory.mktemp("pipelines") / "tiny"
    ConsistencyModelPipeline(unet, CMStochasticIterativeScheduler()).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion with random weights, as a folder."""
    import tiny_pipelines

    return tiny_pipelines.stable_diffusion(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture(scope="session")
def built(ray_session: None, generator_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The small sweep with all of its artifacts, built by the first process of the test run that asks for it."""
    import small_sweep

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "small"
    return small_sweep.build_once(folder, generator_folder)


@pytest.fixture(scope="session")
def pool(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanePool]:
    """One lane of one worker over the small sweep's store; its events and job names are shared by all tests."""
    from sweeper.lane import LanePool
    from sweeper.slots import LanePlan

    with LanePool(LanePlan(1, 1, 1, 0.0), built.store.uri, tmp_path_factory.mktemp("lane")) as running:
        yield running


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A run of one trained student, for the tests of what is handed over; needs no Ray."""
    import small_student

    return small_student.make(tmp_path_factory.mktemp("small_student"))


@pytest.fixture
def own(built: Built, tmp_path: Path) -> Built:
    """The small sweep with a copy of its store, for tests that change it."""
    from sweeper.store import Store

    return replace(built, store=Store(str(shutil.copytree(built.store.uri, tmp_path / "own"))))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a folder of the test's own."""
    from sweeper.store import Store

    return Store(str(tmp_path / "store"))
