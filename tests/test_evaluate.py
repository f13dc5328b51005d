"""Accuracy: counted right, whatever the batch size, and without a trace in the student."""

from __future__ import annotations

import pytest
import torch
from samples import ARCHITECTURE, CLASS_NAMES, SIZE, colour_split
from torch import nn

from sweeper import student as students
from sweeper.batches import ImageSplit
from sweeper.evaluate import accuracy, accuracy_of, confusion
from sweeper.student import StudentOutput
from sweeper.trial import StudentConfig


class BrightestChannel(nn.Module):
    """Right on every colour image; remembers what it was shown."""

    image_size = SIZE

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.ranges: list[float] = []

    def forward(self, images_BCHW: torch.Tensor) -> StudentOutput:
        assert not self.training
        self.sizes.append(len(images_BCHW))
        self.ranges.append(float(images_BCHW.max()))
        colours = images_BCHW.mean(dim=(2, 3))
        return StudentOutput(colours, colours)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 9), (4, [4, 4, 1]), (512, [9])])
def test_every_image_counts_once(batch_size: int, sizes: list[int]) -> None:
    split = colour_split(9)
    model = BrightestChannel()
    assert accuracy(model, split, batch_size) == 1.0
    assert model.sizes == sizes
    assert all(0.5 < top <= 1 for top in model.ranges), "images are shown in [0, 1]"
    labels_B = split.labels_B.clone()
    labels_B[[0, 8]] = (labels_B[[0, 8]] + 1) % 3
    assert accuracy(model, ImageSplit(split.images_BCHW, labels_B), batch_size) == pytest.approx(7 / 9)


def test_a_student_of_its_own_resolution_sees_the_whole_image_at_that() -> None:
    class Small(BrightestChannel):
        image_size = SIZE // 2

        def forward(self, images_BCHW: torch.Tensor) -> StudentOutput:
            assert torch.allclose(images_BCHW, nn.functional.avg_pool2d(split.images_BCHW / 255, 2), atol=1e-6)
            return super().forward(images_BCHW)

    split = colour_split(9)
    assert accuracy(Small(), split) == 1.0


def test_an_empty_split_has_no_accuracy() -> None:
    split = colour_split(3)
    assert accuracy(BrightestChannel(), ImageSplit(split.images_BCHW[:0], split.labels_B[:0])) == 0.0


@pytest.mark.parametrize("training", [True, False])
def test_the_student_is_left_as_it_was(training: bool) -> None:
    student = students.build(StudentConfig(model=ARCHITECTURE), len(CLASS_NAMES), SIZE, seed=0).train(training)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    rng = torch.get_rng_state()
    accuracy(student, colour_split(6))
    assert all(module.training == training for module in student.modules())
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize("batch_size", [1, 4, 512])
def test_mistakes_are_counted_by_class_and_come_to_the_accuracy(batch_size: int) -> None:
    split = colour_split(9)  # three of each class, all of them recognised
    labels_B = split.labels_B.clone()
    labels_B[0] = (labels_B[0] + 1) % 3
    wrong = ImageSplit(split.images_BCHW, labels_B)
    found = confusion(BrightestChannel(), wrong, batch_size)
    truth, taken = int(labels_B[0]), int(split.labels_B[0])
    assert (truth, taken, 1) in found
    assert sum(count for _, _, count in found) == 9
    assert found == sorted(found)
    assert accuracy_of(found) == accuracy(BrightestChannel(), wrong, batch_size) == pytest.approx(8 / 9)


def test_an_empty_split_has_no_mistakes() -> None:
    split = colour_split(3)
    assert confusion(BrightestChannel(), ImageSplit(split.images_BCHW[:0], split.labels_B[:0])) == []
    assert accuracy_of([]) == 0.0
