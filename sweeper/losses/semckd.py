"""Semantic calibration: each student map learns from all teacher maps, by trained attention (Chen et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Chen et al. 2021, arXiv 2012.03236"
PUBLISHED_WEIGHT = 400.0
NEEDS = frozenset({"maps"})


class Config(LossSettings):
    """`attention_dim` is the width of queries and keys for each image of the batch, `width` bounds the regressors'."""

    kind: Literal["semckd"] = "semckd"
    attention_dim: Annotated[int, Field(ge=1, le=65536)] = 16
    width: Annotated[int, Field(ge=1, le=65536)] = 128


def similarities(map_BCHW: Tensor) -> Tensor:
    """Cosines between the flattened maps of each two images of the batch, B x B; 0 where a map is all zero."""
    from sweeper.losses._module import unit

    rows_BX = unit(map_BCHW.flatten(1), dim=1)
    return rows_BX @ rows_BX.mT


def assignments(queries_SBX: Tensor, keys_LBX: Tensor) -> Tensor:
    """softmax over the teacher's maps of <query, key>, B x S x L: how much each student map learns from each.

    Queries and keys are of length 1. Chen et al. 2021, "Cross-layer distillation with semantic calibration",
    arXiv 2012.03236, its attention weights.
    """
    return (queries_SBX.transpose(0, 1) @ keys_LBX.permute(1, 2, 0)).softmax(dim=2)


def calibrated(distances_BSL: Tensor, weights_BSL: Tensor) -> Tensor:
    """sum_L weight x distance, mean over the batch and the student's maps; >= 0.

    A distance is the mean squared difference of one image's pair of maps. Chen et al. 2021, arXiv 2012.03236, with the
    mean over the student's maps that is in the authors' code.
    """
    return (distances_BSL * weights_BSL).sum(dim=2).mean()


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = mean_{B,S} sum_L assignment x MSE(regressor(mS), mT), over all pairs of student and teacher maps.

    In the paper a query is a network of as many inputs as the batch has images, fed with an image's row of the batch's
    similarity matrix. Here one small network embeds each entry of the row, and query and key are the embedded rows,
    L2-normalised (ours): any batch size goes, and the order of the images does not count. The similarities are cosines
    in place of products of any size (ours).

    A regressor is the paper's 1 x 1, 3 x 3, 1 x 1 convolutions with BatchNorm and ReLU, but its middle is at most
    `width` channels and not always twice the teacher's, which are 4096 behind a ResNet50 (ours). The larger map of a
    pair is pooled to the size of the smaller.
    """
    import torch
    from torch import nn

    from sweeper.losses._maps import pairs, same_size
    from sweeper.losses._module import Float32Loss, unit

    def embedder() -> nn.Sequential:
        hidden = 2 * config.attention_dim
        return nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, config.attention_dim))

    def regressor(channels_in: int, channels_out: int) -> nn.Sequential:
        width = min(2 * channels_out, config.width)
        return nn.Sequential(
            nn.Conv2d(channels_in, width, kernel_size=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, channels_out, kernel_size=1, bias=False),
        )

    def embedded(loss: nn.Module, name: str, maps: tuple[Tensor, ...]) -> Tensor:
        rows = [loss.get_submodule(f"{name}.{i}")(similarities(m)[:, :, None]) for i, m in enumerate(maps)]
        return torch.stack([unit(row_BBE.flatten(1), dim=1) for row_BBE in rows])

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        student_maps, teacher_maps = zip(*pairs(inputs), strict=True)
        distances = []
        for i, student in enumerate(student_maps):
            for j, teacher in enumerate(teacher_maps):
                student_BCHW, teacher_BCHW = same_size(student, teacher)
                regressed_BCHW = loss.get_submodule(f"regressors.{i}.{j}")(student_BCHW)
                distances.append((regressed_BCHW - teacher_BCHW).square().mean(dim=(1, 2, 3)))
        distances_BSL = torch.stack(distances, dim=1).reshape(-1, len(student_maps), len(teacher_maps))
        queries_SBX, keys_LBX = embedded(loss, "queries", student_maps), embedded(loss, "keys", teacher_maps)
        return calibrated(distances_BSL, assignments(queries_SBX, keys_LBX))

    parts = {
        "queries": nn.ModuleList(embedder() for _ in context.student_maps),
        "keys": nn.ModuleList(embedder() for _ in context.teacher_maps),
        "regressors": nn.ModuleList(
            nn.ModuleList(regressor(student.channels, teacher.channels) for teacher in context.teacher_maps)
            for student in context.student_maps
        ),
    }
    return Float32Loss(formula, parts)
