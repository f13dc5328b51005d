"""What a space file says, as frozen models: `SweepConfig` is the file, `TrialConfig` one sampled point of it.

Models only: reading YAML, with lines and all errors at once, is `spacefile`; domains and conditions are `space`.
Sections that begin with `kind:` are validated by the `Config` of that kind's module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator
from pydantic_core import PydanticCustomError

from sweeper import registry
from sweeper.domain import nearest
from sweeper.registry import Settings
from sweeper.views import ViewConfig

NO_TEACHER = "none"
NO_EMBEDDING = "none"
Objective = Literal["accuracy", "gpu_hours"]
Direction = Literal["max", "min"]
OBJECTIVES: Mapping[Objective, Direction] = {"accuracy": "max", "gpu_hours": "min"}
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


def _of_kind(family: str, value: Any, allowed: tuple[str, ...]) -> type[Settings]:
    """The `Config` of the kind that `value` names.

    Raises:
        PydanticCustomError: no kind or none of `allowed`, marked so that `explain` blames the `kind:` itself.
    """
    known = f"allowed: {', '.join(allowed)}; `sweeper kinds {family}` lists them"
    if not isinstance(value, dict):
        raise PydanticCustomError("no_section", "needs a section with `kind:` ({known})", {"known": known})
    if "kind" not in value:
        raise PydanticCustomError("no_kind", "is missing ({known})", {"known": known})
    if (kind := value["kind"]) not in allowed:
        message = f"{kind!r} is not a kind of {family}{nearest(str(kind), allowed)} ({known})"
        raise PydanticCustomError("unknown_kind", "{message}", {"message": message})
    return registry.config_class(family, kind)


def _of_family(family: str) -> BeforeValidator:
    """A mapping with `kind:` becomes the `Config` of that kind; an instance passes."""

    def build(value: Any) -> Settings:
        if isinstance(value, Settings):
            return value
        return _of_kind(family, value, tuple(registry.kinds(family))).model_validate(value)

    return BeforeValidator(build)


DatasetConfig = Annotated[SerializeAsAny[Settings], _of_family("datasets")]
TeacherConfig = Annotated[SerializeAsAny[Settings], _of_family("teachers")]
GeneratorConfig = Annotated[SerializeAsAny[Settings], _of_family("generators")]
LossConfig = Annotated[SerializeAsAny[Settings], _of_family("losses")]
SchedulerConfig = Annotated[SerializeAsAny[Settings], _of_family("schedulers")]


class StudentConfig(Settings):
    """A timm architecture. `init: random` trains from nothing; `pretrained` loads timm's or the folder's weights."""

    model: str
    init: Literal["random", "pretrained"] = "random"
    model_args: dict[str, Any] = Field(default_factory=dict)


class SyntheticUse(Settings):
    """How a trial uses generated images: `ratio` x the number of real training images, from `source`.

    `labels: hard` lets the prompt's class enter the cross-entropy; `distill_only` keeps these images out of it
    (Marrie et al. 2024, arXiv 2402.11305).
    """

    source: str | None = None
    ratio: NonNegative = 0.0
    labels: Literal["hard", "distill_only"] = "hard"


class KLConfig(Settings):
    """Weight and temperature of Hinton's distillation term (`sweeper/losses/kl.py`)."""

    weight: NonNegative = 0.0
    temperature: Positive = 4.0


class LossSection(Settings):
    """Weights of the three terms: ce * CE + kl.weight * KL + embedding.weight * L_embedding."""

    ce: NonNegative = 1.0
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
        config = _of_kind("losses", value, (NO_EMBEDDING, *kinds))
        others = _any_embedding_field() - config.model_fields.keys()
        return config.model_validate({key: item for key, item in value.items() if key not in others})


def embedding_kinds() -> tuple[str, ...]:
    """What can stand at `loss.embedding.kind` besides `none`: every loss but kl, which has a section of its own."""
    return tuple(kind for kind in registry.kinds("losses") if kind != "kl")


@cache
def _any_embedding_field() -> frozenset[str]:
    return frozenset(
        field for kind in embedding_kinds() for field in registry.config_class("losses", kind).model_fields
    )


class TrainConfig(Settings):
    """The optimiser's recipe: AdamW (betas 0.9, 0.999) as in METHOD section 1.

    An epoch is `epoch_size` training samples where that is given, else one pass over the trial's own images. With
    `epoch_size` every arm of a sweep sees equally many samples, however many synthetic images it adds.
    """

    epochs: Annotated[int, Field(ge=1)] = 40
    epoch_size: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=2)] = 64
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Probability = 0.05
    precision: Literal["fp32", "bf16"] = "fp32"


