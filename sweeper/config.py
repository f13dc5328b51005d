"""What a space file says, as frozen models: `SweepConfig` is the file; `trial.TrialConfig` one sampled point of it.

Models only: reading YAML, with lines and all errors at once, is `spacefile`; domains and conditions are `space`.
Sections that begin with `kind:` are validated by the `Config` of that kind's module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from sweeper.registry import Settings
from sweeper.sections import NonNegative, Positive, of_family
from sweeper.trial import NO_POOL, NO_TEACHER, Count
from sweeper.views import ViewConfig

TOGETHER = "+"
BUDGETS = ("trials", "gpu_hours", "wall_hours")
FOLDER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
MAX_LISTED = 10_000  # of what is listed before any of it is begun
Objective = Literal["accuracy", "gpu_hours"]
Direction = Literal["max", "min"]
OBJECTIVES: Mapping[Objective, Direction] = {"accuracy": "max", "gpu_hours": "min"}


DatasetConfig = Annotated[SerializeAsAny[Settings], of_family("datasets")]
TeacherConfig = Annotated[SerializeAsAny[Settings], of_family("teachers")]
GeneratorConfig = Annotated[SerializeAsAny[Settings], of_family("generators")]
LossConfig = Annotated[SerializeAsAny[Settings], of_family("losses")]
SchedulerConfig = Annotated[SerializeAsAny[Settings], of_family("schedulers")]
TrackerConfig = Annotated[SerializeAsAny[Settings], of_family("trackers")]


class SearchConfig(Settings, json_schema_extra={"anyOf": [{"required": [name]} for name in BUDGETS]}):
    """What is asked for, how it is looked for and when to stop.

    Ends, the first reached: `trials` started; `gpu_hours` of device time, shared artifacts included; `wall_hours` on
    the clock; a `target` accuracy on validation; `min_gain`, the share of the front's hypervolume that the next trial
    has to be expected to add. One of the first three has to be there.

    `points` are tried first (any part of a point: the sampler draws the rest), then the fronts of the runs in
    `warm_start`, then `startup` quasi-random ones. `front`: `anytime` takes every epoch of every trial for a candidate,
    with what the next epoch confirms of its accuracy; `final` only the end of those that were completed.
    """

    objectives: dict[Objective, Direction] = Field(default_factory=lambda: dict(OBJECTIVES))
    trials: Count | None = None
    gpu_hours: Positive | None = None
    wall_hours: Positive | None = None
    target: Annotated[float, Field(gt=0, le=1)] | None = None
    min_gain: Annotated[float, Field(gt=0, lt=1)] | None = None
    sampler: Literal["tpe", "nsga2", "nsga3", "gp", "random"] = "tpe"
    startup: Annotated[int, Field(ge=0, le=MAX_LISTED)] = 10
    points: list[dict[str, Any]] = Field(default_factory=list)
    warm_start: list[str] = Field(default_factory=list)
    front: Literal["anytime", "final"] = "anytime"
    scheduler: SchedulerConfig = Field(default={"kind": "mo_asha"}, validate_default=True)

    @field_validator("objectives")
    @classmethod
    def _directions(cls, value: dict[Objective, Direction]) -> dict[Objective, Direction]:
        wrong = [f"{name}: {way}" for name, way in value.items() if OBJECTIVES[name] != way]
        if wrong or not value:
            raise ValueError(f"needs accuracy: max, gpu_hours: min or both; given {', '.join(wrong) or 'none'}")
        return value

    @model_validator(mode="after")
    def _has_a_budget(self) -> SearchConfig:
        if all(getattr(self, name) is None for name in BUDGETS):
            raise ValueError("give a budget: `trials: N`, `gpu_hours: H` and/or `wall_hours: H`")
        return self


class FinalistConfig(Settings):
    """How many points of the front are retrained, with how many seeds; `ablate` adds the arms of the method's claim.

    The arms keep the best distilled finalist's student and recipe: without synthetic images, and without a teacher.
    """

    count: Count = 6
    seeds: Annotated[int, Field(ge=1, le=MAX_LISTED)] = 3
    ablate: bool = True


class PretrainedCost(Settings):
    """What a student's pre-trained weights cost whoever made them: hours of this device, or the images that it saw.

    `images` times `epochs` is counted at the speed at which the run itself trains that student.
    """

    gpu_hours: Positive | None = None
    images: Count | None = None
    epochs: Positive | None = None

    @model_validator(mode="after")
    def _is_given_in_one_way(self) -> PretrainedCost:
        counted = (self.images is not None, self.epochs is not None)
        if any(counted) != all(counted) or all(counted) == (self.gpu_hours is not None):
            raise ValueError("give either `gpu_hours`, or both `images` and `epochs`")
        return self

    def hours(self, seconds_an_image: float) -> float:
        """Device-hours, where training on one image takes so many device-seconds."""
        if self.gpu_hours is not None:
            return self.gpu_hours
        assert self.images is not None
        assert self.epochs is not None
        return self.images * self.epochs * seconds_an_image / 3600


class ResourceConfig(Settings):
    """What one lane holds, and how long nodes are waited for that have room for one; never part of a run's identity.

    GPUs are asked for only where the cluster has any, or its autoscaler may add some. `prices`: dollars an hour by a
    word of the device's name (`{A10G: 1.0, L4: 0.8}`), for the hours of unlike devices.
    """

    gpus_per_trial: NonNegative = 1.0
    workers_per_trial: Count = 1
    cpus_per_trial: Count = 1
    wait_minutes: NonNegative = 30.0
    prices: dict[str, Positive] = Field(default_factory=dict)


class SweepConfig(Settings):
    """The file. `trial` stays a tree of constants and domains; `space.Space` reads it."""

    name: Annotated[str, Field(json_schema_extra={"pattern": f"^{FOLDER_NAME}$"})]
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    dataset: DatasetConfig
    views: ViewConfig = ViewConfig()
    teachers: dict[str, TeacherConfig] = Field(default_factory=dict)
    synthetic: dict[str, GeneratorConfig] = Field(default_factory=dict)
    pools: dict[str, DatasetConfig] = Field(default_factory=dict)
    trial: dict[str, Any]
    search: SearchConfig
    finalists: FinalistConfig = FinalistConfig()
    pretrained: dict[str, PretrainedCost] = Field(default_factory=dict, exclude_if=lambda value: not value)
    resources: ResourceConfig = ResourceConfig()
    track: dict[str, TrackerConfig] = Field(default_factory=dict, exclude_if=lambda value: not value)

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, value: str) -> str:
        if not re.fullmatch(FOLDER_NAME, value):
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

    @field_validator("track", mode="before")
    @classmethod
    def _one_tracker_or_several(cls, value: Any) -> Any:
        """One is called by its kind."""
        if isinstance(value, dict) and isinstance(value.get("kind"), str):
            return {value["kind"]: value}
        return value

    @field_validator("synthetic")
    @classmethod
    def _filters_ask_a_teacher(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        teachers: dict[str, Any] | None = info.data.get("teachers")
        for name, generator in value.items():
            asked = getattr(getattr(generator, "filter", None), "teacher", None)
            if asked is not None and teachers is not None:  # None: they have errors of their own
                single = [other for other in teachers if not hasattr(teachers[other], "members")]
                if asked not in single:
                    known = ", ".join(single) or "(none)"
                    raise ValueError(f"{name}.filter.teacher: {asked!r} is not one of the single teachers {known}")
        return value

    @field_validator("pools")
    @classmethod
    def _no_pool_is_none(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if NO_POOL in value:
            raise ValueError(f"{NO_POOL!r} means no pre-training and cannot name a pool")
        size = getattr(info.data.get("dataset"), "image_size", None)
        for name, pool in value.items():
            if size is not None and pool.image_size != size:
                raise ValueError(f"{name}.image_size: has to be the dataset's, {size}; given {pool.image_size}")
        return value

    @field_validator("teachers")
    @classmethod
    def _names_are_free(cls, value: dict[str, Any]) -> dict[str, Any]:
        if NO_TEACHER in value:
            raise ValueError(f"{NO_TEACHER!r} means training from scratch and cannot name a teacher")
        joined = [name for name in value if TOGETHER in name]
        if joined:
            raise ValueError(f"{joined[0]!r}: {TOGETHER!r} joins teachers to an ensemble and cannot stand in a name")
        for name, teacher in value.items():
            for member in getattr(teacher, "members", ()):
                if member not in value or hasattr(value[member], "members"):
                    single = [other for other in value if not hasattr(value[other], "members")]
                    raise ValueError(
                        f"{name}.members: {member!r} is not one of the single teachers {', '.join(single)}"
                    )
        return value

    def members(self, teacher: str) -> tuple[str, ...]:
        """The single teachers behind a name of `trial.teacher`: those of an ensemble, itself, or none for `none`."""
        if teacher == NO_TEACHER:
            return ()
        if teacher in self.teachers:
            return tuple(getattr(self.teachers[teacher], "members", (teacher,)))
        return tuple(teacher.split(TOGETHER))

    def embeds_separately(self, teacher: str) -> bool:
        """The embedding loss is taken for each member of an ensemble by itself, not on all embeddings side by side."""
        return getattr(self.teachers.get(teacher), "embedding", "") == "separate"
