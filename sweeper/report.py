"""A run as one HTML page.

The page holds everything in one file: styles, pictures, the figures' data and plotly.js are inlined, and its content
security policy lets nothing be fetched and no script run but the two whose hashes it names. Without JavaScript the
tables and the printed picture are left. It follows the reader's light or dark scheme and escapes every text: class
names and messages come from the user's data. It is made from records (`page_data`) and depends on nothing else: equal
records give equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from importlib import resources
from typing import Any

import yaml

from sweeper import figures, findings, latex, mistakes, page_data, page_tables, tables
from sweeper.page_data import Contents
from sweeper.rows import pareto_texts

NUM_LISTED = 30
# Facts with these names are said where they belong instead of in the head.
WINNERS_CURSE = "winner's curse"
WHAT_MATTERED = "what mattered"
# Said of the data; the others of the run.
_OF_DATA = ("dataset", "images", "classes", "unreadable", "in two splits")


def html(contents: Contents) -> bytes:
    """The page, in UTF-8."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["plain"] = tables.plain
    scripts = [_plotly(), _part("page.js")]
    facts = {tables.plain(name): tables.plain(_fact(value)) for name, value in contents.facts.items()}
    page = environment.from_string(_part("report.html.j2")).render(
        title=tables.plain(contents.title),
        style=Markup(_part("page.css")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
        data=Markup(page_data.as_json(_data(contents))),
        winners_curse=facts.pop(WINNERS_CURSE, ""),
        what_mattered=facts.pop(WHAT_MATTERED, ""),
        of_data={name: text for name, text in facts.items() if name in _OF_DATA},
        facts={name: text for name, text in facts.items() if name not in (*_OF_DATA, *_told_elsewhere(contents))},
        space=tables.plain(yaml.safe_dump(contents.space, sort_keys=False, allow_unicode=True)),
        command=tables.plain(contents.environment.get("command", "")),
        environment=tables.plain(json.dumps(contents.environment, indent=2, ensure_ascii=False, sort_keys=True)),
        **_pictures(contents),
        **_told(contents),
    )
    return (page + "\n").encode("utf-8", "replace")


def _told_elsewhere(contents: Contents) -> tuple[str, ...]:
    """Facts that a table of the page says better."""
    return ("teachers",) if contents.teachers else ()


def _told(contents: Contents) -> dict[str, Any]:
    """What the page says in tables and sentences."""
    wrong = mistakes.chosen(contents.confusion)
    shown = page_data.drawn_trials(contents.trials)
    unit, factor = page_data.cost_unit(contents)
    fact = contents.forecast.get("fact")
    curve = contents.hypervolume
    return {
        "answer": page_tables.answer(contents),
        "choices": page_tables.choices(contents.trials),
        "teachers": page_tables.teachers(contents) if contents.teachers else None,
        "pareto": tables.pareto(contents.pareto),
        "ablation": tables.ablation(contents.ablation) if contents.ablation else None,
        "trials": tables.trials(shown, unit, factor),
        "num_trials": len(contents.trials),
        "importance": page_tables.importance_shares(contents.importance),
        "slices": page_tables.slices(contents),
        "rungs": findings.rungs(contents.rungs) if contents.rungs else None,
        "rungs_say": findings.rungs_sentence(contents.rungs) if contents.rungs else "",
        "progress_says": page_tables.progress_sentence(curve, contents.device) if curve else "",
        "spending": page_tables.spending(contents),
        "cache_says": page_tables.cache_sentence(contents),
        "ledger": page_tables.ledger(contents.ledger),
        "forecast": findings.forecast_and_fact(contents.forecast["forecast"], fact) if fact else None,
        "mistakes": mistakes.matrix(wrong) if wrong else None,
        "worst_classes": mistakes.worst_classes(wrong) if wrong else None,
        "worst_pairs": mistakes.worst_pairs(wrong) if wrong else None,
        "failed": [trial for trial in contents.trials if trial["state"] == "failed"],
    }


def _data(contents: Contents) -> dict[str, Any]:
    """What the page's script reads: figures, and the texts that its buttons copy."""
    shown = tables.pareto(contents.pareto)
    texts = pareto_texts(contents.pareto) if contents.pareto else {}
    copies = {"csv": texts.get("csv", b"").decode(), "tex": latex.latex_table(shown)}
    return {**page_data.figure_data(contents), "copies": copies}


def _pictures(contents: Contents) -> dict[str, Any]:
    return {
        "png": _inline("image/png", contents.png),
        "progress_png": _inline("image/png", contents.progress_png) if contents.progress_png else "",
        "sheets": [(_sheet_title(name), _sheet(data)) for name, data in contents.sheets.items()],
        "palette": figures.COLOURS,
    }


def _sheet_title(name: str) -> str:
    return "Real training images" if name == "real" else f"Synthetic images of {name.removeprefix('synthetic-')}"


def _sheet(data: bytes) -> str:
    """A contact sheet for the page; photographs, of which a PNG takes megabytes, as JPEG."""
    if len(data) <= page_data.MAX_SHEET_BYTES:
        return _inline("image/png", data)
    from PIL import Image

    out = io.BytesIO()
    try:
        Image.open(io.BytesIO(data)).convert("RGB").save(out, "JPEG", quality=85)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # damaged: a browser shows what it can
        return _inline("image/png", data)
    return _inline("image/jpeg", out.getvalue())


def _inline(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _part(name: str) -> str:
    return resources.files("sweeper").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def _plotly() -> str:
    """plotly.js as it comes with plotly.py; nothing in it ends the element that it stands in."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _policy(scripts: list[str]) -> str:
    """Nothing is fetched, and only these scripts run; plotly makes style elements, and its download a blob."""
    sums = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in sums)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _fact(value: object) -> str:
    """A text as it is; of a list, such as a dataset's classes, the first names and the number of the others."""
    if not isinstance(value, (list, tuple)):
        return str(value)
    shown = ", ".join(map(str, value[:NUM_LISTED]))
    return shown if len(value) <= NUM_LISTED else f"{shown} and {len(value) - NUM_LISTED} more"
