"""One sampled point of a space: which teacher and student, which images, which losses, which recipe.

Models only: reading YAML is `spacefile`, domains and conditions are `space`, the rest of the file is `config`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator
from pydantic_core import PydanticCustomError

from sweeper import registry
from sweeper.domain import nearest
from sweeper.learning_rate import Schedule
from sweeper.losses import ONLINE
from sweeper.registry import Settings
from sweeper.sections import NonNegative, Positive, Probability, of_kind

NO_TEACHER = "none"
NO_EMBEDDING = "none"
NO_POOL = "none"
MAX_COUNT = 10**9  # a typo beyond it would end in an overflow far from its cause
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Labels = Literal["hard", "teacher", "none"]


def _without_alias(value: Any) -> Any:
    return "none" if value == "distill_only" else value


class StudentConfig(Settings):
    """A timm architecture. `init: random` trains from nothing; `pretrained` loads timm's or the folder's weights.

    `image_size` is the side in pixels of the views that it is trained and evaluated on, at most that of the dataset
    (which is what it is where none is given): less costs less, and a teacher keeps its own resolution.
    """

    model: str
    init: Literal["random", "pretrained"] = "random"
    model_args: dict[str, Any] = Field(default_factory=dict)
    # Left out of what is written where it is not used: keys of runs stay what they were without it.
    image_size: Annotated[int, Field(ge=8, le=8192)] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )


class SyntheticUse(Settings):
    """How a trial uses generated images: `ratio` x the number of real training images, from `source`.

    `labels`: the prompt's class (`hard`) or the class that the teacher finds most likely (`teacher`) enters the
    cross-entropy, or these images stay out of it (`none`, also called `distill_only`; Marrie et al. 2024, arXiv
    2402.11305). `embedding`: the embedding loss sees them too (`same`), or a plain alignment takes its place on them
    (`align_only`; contrastive losses fail on synthetic images where feature L2 works, Popp et al.), or nothing does.
    `weight` counts each of them so many times as a real image, in every term.
    """

    source: str | None = None
    ratio: NonNegative = 0.0
    labels: Annotated[
        Labels, BeforeValidator(_without_alias, json_schema_input_type=Labels | Literal["distill_only"])
    ] = "hard"
    embedding: Literal["same", "align_only", "none"] = "same"
    weight: Positive = 1.0


class KLConfig(Settings):
    """Weight and temperature of Hinton's distillation term (`sweeper/losses/kl.py`)."""

    weight: NonNegative = 0.0
    temperature: Positive = 4.0
    normalize: bool = True


class Distillation(Settings):
    """The terms of a loss that need no label: kl.weight * KL + embedding.weight * L_embedding."""

    kl: KLConfig = KLConfig()
    embedding: SerializeAsAny[Settings] | None = None

    @field_validator("embedding", mode="before")
    @classmethod
    def _embedding_kind(cls, value: Any) -> Settings | None:
        """A space that sweeps over kinds has their fields side by side: those of other kinds are left out here."""
        if value is None or value == NO_EMBEDDING or isinstance(value, Settings):
            return None if value == NO_EMBEDDING else value
        kinds = embedding_kinds()
        if isinstance(value, dict) and value.get("kind", NO_EMBEDDING) == NO_EMBEDDING:
            for key in value:
                if key not in _any_embedding_field():
                    known = ", ".join(sorted(_any_embedding_field()))
                    message = (
                        f"no loss has a setting {key!r}{nearest(str(key), _any_embedding_field())} (allowed: {known})"
                    )
                    raise PydanticCustomError("unknown_setting", "{message}", {"message": message, "key": key})
            return None
        config = of_kind("losses", value, (NO_EMBEDDING, *kinds))
        others = _any_embedding_field() - config.model_fields.keys()
        return config.model_validate({key: item for key, item in value.items() if key not in others})


class LossSection(Distillation):
    """Weights of the three terms: ce * CE + kl.weight * KL + embedding.weight * L_embedding."""

    ce: NonNegative = 1.0


def embedding_kinds() -> tuple[str, ...]:
    """What can stand at `loss.embedding.kind` besides `none`: every loss, those on logits as well."""
    return tuple(registry.kinds("losses"))


@cache
def _any_embedding_field() -> frozenset[str]:
    return frozenset(
        field for kind in embedding_kinds() for field in registry.config_class("losses", kind).model_fields
    )


class TrainConfig(Settings):
    """The optimiser's recipe: AdamW (betas 0.9, 0.999) as in METHOD section 1.

    An epoch is `epoch_size` training samples where that is given, else one pass over the trial's own images. With
    `epoch_size` every arm of a sweep sees equally many samples, however many synthetic images it adds.

    `schedule`: cosine, constant, or wsd (warm-up, stable, decay). `ema`: decay of the average of the student's weights
    that is evaluated and exported in their place, 0 for none. With wsd and an average the model of every epoch is worth
    having, whenever the training ends (`search.front: anytime`).
    """

    epochs: Count = 40
    epoch_size: Count | None = None
    batch_size: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 64
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.01
    schedule: Schedule = "cosine"
    warmup: Probability = 0.05
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"

    def steps_per_epoch(self, num_images: int) -> int:
        """Of a trial that has so many training images; an epoch is a whole number of batches."""
        return max(1, round((self.epoch_size or num_images) / self.batch_size))


