"""`sweeper init`: a first space file for a dataset and this machine, from a look at both."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sweeper import choices, hub, spacefile, survey_table
from sweeper import survey as surveys
from sweeper.choices import Choices, Teacher
from sweeper.console import Console
from sweeper.errors import InputError
from sweeper.files import write_atomically
from sweeper.forecast import Forecast
from sweeper.layout import fitted
from sweeper.place import Place
from sweeper.survey import Survey
from sweeper.tables import duration
from sweeper.wording import one_line, spoken

SEED = 0
TIMED_S = 12.0  # on the clock, in which models are timed; `plan` and `run` find the measurements again
EMBEDDINGS = ("align_uniform", "kdep", "info_nce")
HUB_TEACHERS = {  # cheapest first
    "CPU": (("resnet18", "resnet18.a1_in1k"), ("vit_tiny", "vit_tiny_patch16_224.augreg_in21k_ft_in1k")),
    "GPU": (("resnet50", "resnet50.a1_in1k"), ("vit_base", "vit_base_patch16_224.augreg2_in21k_ft_in1k")),
}
TIMM = "timm/"  # timm's own organisation on the hub
TEMPLATE = "space.yaml.j2"
NO_HUB = (
    "No hub can be reached from here, so that no pre-trained teacher can be loaded (`model: resnet50.a1_in1k, weights:",
    "hub`). This one is small and saw handwritten digits only; fine-tuned on your images it knows what they show, no",
    "more. Better, brought from another machine: `weights: PATH`, a folder in timm's format or a safetensors file.",
)


def write(folder: str, console: Console, *, out: Path | None, name: str | None, minutes: float, force: bool) -> Path:
    """Look at `folder`, say what was seen, and write the file.

    Args:
        folder: class folders, parquet files or tar shards; a URI.
        out: by default `<name>.yaml` here.
        name: of the runs; by default the folder's.
        minutes: on the clock that the sweep should take on this machine, about.

    Raises:
        InputError: no dataset, or a file that is there already and `force` was not said.
    """
    from sweeper import place

    name = name or _name_of(folder)
    path = out or Path(f"{name}.yaml")
    if path.exists() and not force:
        raise InputError(f"{path}: exists already; --force replaces it, --out FILE writes elsewhere")
    dataset = surveys.recognise(folder)
    index = surveys.listed(dataset, SEED)
    with console.stage("look", min(len(index), surveys.MOST_LOOKED), "images") as counter:
        seen = surveys.survey(dataset, index, counter.advance)
    _tell(seen, console)
    if not seen.short_side:
        raise InputError(f"{folder}: none of its images can be read")
    here = place.here()
    with console.stage("time a few models"):
        chosen, expected = _chosen(seen, name, here, minutes)
    if not _from_hub(chosen):
        console.message("no model hub answers: the teacher is a small one that comes with sweeper; the file says more")
    write_atomically(path, text(seen, chosen, name, path, here, about(expected)).encode())
    over = (expected.wall_s or 0.0) > 1.5 * 60 * minutes
    console.message(f"wrote {path}: {chosen.trials} trials, {about(expected)}")
    if over:
        console.message(f"that is more than {minutes:g} minutes, and already the least that makes sense", "yellow")
    for command, does in (
        (f"sweeper plan {path}", "what it builds and should cost"),
        (f"sweeper run {path} --rehearse", "every stage in little"),
        (f"sweeper run {path}", "the answer"),
    ):
        console.message(f"  {command:<{24 + len(str(path))}}  # {does}")
    return path


def _tell(seen: Survey, console: Console) -> None:
    console.message()
    console.show(fitted(survey_table.table(seen), console.width))
    console.message()
    for line in survey_table.remarks(seen):
        console.message(line)
    for line in survey_table.warnings(seen):
        console.message(line, "" if line.startswith(" ") else "yellow")
    console.message()


def _name_of(folder: str) -> str:
    """A name of a run out of a folder's: letters, digits, '.', '_' and '-'."""
    last = Path(folder.split("://")[-1].rstrip("/")).absolute().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last.removesuffix(".parquet").removesuffix(".tar")).strip("-._") or "mine"


def teachers_for(processor: str) -> tuple[Teacher, ...]:
    """Pre-trained teachers whose weights can be had; without a hub one that sweeper brings along."""
    found = []
    for name, model in HUB_TEACHERS[processor]:
        state = hub.find(f"{TIMM}{model}")
        if state == "absent":
            break  # without a hub for one there is none for the next
        why = "on this machine already" if state == "cached" else "downloaded from the hub when it is first used"
        settings = f"{{kind: timm, model: {model}, weights: hub, adapt: linear_probe}}"
        found.append(Teacher(name=name, settings=settings, why=f"seen ImageNet; {why}"))
    offline = Teacher(
        name="digits_cnn",
        settings='{kind: timm, weights: "zoo:cnn", adapt: fine_tune}',
        why="comes with sweeper, saw digits only, trained on your images",
    )
    return tuple(found) or (offline,)


