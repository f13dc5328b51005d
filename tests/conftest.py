"""What tests share: one Ray session and one small sweep's artifacts for the whole run, made for the first test that asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from small_sweep import Built

    from sweeper.store import Store

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in Ray's workers, which inherit it

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray of two CPUs, set up as `sweeper run` does it, whose workers can import this checkout and the tests."""
    import ray

    from sweeper import session

    wanted = {**session.DRIVER_ENVIRONMENT, **session.WORKER_ENVIRONMENT}
    wanted["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH")])
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            patch.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=2,
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
def built(ray_session: None, generator_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The small sweep with all of its artifacts."""
    import small_sweep

    tree = small_sweep.space_tree(generator_folder)
    return small_sweep.build(tree, tmp_path_factory.mktemp("small"), generator_folder)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a folder of the test's own."""
    from sweeper.store import Store

    return Store(str(tmp_path / "store"))
