"""Where a batch's targets come from: the cache, or a teacher that runs in the loop. A loss can not tell which.

What the cache is made of (`view_targets`) stands here too, beside what reads it, and needs no Ray.

Both show the student the same views in the same order: in pass q, sample i is seen under stored view
1 + (q + key_i) % (V - 1), so that neighbours in a batch are not all at the same view number. The cache reads that
view's row; a live teacher looks at the image under that view's parameters, which the counter-based generator draws
again. With `views.match: fixed` both answer with view 0, whatever the student sees.

Shape letters: N samples, V views (view 0 is canonical), P parameters of a view, B batch, C channels, H W pixels,
K classes, T teacher's width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sweeper import views
from sweeper.losses import MapShape
from sweeper.placement import ON_CPU, Placement
from sweeper.views import Match, ViewConfig

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class TeacherBatch:
    """The teacher's side of a batch; what the trial does not need, or the source does not hold, is absent."""

    logits_BK: Tensor | None = None
    embedding_BT: Tensor | None = None
    pre_embedding_BT: Tensor | None = None
    maps: tuple[Tensor, ...] = ()
    jacobian_BCHW: Tensor | None = None


@dataclass(frozen=True)
class Sight:
    """What a source is asked about: samples, the pass each is in, and what the student sees of them."""

    index: np.ndarray
    number: np.ndarray
    images_BCHW: Tensor  # uint8, whole
    views_BP: Tensor
    student_view_BCHW: Tensor  # floats in [0, 1]


class TargetSource(Protocol):
    """One side of a trial.

    Attributes:
        widths: of the embeddings; several where the members of an ensemble are embedded separately.
        map_shapes: of the maps that `targets` gives, shallow to deep.
        columns: over the whole pool in the canonical view, by name of `losses.COLUMNS`; empty for a live teacher.
        classifiers: weight K x T and bias K of each of them.
    """

    @property
    def widths(self) -> tuple[int, ...]: ...

    @property
    def map_shapes(self) -> tuple[MapShape, ...]: ...

    @property
    def classifiers(self) -> tuple[tuple[Tensor, Tensor], ...]: ...

    @property
    def num_bytes(self) -> int:
        """What the targets take that are gathered for batches."""
        ...

    def placed(self, where: Placement) -> TargetSource:
        """The same source, its models on a device and its targets where they are to lie."""
        ...

    def views_of(self, index: np.ndarray, number: np.ndarray) -> np.ndarray:
        """The views [B, P] under which samples are seen in passes `number`."""
        ...

    def targets(self, sight: Sight) -> TeacherBatch:
        """The teacher's outputs for a batch."""
        ...

    def canonical(self, column: str) -> Tensor | None:
        """A column over the whole pool in the canonical view; None where the source does not hold it."""
        ...


def stored_view(keys_B: np.ndarray, number: np.ndarray, num_views: int) -> np.ndarray:
    """The number of the view under which a sample is seen in a pass; the canonical one only where there is no other."""
    if num_views == 1:
        return np.zeros_like(number)
    offset = (keys_B % np.uint64(num_views - 1)).astype(np.int64)
    view: np.ndarray = 1 + (number + offset) % (num_views - 1)
    return view


