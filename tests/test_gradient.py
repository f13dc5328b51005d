"""A batch that does not fit the memory: in halves, with the gradient that the whole would have had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from samples import MemorySlot, always, trial_config, trial_data
from torch import Tensor, nn

from sweeper.gradient import Gradient
from sweeper.outcome import Outcome, TrialFailed
from sweeper.train import Trainer, World, fit
from sweeper.trial import TrialConfig

CPU = torch.device("cpu")
DATA = trial_data(num_train=32)
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Holds(nn.Module):
    """A device that holds batches of at most `num` images; `seen` are the sizes of those that came."""

    def __init__(self, model: nn.Module, num: int, error: Exception = FULL) -> None:
        super().__init__()
        self.model, self.num, self.error = model, num, error
        self.seen: list[int] = []

    def forward(self, batch: Any, progress: float) -> Tensor:
        self.seen.append(len(batch.labels_B))
        loss: Tensor = self.model(batch, progress)
        if len(batch.labels_B) > self.num:
            raise self.error
        return loss


def config(**changes: Any) -> TrialConfig:
    return trial_config(epochs=2, batch_size=16, **changes)


def trainer() -> Trainer:
    made = Trainer(config(), DATA, seed=1, device=CPU, world=World())
    made.model.eval()  # batch norm over a half is not that over the whole
    return made


def gradients(trainer: Trainer) -> list[Tensor]:
    return [p.grad.clone() for p in trainer.objective.parameters() if p.grad is not None]


def small(num: int, made: Trainer, error: Exception = FULL, *, can_halve: bool = True) -> tuple[Gradient, Holds]:
    model = Holds(made.model, num, error)
    return Gradient(model, made.stream, "fp32", can_halve=can_halve), model


def trained(wrap: Callable[[nn.Module], nn.Module]) -> Outcome:
    return fit(
        config(), DATA, seed=1, device=CPU, report=always, slot=MemorySlot(), world=World(wrap=wrap), keep_model=False
    )


@pytest.mark.parametrize("error", [FULL, MemoryError()], ids=["device", "host"])
def test_two_halves_have_the_gradient_of_the_whole(error: Exception) -> None:
    made = trainer()
    whole_loss = made.gradient.of(0, 0.0)
    whole = gradients(made)
    halved, model = small(8, made, error)
    loss = halved.of(0, 0.0)
    assert model.seen == [16, 8, 8]
    torch.testing.assert_close(loss, whole_loss)
    assert len(whole) > 10
    for one, other in zip(gradients(made), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    halved.of(16, 0.1)
    assert model.seen[3:] == [8, 8], "it is not tried in vain again"


def test_the_halves_are_the_batch() -> None:
    stream = trainer().stream
    whole = stream.batch(0).index_B.tolist()
    halves = [stream.batch(0, part, 2).index_B.tolist() for part in range(2)]
    assert [len(half) for half in halves] == [8, 8]
    assert sorted(halves[0] + halves[1]) == sorted(whole)


def test_what_does_not_fit_in_halves_fails_the_trial() -> None:
    halved, model = small(4, trainer())
    with pytest.raises(TrialFailed, match="out of memory, with the batch in halves too: CUDA out of memory"):
        halved.of(0, 0.0)
    assert model.seen == [16, 8]


def test_one_of_several_workers_does_not_try_again() -> None:
    alone, model = small(8, trainer(), can_halve=False)
    with pytest.raises(torch.OutOfMemoryError):
        alone.of(0, 0.0)
    assert model.seen == [16]


def test_a_training_goes_on_in_halves_and_says_so() -> None:
    seen: list[Holds] = []

    def device_with(num: int) -> Callable[[nn.Module], nn.Module]:
        def wrap(model: nn.Module) -> nn.Module:
            seen.append(Holds(model, num))
            return seen[-1]

        return wrap

    whole, halved = trained(device_with(16)), trained(device_with(8))
    assert (whole.state, whole.parts) == ("completed", 1)
    assert (halved.state, halved.parts) == ("completed", 2)
    assert seen[1].seen == [16, 8, 8, 8, 8] + [8] * (2 * len(seen[0].seen) - 4)
