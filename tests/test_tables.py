from __future__ import annotations

import csv
import io
import re

import pytest
from run_samples import NASTY, ablation_rows, final_row, final_rows

from sweeper import findings, latex, tables
from sweeper.results import COLUMNS


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.9, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_duration_reads_like_a_clock(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0031415, "0.003142"), (123.456, "123.5"), (98765.4, "98765"), (0, "0"), (float("nan"), ""), (-0.5, "-0.5000")],
)
def test_significant_has_four_digits_and_no_exponent(value: float, text: str) -> None:
    assert tables.significant(value) == text


def test_cost_unit_follows_size_and_device() -> None:
    assert tables.cost_unit([0.001, 0.05], "cpu") == ("CPU-s", 3600.0)
    assert tables.cost_unit([0.001, 12.0], "NVIDIA H100 80GB HBM3") == ("GPU-h", 1.0)
    assert tables.cost_unit([], "cpu") == ("CPU-s", 3600.0)


def test_csv_reads_back_and_keeps_the_sum_of_costs() -> None:
    records = [row.record() for row in final_rows()]
    records[0]["student"] = 'say "hi", twice\nor more'
    back = list(csv.DictReader(io.StringIO(tables.csv_text(COLUMNS, records))))
    assert tuple(back[0]) == COLUMNS
    assert back[0]["student"] == records[0]["student"]
    for row in back:
        parts = sum(float(row[f"gpu_hours_{stage}"]) for stage in ("adapt", "targets", "synthetic", "train"))
        assert float(row["gpu_hours"]) == pytest.approx(parts, rel=1e-8)


def test_csv_has_no_exponent_and_leaves_what_is_missing_empty() -> None:
    text = tables.csv_text(
        ["gpu_hours", "accuracy_val", "x"], [{"gpu_hours": 2.5e-7, "accuracy_val": float("nan"), "x": None}]
    )
    assert text == "gpu_hours,accuracy_val,x\n0.00000025,,\n"


def test_markdown_keeps_one_row_a_line_and_escapes_markup() -> None:
    text = tables.markdown(
        ["student", "accuracy_val"], [{"student": f"a|b\n*c* {NASTY} __x__ a_b", "accuracy_val": 0.5}]
    )
    head, rule, row = text.splitlines()
    assert head == "| student | accuracy_val |"
    assert rule == "| :--- | ---: |"
    assert row == r"| a\|b \*c\* &lt;img src=x onerror=alert(1)&gt; \_\_x\_\_ a_b | 0.5000 |"


def test_latex_has_balanced_cells_and_no_bare_special() -> None:
    record = {"student": r"50%_of $x & {y} #1 ~^ \cmd <a>", "accuracy_val": 0.5}
    text = latex.latex(["student", "accuracy_val"], [record])
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 2
    assert all(len(re.findall(r"(?<!\\)&", line)) == 1 for line in lines)
    assert (
        r"50\%\_of \$x \& \{y\} \#1 \textasciitilde{}\textasciicircum{} \textbackslash{}cmd \textless{}a\textgreater{}"
        in text
    )
    assert text.count(r"\begin{tabular}{lr}") == text.count(r"\end{tabular}") == 1


def test_pareto_has_one_unit_and_aligned_costs() -> None:
    table = tables.pareto([row.record() for row in final_rows()])
    assert "CPU-s" in table.headers
    costs = [row[table.headers.index("CPU-s")] for row in table.rows]
    assert costs == ["22.00", "13.00", "4.00"]
    assert table.rows[0][table.headers.index("test")] == "0.958±0.004"


def test_epochs_are_shown_where_they_differ() -> None:
    """A front of every epoch has one trial several times."""
    same = tables.pareto([row.record() for row in final_rows()])
    assert "epochs" not in same.headers
    table = tables.pareto([final_row(1, epochs=12).record(), final_row(2, epochs=7).record()])
    at = table.headers.index("epochs")
    assert [row[at] for row in table.rows] == ["12", "7"]
    assert "epochs" in table.right


def test_importance_in_a_line_an_objective() -> None:
    def record(objective: str, parameter: str, importance: float) -> dict[str, object]:
        return {"objective": objective, "parameter": parameter, "importance": importance, "trials": 9}

    found = findings.importance_lines(
        [
            record("accuracy", "teacher", 0.2),
            record("accuracy", "train.lr", 0.77),
            record("accuracy", "loss.ce", 0.03),
            record("gpu_hours", "student.model", 1.0),
        ]
    )
    assert found == ["accuracy: train.lr 77%, teacher 20%", "gpu_hours: student.model 100%"]
    assert findings.importance_lines([]) == []


def test_one_seed_has_no_spread() -> None:
    table = tables.pareto([final_row(1, seeds=1, accuracy_test_std=float("nan")).record()])
    assert table.rows[0][table.headers.index("test")] == "0.958"
    assert "one seed" in table.caption


def test_ablation_gives_points_over_scratch_of_the_same_student() -> None:
    other = final_row(1, role="distilled", student="test_vit").record()
    table = tables.ablation([*(row.record() for row in ablation_rows()), other])
    assert [row[table.headers.index("gain")] for row in table.rows] == ["+7.5", "+4.9", "", ""]


def test_plain_drops_escape_sequences_and_control_characters() -> None:
    assert tables.plain("\x1b[31mred\x1b[0m\tand\x07 \x1b]0;title\x07back\u202e\nline") == "red and  back\nline"