@dataclass(frozen=True, kw_only=True)
class CachedTargets:
    """A teacher's stored outputs, fp16, by name (`columns`: N x V x width), and the views_NVP that they belong to."""

    keys_N: np.ndarray
    views_NVP: np.ndarray
    columns: Mapping[str, Tensor]
    classifiers: tuple[tuple[Tensor, Tensor], ...]
    widths: tuple[int, ...]
    map_shapes: tuple[MapShape, ...] = ()
    match: Match = "same"
    where: Placement = ON_CPU

    @property
    def num_bytes(self) -> int:
        return sum(column.nbytes for column in self.columns.values())

    def placed(self, where: Placement) -> CachedTargets:
        columns = {name: where.put(column) for name, column in self.columns.items()}
        device = where.device
        heads = tuple((weight_KT.to(device), bias_K.to(device)) for weight_KT, bias_K in self.classifiers)
        return replace(self, columns=columns, classifiers=heads, where=where)

    def _view(self, index: np.ndarray, number: np.ndarray) -> np.ndarray:
        return stored_view(self.keys_N[index], number, self.views_NVP.shape[1])

    def views_of(self, index: np.ndarray, number: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.views_NVP[index, self._view(index, number)]
        return found

    def targets(self, sight: Sight) -> TeacherBatch:
        view = self._view(sight.index, sight.number) if self.match == "same" else np.zeros_like(sight.number)
        row = sight.index * self.views_NVP.shape[1] + view
        read = {name: self.where.rows(column.flatten(0, 1), row).float() for name, column in self.columns.items()}
        return TeacherBatch(
            logits_BK=read.get("logits"),
            embedding_BT=read.get("embedding"),
            pre_embedding_BT=read.get("pre_embedding"),
        )

    def canonical(self, column: str) -> Tensor | None:
        found = self.columns.get(column)
        return None if found is None else found[:, 0].float().to(self.where.device)


@torch.no_grad()
def view_targets(
    teacher: Any, columns: Sequence[str], images_BCHW: torch.Tensor, views_BP: np.ndarray, device: torch.device
) -> dict[str, np.ndarray]:
    """The teacher's fp16 outputs [B, width] by column, of images under their views, at its own resolution."""
    under = torch.from_numpy(np.ascontiguousarray(views_BP, dtype=np.float32)).to(device)
    seen_BCHW = views.apply_views(images_BCHW.to(device), under, teacher.input_size, teacher.interpolation)
    out = teacher(seen_BCHW, pre="pre_embedding" in columns)
    found = {"logits": out.logits_BK, "embedding": out.embedding_BD, "pre_embedding": out.pre_embedding_BD}
    return {name: found[name].half().cpu().numpy() for name in columns}


def stored_columns(table: pa.Table, sample_ids: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows keyed by (sample_id, view), in any order, as dense arrays N x V x width in the order of `sample_ids`.

    Raises:
        ValueError: rows are missing.
    """
    position = {sample_id: i for i, sample_id in enumerate(sample_ids)}
    rows = np.array([position.get(s, -1) for s in table["sample_id"].to_pylist()], dtype=np.int64)
    view = table["view"].to_numpy()
    num_views = int(view.max()) + 1
    kept = rows >= 0
    slot = rows[kept] * num_views + view[kept]
    if len(np.unique(slot)) != len(sample_ids) * num_views:
        raise ValueError(f"targets hold {len(np.unique(slot))} of {len(sample_ids) * num_views} (sample, view) rows")
    found = {}
    for name in names:
        column = table[name].combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
        out = np.empty((len(sample_ids) * num_views, values.shape[1]), dtype=values.dtype)
        out[slot] = values[kept]
        found[name] = out.reshape(len(sample_ids), num_views, -1)
    return found


def together(members: Sequence[CachedTargets], *, separate: bool) -> CachedTargets:
    """An ensemble: averaged logits, embeddings side by side, and the classifier that gives the averaged logits.

    Concatenated embeddings are each scaled to a mean length of 1 over the canonical views; its inverse goes into the
    classifier's columns. With `separate` they keep their scale, and `widths` and `classifiers` are each member's own.
    """
    if len(members) == 1:
        return members[0]
    first = members[0]
    columns: dict[str, Tensor] = {}
    scales = [1.0] * len(members)
    if "logits" in first.columns:
        columns["logits"] = torch.stack([m.columns["logits"].float() for m in members]).mean(dim=0).half()
    for name in ("pre_embedding", "embedding"):
        if name in first.columns:
            parts = [member.columns[name].float() for member in members]
            if not separate:
                scales = [float(part[:, 0].norm(dim=1).mean().clamp(min=1e-12)) for part in parts]
            columns[name] = torch.cat([p / scale for p, scale in zip(parts, scales, strict=True)], dim=2).half()
    classifiers = tuple(head for member in members for head in member.classifiers)
    widths = tuple(width for member in members for width in member.widths)
    if not separate:  # `scales` are those of the embedding, which comes last
        share = 1 / len(members)
        weights = [weight_KT * scale * share for (weight_KT, _), scale in zip(classifiers, scales, strict=True)]
        bias_K = torch.stack([bias_K for _, bias_K in classifiers]).mean(dim=0)
        classifiers, widths = ((torch.cat(weights, dim=1), bias_K),), (sum(widths),)
    return replace(first, columns=columns, classifiers=classifiers, widths=widths)


@dataclass(frozen=True, kw_only=True)
class LiveTeacher:
    """A teacher in the loop: its outputs for the views of the batch, in evaluation mode and without gradients.

    Args:
        teacher: see `sweeper.teachers.Teacher`.
        needs: of `losses.INPUTS`; what costs extra is computed only where it is named.
        num_maps: how many of its deepest maps.
    """

    teacher: Any
    keys_N: np.ndarray
    views: ViewConfig
    view_seed: int
    needs: frozenset[str] = frozenset()
    num_maps: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.teacher.embedding_dim,)

    @property
    def map_shapes(self) -> tuple[MapShape, ...]:
        if not self.num_maps:
            return ()
        return tuple(MapShape(*shape) for shape in self.teacher.tap_points.shapes[-self.num_maps :])

    @property
    def classifiers(self) -> tuple[tuple[Tensor, Tensor], ...]:
        return ((self.teacher.classifier.weight, self.teacher.classifier.bias),)

    @property
    def num_bytes(self) -> int:
        return 0

    def placed(self, where: Placement) -> LiveTeacher:
        return replace(self, teacher=self.teacher.to(where.device))

    def views_of(self, index: np.ndarray, number: np.ndarray) -> np.ndarray:
        keys_B = self.keys_N[index]
        view = stored_view(keys_B, number, self.views.per_image)
        return views.draw_views(self.views, self.view_seed, keys_B, view)

    def targets(self, sight: Sight) -> TeacherBatch:
        device = sight.images_BCHW.device
        views_BP, student_view_BCHW = sight.views_BP, sight.student_view_BCHW
        if self.views.match == "fixed":
            first = np.zeros_like(sight.number)
            drawn = views.draw_views(self.views, self.view_seed, self.keys_N[sight.index], first)
            views_BP = torch.from_numpy(drawn).to(device)
            student_view_BCHW = views.apply_views(sight.images_BCHW, views_BP, student_view_BCHW.shape[-1])
        with torch.no_grad(), torch.autocast(device.type, enabled=False):  # the cache is made in float32 too
            size, interpolation = self.teacher.input_size, self.teacher.interpolation
            seen_BCHW = views.apply_views(sight.images_BCHW, views_BP, size, interpolation)
            out = self.teacher(seen_BCHW, pre="pre_embedding" in self.needs, num_maps=self.num_maps)
        return TeacherBatch(
            logits_BK=out.logits_BK,
            embedding_BT=out.embedding_BD,
            pre_embedding_BT=out.pre_embedding_BD,
            maps=out.maps,
            jacobian_BCHW=self._jacobian(student_view_BCHW) if "jacobian" in self.needs else None,
        )

    def canonical(self, column: str) -> Tensor | None:
        return None

    def _jacobian(self, view_BCHW: Tensor) -> Tensor:
        """Gradient of the largest logit with respect to the pixels that the student sees, resized to the teacher."""
        with torch.enable_grad(), torch.autocast(view_BCHW.device.type, enabled=False):
            pixels_BCHW = view_BCHW.detach().float().requires_grad_()
            size = self.teacher.input_size
            resized = (
                pixels_BCHW
                if pixels_BCHW.shape[-1] == size
                else F.interpolate(pixels_BCHW, size=(size, size), mode=self.teacher.interpolation, antialias=True)
            )
            largest = self.teacher(resized).logits_BK.amax(dim=1).sum()
            (jacobian_BCHW,) = torch.autograd.grad(largest, pixels_BCHW)
        return jacobian_BCHW
