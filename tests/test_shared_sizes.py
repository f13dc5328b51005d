"""Two real processes train one student: they agree on every divisor, also where one of them lacks a kind of images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from samples import trial_config, trial_data
from torch import distributed, multiprocessing

from sweeper.feeding import BatchStream
from sweeper.losses._module import NORMALIZING_BATCHES, Normalized
from sweeper.objective import Objective
from sweeper.student import build
from sweeper.trial import SyntheticUse, TrialConfig

NUM, NUM_REAL, BATCH, STEPS = 12, 4, 6, 60
LOSS = {"ce": 1.0, "kl": {"weight": 1.0}, "embedding": {"kind": "cosine", "weight": 1.0}}


def objective_of(config: TrialConfig) -> tuple[Objective, BatchStream, list[Normalized]]:
    data = trial_data(NUM, taught=True, num_real=NUM_REAL)
    torch.manual_seed(0)
    objective = Objective(build(config.student, 3, data.image_size, 0), config, data)
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    ranks = distributed.get_world_size() if distributed.is_initialized() else 1
    stream = BatchStream(data, batch_size=BATCH, seed=3, device=torch.device("cpu"), rank=rank, num_ranks=ranks)
    return objective, stream, [m for m in objective.terms.modules() if isinstance(m, Normalized)]


def train(rank: int, config: TrialConfig, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    objective, stream, terms = objective_of(config)
    real = []
    with torch.no_grad():
        for step in range(STEPS):
            batch = stream.batch(step * BATCH)
            objective(batch, 0.0)
            real.append(batch.num_real)
    told = {
        "sizes": torch.stack([term.size for term in terms]),
        "batches": torch.stack([term.batches for term in terms]),
        "real": real,
    }
    torch.save(told, f"{folder}/{rank}.pt")
    objective.settle()
    with pytest.MonkeyPatch.context() as patch:  # what is final is not exchanged any more
        patch.delattr(distributed, "all_reduce")
        objective(batch, 0.0)
    distributed.destroy_process_group()


def test_the_divisors_are_those_of_all_shares(tmp_path: Path) -> None:
    config = trial_config(loss=LOSS)
    use = SyntheticUse(source="s", ratio=2.0, weight=0.5, embedding="align_only")
    config = config.model_copy(update={"synthetic": use})
    multiprocessing.spawn(train, (config, str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(one["sizes"], other["sizes"])
    assert torch.equal(one["batches"], other["batches"])
    assert (one["sizes"] > 0).all()
    assert (one["batches"] == NORMALIZING_BATCHES).all()
    shares = [(a, b) for a, b in zip(one["real"], other["real"], strict=True)]
    assert any(min(share) < 2 <= max(share) for share in shares), "a worker had to leave a part out that the other took"
