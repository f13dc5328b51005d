"""What a student is trained on: L = ce CE(logits_S, y) + kl L_KL + w L_embedding (METHOD section 1), as one module.

Each distillation term is divided by its own size over the first batches (`losses._module.Normalized`), so that weights
compare. Synthetic images may carry another label, another weight and another embedding loss than real ones; where they
are treated alike, a term sees the batch as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from sweeper import registry
from sweeper.losses import LossContext, LossInputs, MapShape, Pool
from sweeper.losses._module import Float32Loss, Normalized, share_sizes

if TYPE_CHECKING:
    from sweeper.batches import TrialData
    from sweeper.feeding import Batch
    from sweeper.registry import Settings
    from sweeper.student import Student, StudentOutput
    from sweeper.trial import TrialConfig

# Losses over pairs or with batch statistics need two rows; a share of the batch with fewer is left out.
LEAST_ROWS = 2


class Piece(NamedTuple):
    """A term on some rows of a batch, and the factor with which it counts."""

    factor: float
    term: nn.Module
    inputs: LossInputs


class Objective(nn.Module):
    """Student and loss terms in one module, so that one data-parallel wrapper covers trained projectors too.

    Args:
        student: on the device where the trial is trained, as are the tensors of `data.source`.
    """

    def __init__(self, student: Student, config: TrialConfig, data: TrialData) -> None:
        super().__init__()
        self.student = student
        self.config = config.loss
        self.synthetic = config.synthetic
        self.needs = config.needs
        self.widths = data.source.widths if data.source else ()
        self.classifiers = data.source.classifiers if data.source else ()
        self.num_maps = 0
        if data.source and "maps" in self.needs:
            self.num_maps = min(len(data.source.map_shapes), len(student.tap_points.maps))
        self.terms = nn.ModuleDict()
        if config.loss.kl.weight > 0 and data.source:
            kl = registry.config_class("losses", "kl").model_validate(config.loss.kl.model_dump())
            self.terms["kl"] = _term(kl, self._context(data, self.widths))
        embedding: Any = config.loss.embedding
        if embedding is not None and data.source:
            self.terms["embedding"] = nn.ModuleList(
                [_term(embedding, self._context(data, (width,), i)) for i, width in enumerate(self.widths)]
            )
            if self.synthetic.embedding == "align_only":
                settings = {"kind": "align", "normalize": embedding.normalize}
                align = registry.config_class("losses", "align").model_validate(settings)
                self.terms["align"] = nn.ModuleList(
                    [_term(align, self._context(data, (width,), i)) for i, width in enumerate(self.widths)]
                )
        self.normalized = [module for module in self.terms.modules() if isinstance(module, Normalized)]
        # a queue or a pool of targets is the same on every worker: not worth sending with each step
        constant = {n for n, _ in self.named_buffers()} - self.state_dict().keys()
        ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        ignore(self, sorted(constant))

    def forward(self, batch: Batch, progress: float = 0.0) -> Tensor:
        """The weighted sum of all terms, a scalar in float32.

        Args:
            progress: share of the training that is done, in [0, 1).
        """
        with_jacobian = "jacobian" in self.needs
        images_BCHW = batch.images_BCHW.requires_grad_() if with_jacobian else batch.images_BCHW
        # fused attention has no second derivative
        with sdpa_kernel(SDPBackend.MATH) if with_jacobian else nullcontext():
            out: StudentOutput = self.student(images_BCHW, pre="pre_embedding" in self.needs, num_maps=self.num_maps)
        if self._classifiers():
            out = out._replace(logits_BK=self._classify(out.embedding_BD))
        inputs = self._inputs(batch, out, images_BCHW, progress)
        total: Tensor = out.logits_BK.new_zeros((), dtype=torch.float32)
        if self.config.ce > 0:
            total = total + self.config.ce * self._cross_entropy(inputs, batch.num_real)
        pieces: list[Piece] = []
        if "kl" in self.terms:
            pieces += self._over_images(self.config.kl.weight, self.terms["kl"], None, inputs, batch.num_real)
        if "embedding" in self.terms:
            pieces += self._embedding(getattr(self.config.embedding, "weight", 1.0), inputs, batch.num_real)
        # all terms are measured before any is divided, so that workers exchange sizes once a step and agree on them
        values = [(p, p.term.raw(p.inputs) if isinstance(p.term, Normalized) else p.term(p.inputs)) for p in pieces]
        if self.training:
            share_sizes(self.normalized)
        if not values:  # a batch from which no term learns still has a gradient: zero
            total = total + 0.0 * out.logits_BK.float().mean()
        for piece, value in values:
            divisor = piece.term.divisor if isinstance(piece.term, Normalized) else 1.0
            total = total + piece.factor * (value / divisor)
        return total

    @torch.no_grad()
    def settle(self, *others: Student) -> None:
        """At the end of an epoch: divisors that are final stay so, and a classifier that a loss trained in place of the
        student's own (SimKD) is written into the student and `others`.

        It is affine, so that it is known by its values at 0 and at the unit vectors.
        """
        for term in self.normalized:
            term.settle()
        if self._classifiers():
            for student in (self.student, *others):
                head = student.model.get_classifier()
                unit_DD = torch.eye(head.in_features, device=head.weight.device)
                bias_K = self._classify(torch.zeros_like(unit_DD[:1]))[0]
                head.weight.copy_((self._classify(unit_DD) - bias_K).T)
                head.bias.copy_(bias_K)

    def _part(self, name: str) -> Any:
        return dict(self.terms.items()).get(name)

    def _classifiers(self) -> list[Float32Loss]:
        """The embedding losses that train a classifier, one for each member of an ensemble."""
        terms: Any = self._part("embedding") or ()
        losses = [term.loss if isinstance(term, Normalized) else term for term in terms]
        return [loss for loss in losses if loss.classify is not None]

    def _classify(self, embedding_BD: Tensor) -> Tensor:
        """The mean of their logits."""
        found = [loss.classify(loss, embedding_BD) for loss in self._classifiers() if loss.classify is not None]
        return torch.stack(found).mean(dim=0)

    def _inputs(self, batch: Batch, out: StudentOutput, images_BCHW: Tensor, progress: float) -> LossInputs:
        labels_B = batch.labels_B
        hard_B = torch.ones_like(labels_B, dtype=torch.bool)
        if batch.num_real < len(labels_B):
            if self.synthetic.labels == "teacher" and batch.teacher and batch.teacher.logits_BK is not None:
                told_B = batch.teacher.logits_BK[batch.num_real :].argmax(dim=1)
                labels_B = torch.cat([labels_B[: batch.num_real], told_B])
            elif self.synthetic.labels == "none":
                hard_B[batch.num_real :] = False
        teacher = batch.teacher
        return LossInputs(
            student_logits_BK=out.logits_BK,
            student_embedding_BD=out.embedding_BD,
            student_pre_embedding_BD=out.pre_embedding_BD,
            student_maps=out.maps,
            teacher_logits_BK=teacher.logits_BK if teacher else None,
            teacher_embedding_BT=teacher.embedding_BT if teacher else None,
            teacher_pre_embedding_BT=teacher.pre_embedding_BT if teacher else None,
            teacher_maps=teacher.maps[-self.num_maps :] if teacher and self.num_maps else (),
            images_BCHW=images_BCHW if "jacobian" in self.needs else None,
            teacher_jacobian_BCHW=teacher.jacobian_BCHW if teacher else None,
            labels_B=labels_B,
            index_B=batch.index_B,
            hard_B=hard_B,
            progress=progress,
        )

    def _cross_entropy(self, inputs: LossInputs, num_real: int) -> Tensor:
        """Weighted mean over the images whose label may be used."""
        if num_real == len(inputs.labels_B) or (self.synthetic.labels != "none" and self.synthetic.weight == 1):
            return F.cross_entropy(inputs.student_logits_BK.float(), inputs.labels_B)
        ce_B = F.cross_entropy(inputs.student_logits_BK.float(), inputs.labels_B, reduction="none")
        weight_B = inputs.hard_B.to(ce_B.dtype)
        weight_B[num_real:] *= self.synthetic.weight
        return (ce_B * weight_B).sum() / weight_B.sum().clamp(min=1e-12)

    def _embedding(self, weight: float, inputs: LossInputs, num_real: int) -> list[Piece]:
        """Pieces of the embedding term; the mean over the members of an ensemble that are embedded separately."""
        terms, align = self._part("embedding"), self._part("align")
        found: list[Piece] = []
        for i, part in enumerate(_split(inputs, self.widths, self.classifiers)):
            if self.synthetic.embedding == "none" and num_real < len(part.labels_B):
                part = _rows(part, slice(0, num_real))
            found += self._over_images(weight / len(terms), terms[i], align[i] if align else None, part, num_real)
        return found

    def _over_images(
        self, weight: float, term: nn.Module, other: nn.Module | None, inputs: LossInputs, num_real: int
    ) -> list[Piece]:
        """`term` of the real images and `other` of the synthetic ones, weighted by how many they count for.

        With `other` None and weight 1 both are one batch, in which a contrastive loss compares all with all.
        """
        num_rows = len(inputs.labels_B)
        num_synthetic = num_rows - num_real
        if not num_synthetic or (other is None and self.synthetic.weight == 1):
            return [Piece(weight, term, inputs)] if num_rows >= LEAST_ROWS else []
        counts = num_real + self.synthetic.weight * num_synthetic
        found = []
        if num_real >= LEAST_ROWS:
            found.append(Piece(weight * num_real / counts, term, _rows(inputs, slice(0, num_real))))
        if num_synthetic >= LEAST_ROWS:
            share = self.synthetic.weight * num_synthetic / counts
            found.append(Piece(weight * share, other or term, _rows(inputs, slice(num_real, num_rows))))
        return found

    def _context(self, data: TrialData, widths: tuple[int, ...], member: int | None = None) -> LossContext:
        source = data.source
        assert source is not None
        device = self.student.model.get_classifier().weight.device
        own = member_slice(self.widths, member) if member is not None and len(self.widths) > 1 else slice(None)

        def column(name: str) -> Tensor | None:
            found = source.canonical(name)
            return found if found is None or name == "logits" else found[:, own]

        def pool() -> Pool:
            hard_N = torch.arange(len(data.train), device=device) < data.num_real
            hard_N |= self.synthetic.labels == "hard"
            labels_N = data.train.labels_B.to(device)
            return Pool(
                logits_NK=column("logits"),
                embedding_NT=column("embedding"),
                pre_embedding_NT=column("pre_embedding"),
                labels_N=labels_N,
                hard_N=hard_N,
            )

        shapes = self.student.tap_points.shapes[-self.num_maps :] if self.num_maps else ()
        return LossContext(
            student_dim=self.student.embedding_dim,
            teacher_dim=sum(widths),
            num_classes=len(data.class_names),
            num_samples=len(data.train),
            pool=pool,
            classifier=lambda: source.classifiers[member or 0],
            student_maps=tuple(MapShape(*shape) for shape in shapes),
            teacher_maps=source.map_shapes[-self.num_maps :] if self.num_maps else (),
        )


def _term(config: Settings, context: LossContext) -> nn.Module:
    """The loss of a kind, divided by its own size unless its settings ask for the raw form."""
    settings: Any = config
    loss: Float32Loss = registry.load("losses", settings.kind).build(config, context)
    return Normalized(loss) if settings.normalize else loss


def _rows(inputs: LossInputs, rows: slice) -> LossInputs:
    """Some rows of a batch, without what belongs to the batch as a whole."""

    def cut(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(item[rows] for item in value)
        return value[rows] if isinstance(value, Tensor) else value

    return replace(inputs, **{field.name: cut(getattr(inputs, field.name)) for field in fields(inputs)})


def _split(inputs: LossInputs, widths: Sequence[int], classifiers: Sequence[tuple[Tensor, Tensor]]) -> list[LossInputs]:
    """The batch once for each teacher that is embedded by itself, with that teacher's embedding and logits.

    What was cached of the logits is their average; a teacher's own are its classifier's on its embedding.
    """
    if len(widths) == 1:
        return [inputs]
    found = []
    for member, (weight_KT, bias_K) in enumerate(classifiers):
        own = member_slice(widths, member)
        changed: dict[str, Tensor] = {}
        if inputs.teacher_embedding_BT is not None:
            changed["teacher_embedding_BT"] = inputs.teacher_embedding_BT[:, own]
            if inputs.teacher_logits_BK is not None:
                changed["teacher_logits_BK"] = inputs.teacher_embedding_BT[:, own] @ weight_KT.T + bias_K
        if inputs.teacher_pre_embedding_BT is not None:
            changed["teacher_pre_embedding_BT"] = inputs.teacher_pre_embedding_BT[:, own]
        found.append(replace(inputs, **changed))  # type: ignore[arg-type]
    return found


def member_slice(widths: Sequence[int], member: int) -> slice:
    """Where a member's entries stand in embeddings that lie side by side."""
    start = sum(widths[:member])
    return slice(start, start + widths[member])
