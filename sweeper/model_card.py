"""The model card of an exported student: what it is, what it was trained on and how, what it cost, how good it is.

Every figure and name is read from the files of its run; names come from the user's data and are escaped. Paths are cut
to their last part, since a card is made to be shown to others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import yaml

from sweeper import tables
from sweeper.onnx_export import Check
from sweeper.redact import redacted
from sweeper.results import RunFolder
from sweeper.rows import Record
from sweeper.wording import one_line

# How a card begins, by which an earlier export is known.
HEAD = "---\n# Written by `sweeper export --model`, which replaces this folder when it is written again.\n"
NUM_NAMED = 30
_FACTS = ("images", "in two splits")  # others name files, or speak of the search
_EXECUTION = frozenset({"max_ratio", "batch_size", "trust", "compile"})  # settings that make no image another one
_PARTS = (
    ("adaptation of the teacher", "gpu_hours_adapt"),
    ("its targets", "gpu_hours_targets"),
    ("synthetic images", "gpu_hours_synthetic"),
    ("training", "gpu_hours_train"),
)


def render(run: RunFolder, row: Record, config: Mapping[str, Any], check: Check | None, command: str) -> str:
    """The card, in Markdown with a head of YAML as model hubs read it.

    Args:
        row: of the run's Pareto table.
        config: the student's `config.json`.
        check: of the ONNX file; None where there is none.
        command: that wrote the export.
    """
    import jinja2

    template = resources.files("sweeper").joinpath("templates/model_card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"md": _escaped, "code": _code, "fenced": _fenced, "acc": tables.accuracy_text}
    space, surroundings = run.read_space(), run.read_environment()
    trial: Mapping[str, Any] = next((t["config"] for t in run.read_trials() if t["trial"] == row["trial"]), {})
    facts = surroundings.get("facts", {})
    names = [str(name) for name in config["label_names"]]
    card = environment.from_string(template).render(
        run=run.label,
        row=row,
        taught=row["teacher"] != "none",
        image_size=config["pretrained_cfg"]["input_size"][-1],
        num_classes=len(names),
        classes=names[:NUM_NAMED],
        num_more=max(0, len(names) - NUM_NAMED),
        params=tables.params_text(row["params"]),
        data=_phrase(space.get("dataset", {})),
        facts={name: facts[name] for name in _FACTS if name in facts},
        teachers=[(name, _phrase(space["teachers"][name])) for name in _heard(trial, space)],
        views=_phrase(space.get("views", {})),
        synthetic=_synthetic(trial, space),
        planned=trial.get("train", {}).get("epochs"),
        settings=_settings(trial),
        cost=_cost(row),
        check=check,
        packages=", ".join(f"{name} {version}" for name, version in surroundings.get("packages", {}).items()),
        environment=surroundings,
        ran=surroundings.get("command", ""),
        command=command,
    )
    return HEAD + redacted(card) + "\n"


def _heard(trial: Mapping[str, Any], space: Mapping[str, Any]) -> list[str]:
    """The single teachers that a trial heard, on a pool and on the task, members of ensembles by themselves."""
    teachers = space.get("teachers", {})
    found: list[str] = []
    for name in (trial.get("pretrain", {}).get("teacher"), trial.get("teacher")):
        alone = name in teachers and "members" not in teachers[name]
        members = [name] if alone else teachers.get(name, {}).get("members") or str(name).split("+")
        found += [str(member) for member in members if member in teachers]
    return list(dict.fromkeys(found))


def _settings(trial: Mapping[str, Any]) -> str:
    """The trial's configuration as YAML, without a pre-training that there was not."""
    has_pool = trial.get("pretrain", {}).get("pool", "none") != "none"
    used = {name: value for name, value in trial.items() if name != "pretrain" or has_pool}
    return yaml.safe_dump(_public(used), sort_keys=False, allow_unicode=True) if used else ""


def _synthetic(trial: Mapping[str, Any], space: Mapping[str, Any]) -> str:
    used = trial.get("synthetic", {})
    if not used.get("source") or not used.get("ratio"):
        return ""
    source = space.get("synthetic", {}).get(used["source"], {})
    return f"{tables.ratio_text(used['ratio'])} the real training images, from {used['source']} ({_phrase(source)})"


def _cost(row: Record) -> tables.TextTable:
    """One line a part and one for the whole, in the unit that fits."""
    unit, factor = tables.cost_unit([row["gpu_hours"]], row["device"])
    first = row.get("gpu_hours_pretrain")
    parts = [*_PARTS, *([("of which pre-training", "gpu_hours_pretrain")] if first else [])]
    parts += [
        ("whole cost from nothing", "gpu_hours"),
        ("in the sweep, its share of what others used too", "gpu_hours_amortized"),
    ]
    rows = tuple((name, tables.significant((row[column] or 0.0) * factor)) for name, column in parts)
    return tables.TextTable(headers=("part", unit), rows=rows, right=frozenset({unit}))


def _phrase(settings: Mapping[str, Any]) -> str:
    """`timm, weights zoo:cnn, adapt linear_probe`: the kind, then what is set; lists in brackets."""
    told = {name: value for name, value in settings.items() if name not in _EXECUTION}
    return ", ".join(value if name == "kind" else f"{name} {value}" for name, value in _leaves(_public(told)))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}" if path else str(name))
    elif value is not None:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _public(value: Any) -> Any:
    """The same tree for people: absolute paths cut to their last part, floats to six digits."""
    if isinstance(value, Mapping):
        return {name: _public(item) for name, item in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_public(item) for item in value]
    is_path = isinstance(value, str) and value.startswith(("/", "~", "file:", "local-dir:"))
    return value.rstrip("/").rpartition("/")[2] if is_path else value


def _escaped(text: object) -> str:
    """On one line, and no markup or HTML in it takes effect."""
    return tables.markdown_escape(one_line(str(text)))


def _code(text: object) -> str:
    """A code span, whatever backticks it holds."""
    shown = one_line(str(text))
    ticks = "`" * (_longest_run(shown) + 1)
    gap = " " if "`" in shown else ""
    return f"{ticks}{gap}{shown}{gap}{ticks}"


def _fenced(text: str, language: str = "") -> str:
    """A code block that nothing within it ends."""
    shown = tables.plain(text)
    fence = "`" * max(3, _longest_run(shown) + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def _longest_run(text: str) -> int:
    longest = run = 0
    for char in text:
        run = run + 1 if char == "`" else 0
        longest = max(longest, run)
    return longest