def most_epochs(corners: Iterable[Mapping[str, Any]]) -> int:
    """The most epochs of any trial of a space; its corners need not be trials (a weight may be at its open end)."""
    return max(TrainConfig.model_validate(corner.get("train", {})).epochs for corner in corners)


class Pretrain(Settings):
    """Distillation on an unlabelled pool before the training on the task: KDEP (He et al. 2022) by default.

    `pool` is named under `pools:`; the student then goes on with the task's images and losses, its weights kept.
    """

    pool: str = NO_POOL
    teacher: str | None = None
    loss: Distillation = Field(default={"embedding": {"kind": "kdep"}}, validate_default=True)
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _has_a_teacher(self) -> Pretrain:
        if self.pool != NO_POOL and self.teacher in (None, NO_TEACHER):
            raise ValueError("needs `teacher:`, a name under `teachers:`, for its pool has no labels")
        return self


class TrialConfig(Settings):
    """One point of the space. `resolved` drops what cannot have an effect, so that equal trials look equal."""

    teacher: str = NO_TEACHER
    student: StudentConfig
    synthetic: SyntheticUse = SyntheticUse()
    loss: LossSection = LossSection()
    train: TrainConfig = TrainConfig()
    pretrain: Pretrain = Pretrain()

    def resolved(self) -> TrialConfig:
        """Without a teacher only cross-entropy is left, at weight 1; without images the source has no meaning."""
        synthetic = self.synthetic if self.synthetic.ratio > 0 and self.synthetic.source else SyntheticUse()
        loss, teacher = self.loss, self.teacher if self.needs else NO_TEACHER
        if self._embedding_weight == 0:
            loss = loss.model_copy(update={"embedding": None})
        if teacher == NO_TEACHER:
            loss = LossSection(ce=1.0)
            synthetic = synthetic.model_copy(update={"labels": "hard"})
        if loss.embedding is None:
            synthetic = synthetic.model_copy(update={"embedding": "same"})
        first = self.pretraining
        pretrain = self.pretrain if first is not None else Pretrain()
        if first is not None and first._embedding_weight == 0:
            alone = pretrain.loss.model_copy(update={"embedding": None})
            pretrain = pretrain.model_copy(update={"loss": alone})
        changed = {"teacher": teacher, "synthetic": synthetic, "loss": loss, "pretrain": pretrain}
        return self.model_copy(update=changed)

    @property
    def pretraining(self) -> TrialConfig | None:
        """The first of two trainings as a configuration of its own; None where the task is all."""
        first = self.pretrain
        if first.pool == NO_POOL or first.teacher is None:
            return None
        loss = LossSection(ce=0.0, kl=first.loss.kl, embedding=first.loss.embedding)
        unlabelled = SyntheticUse(labels="none")
        return TrialConfig(
            teacher=first.teacher, student=self.student, loss=loss, train=first.train, synthetic=unlabelled
        )

    @property
    def taught_by(self) -> str:
        """Every teacher that the trial hears, as the `teacher` column shows it."""
        names = [self.pretrain.teacher if self.pretraining else None, self.teacher]
        named = [name for name in names if name and name != NO_TEACHER]
        return " > ".join(dict.fromkeys(named)) or NO_TEACHER

    @property
    def needs(self) -> frozenset[str]:
        """What the trial reads of its teacher, as `sweeper.losses.INPUTS` names it; nothing without one."""
        found: set[str] = set()
        if self.teacher == NO_TEACHER:
            return frozenset()
        if self.loss.kl.weight > 0:
            found |= registry.load("losses", "kl").NEEDS
        if self._embedding_weight > 0:
            found |= registry.load("losses", self.loss.embedding.kind).NEEDS  # type: ignore[union-attr]
        if self.synthetic.source and self.synthetic.ratio > 0:
            found |= {"logits"} if self.synthetic.labels == "teacher" else set()
            found |= {"embedding"} if self.synthetic.embedding == "align_only" and self._embedding_weight else set()
        return frozenset(found)

    @property
    def is_online(self) -> bool:
        """The teacher runs in the loop, because a loss needs what no cache holds."""
        return bool(self.needs & ONLINE)

    @property
    def _embedding_weight(self) -> float:
        return float(getattr(self.loss.embedding, "weight", 0))

    @property
    def _terms(self) -> str:
        embedding = str(getattr(self.loss.embedding, "kind", NO_EMBEDDING))
        counts = self._embedding_weight > 0
        names = [("ce", self.loss.ce > 0), ("kl", self.loss.kl.weight > 0), (embedding, counts)]
        return "+".join(name for name, used in names if used)

    @property
    def loss_name(self) -> str:
        """The terms that count, as the `loss` column shows them: `ce+kl+align_uniform`."""
        task = self._terms
        return f"{self.pretraining.loss_name}@{self.pretrain.pool} > {task}" if self.pretraining else task

    @model_validator(mode="after")
    def _has_a_loss(self) -> TrialConfig:
        if self.teacher != NO_TEACHER and not self._terms:
            raise ValueError("loss: every weight is 0, so that nothing would be trained")
        return self