class TrialConfig(Settings):
    """One point of the space. `resolved` drops what cannot have an effect, so that equal trials look equal."""

    teacher: str = NO_TEACHER
    student: StudentConfig
    synthetic: SyntheticUse = SyntheticUse()
    loss: LossSection = LossSection()
    train: TrainConfig = TrainConfig()

    def resolved(self) -> TrialConfig:
        """Without a teacher only cross-entropy is left, at weight 1; without images the source has no meaning."""
        synthetic = self.synthetic if self.synthetic.ratio > 0 and self.synthetic.source else SyntheticUse()
        loss = self.loss
        if self.teacher == NO_TEACHER:
            loss = LossSection(ce=1.0)
            synthetic = synthetic.model_copy(update={"labels": "hard"})
        return self.model_copy(update={"synthetic": synthetic, "loss": loss})

    @property
    def loss_name(self) -> str:
        """The terms that count, as the `loss` column shows them: `ce+kl+align_uniform`."""
        embedding = str(getattr(self.loss.embedding, "kind", NO_EMBEDDING))
        counts = getattr(self.loss.embedding, "weight", 0) > 0
        names = [("ce", self.loss.ce > 0), ("kl", self.loss.kl.weight > 0), (embedding, counts)]
        return "+".join(name for name, used in names if used)

    @model_validator(mode="after")
    def _has_a_loss(self) -> TrialConfig:
        if self.teacher != NO_TEACHER and not self.loss_name:
            raise ValueError("loss: every weight is 0, so that nothing would be trained")
        return self


class SearchConfig(Settings):
    """What is asked for, how it is looked for and when to stop: `trials` and/or `gpu_hours`, the first reached."""

    objectives: dict[Objective, Direction] = Field(default_factory=lambda: dict(OBJECTIVES))
    trials: Annotated[int, Field(ge=1)] | None = None
    gpu_hours: Positive | None = None
    sampler: Literal["tpe", "nsga2", "gp", "random"] = "tpe"
    scheduler: SchedulerConfig = Field(default={"kind": "fifo"}, validate_default=True)

    @field_validator("objectives")
    @classmethod
    def _directions(cls, value: dict[Objective, Direction]) -> dict[Objective, Direction]:
        wrong = [f"{name}: {way}" for name, way in value.items() if OBJECTIVES[name] != way]
        if wrong or not value:
            raise ValueError(f"needs accuracy: max, gpu_hours: min or both; given {', '.join(wrong) or 'none'}")
        return value

    @model_validator(mode="after")
    def _has_a_budget(self) -> SearchConfig:
        if self.trials is None and self.gpu_hours is None:
            raise ValueError("give a budget: `trials: N` and/or `gpu_hours: H`")
        return self


class FinalistConfig(Settings):
    """How many points of the front are retrained, with how many seeds; `ablate` adds the arms of the method's claim.

    The arms keep the best distilled finalist's student and recipe: without synthetic images, and without a teacher.
    """

    count: Annotated[int, Field(ge=1)] = 5
    seeds: Annotated[int, Field(ge=1)] = 3
    ablate: bool = True


class ResourceConfig(Settings):
    """What one lane holds. GPUs are asked for only where the cluster has any; never part of a run's identity."""

    gpus_per_trial: NonNegative = 1.0
    workers_per_trial: Annotated[int, Field(ge=1)] = 1
    cpus_per_trial: Annotated[int, Field(ge=1)] = 1


class SweepConfig(Settings):
    """The file. `trial` stays a tree of constants and domains; `space.Space` reads it."""

    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    dataset: DatasetConfig
    views: ViewConfig = ViewConfig()
    teachers: dict[str, TeacherConfig] = Field(default_factory=dict)
    synthetic: dict[str, GeneratorConfig] = Field(default_factory=dict)
    trial: dict[str, Any]
    search: SearchConfig
    finalists: FinalistConfig = FinalistConfig()
    resources: ResourceConfig = ResourceConfig()

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError(
                f"may hold letters, digits, '.', '_' and '-', beginning with a letter or digit; given {value!r}"
            )
        return value

    @field_validator("synthetic", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("kind"), str):
            return {"default": value}
        return value

    @field_validator("teachers")
    @classmethod
    def _none_is_taken(cls, value: dict[str, Any]) -> dict[str, Any]:
        if NO_TEACHER in value:
            raise ValueError(f"{NO_TEACHER!r} means training from scratch and cannot name a teacher")
        return value