def _chosen(seen: Survey, name: str, here: Place, minutes: float) -> tuple[Choices, Forecast]:
    from sweeper.calibration import Calibration
    from sweeper.forecast import forecast
    from sweeper.plan import make_plan
    from sweeper.store import Store

    wanted = choices.first(
        short_side=seen.short_side,
        num_train=seen.index.split_counts()["train"],
        class_names=seen.index.class_names,
        processor=here.slot.processor,
        teachers=teachers_for(here.slot.processor),
    )
    with TemporaryDirectory(prefix="sweeper-init-") as folder:
        path, store = Path(folder) / "space.yaml", Store(str(Path(folder) / "store"))

        def expect(made: Choices) -> Forecast:
            path.write_text(text(seen, made, name, path, here, ""), encoding="utf-8")
            space = spacefile.load(path)
            plan = make_plan(space.config, space.space, seen.index, store)
            timed = Calibration(here.slot, here.lanes(space.config) or 1)
            within = (lambda total: TIMED_S) if made is wanted else None
            return forecast(plan, space.space, store, here, calibration=timed, within=within)

        return choices.fit(wanted, expect, 60 * minutes)


def about(expected: Forecast) -> str:
    """What a run should take, in words."""
    clock = duration(expected.wall_s) if expected.wall_s is not None else "an unknown time"
    return f"about {clock} on {expected.lanes or 'an unknown number of'} lane{'s' if expected.lanes != 1 else ''}"


def text(seen: Survey, chosen: Choices, name: str, path: Path, here: Place, forecast: str) -> str:
    """The file's contents: the template with every choice and its reason."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sweeper"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"scalar": _scalar, "brackets": lambda inner: f"[{inner}]"}
    return environment.get_template(TEMPLATE).render(dict(_words(seen, chosen, name, path, here, forecast)))


def _words(
    seen: Survey, chosen: Choices, name: str, path: Path, here: Place, forecast: str
) -> Iterator[tuple[str, Any]]:
    counts, classes = seen.index.split_counts(), seen.index.class_names
    dataset: Any = seen.dataset
    where = "root" if dataset.kind == "image_folder" else "path"
    names = ", ".join(teacher.name for teacher in chosen.teachers)
    processor = here.slot.processor
    yield from {"c": chosen, "name": name, "file": path, "dataset": dataset, "where": where}.items()
    yield "place", getattr(dataset, where)
    yield "about", forecast or "a first answer"
    yield "processor", processor
    yield "seen", f"{len(seen.index):,} images of {len(classes)} classes"
    yield "machine", _machine(here)
    yield "num_classes", len(classes)
    yield "what", {"image_folder": "a folder of class folders"}.get(dataset.kind, f"{dataset.kind} files")
    yield "drawn", f"{' and '.join(seen.drawn)} {'are' if len(seen.drawn) > 1 else 'is'}" if seen.drawn else ""
    yield "why_size", _why_size(seen.short_side, chosen.image_size, processor)
    yield (
        "why_flip",
        (
            "mirrored images are seen, too; false where left and right mean something (letters, road signs)"
            if chosen.flip
            else "your classes look like characters or sides, which a mirror changes"
        ),
    )
    yield "spoken", one_line(spoken(classes[0]), 40)
    yield "names", f"[{names}]"
    yield "names_and_none", f"[{names}, none]"
    yield "embeddings", EMBEDDINGS
    yield "steps", f"{chosen.epochs * max(1, round(counts['train'] / chosen.batch_size)):,}"
    yield "why_trials", f"{forecast} by the forecast; more find more" if forecast else "more find more"
    yield "why_resources", _why_resources(here)
    yield "teacher_note", _teacher_note(chosen)


def _teacher_note(chosen: Choices) -> str:
    if _from_hub(chosen):
        return "  # more: any timm model, a folder or a safetensors file as `weights:`, a CLIP (`kind: open_clip`)"
    return "\n".join(f"  # {line}" for line in NO_HUB)


def _from_hub(chosen: Choices) -> bool:
    return all("weights: hub" in teacher.settings for teacher in chosen.teachers)


def _why_size(short_side: int, size: int, processor: str) -> str:
    if size == choices.LARGEST[processor] and size < short_side:
        return f"the median one has {short_side}; time goes with the square"
    return f"the median image's shorter side has {short_side}"


def _machine(here: Place) -> str:
    totals = here.totals or {}
    cores = f"{totals.get('CPU', 1):g} cores"
    return f"{totals['GPU']:g} x {here.slot.device} and {cores}" if totals.get("GPU") else f"{cores} without a GPU"


def _why_resources(here: Place) -> str:
    if here.slot.processor == "GPU":
        return "of one training; gpus_per_trial: 0.5 puts two on a GPU"
    return f"of one training, {len(os.sched_getaffinity(0))} at a time; GPUs only where there are any"


def _scalar(value: object) -> str:
    """A text as YAML has to be told it, on one line."""
    import yaml

    text: str = yaml.safe_dump(value, default_style='"', width=10**6, allow_unicode=True)
    return text.strip()
