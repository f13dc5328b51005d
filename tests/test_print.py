"""What a paper takes over: LaTeX that compiles as it stands, and a picture at the width of a column."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from run_samples import NASTY, ablation_rows, final_row, final_rows, trial_rows, write_full_run

from sweeper import figures, latex, tables
from sweeper.results import RunFolder

ENGINE = next(filter(None, map(shutil.which, ("pdflatex", "tectonic"))), None)
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\begin{document}
\input{table.tex}
\end{document}
"""
ODD = "[b_c] & 100% $x$ ~^\\ {数} é ą ±0.1 → Ω " + NASTY


def compiled(text: str, folder: Path) -> Path:
    """The document's PDF."""
    assert ENGINE is not None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.tex").write_text(text, encoding="utf-8")
    (folder / "paper.tex").write_text(DOCUMENT)
    options = ["-interaction=nonstopmode", "-halt-on-error"] if ENGINE.endswith("pdflatex") else []
    done = subprocess.run([ENGINE, *options, "paper.tex"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    return folder / "paper.pdf"


@pytest.mark.skipif(ENGINE is None, reason="no LaTeX here: apt-get install texlive-latex-recommended")
def test_the_tables_compile_in_a_document_with_booktabs(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "tiny" / "a1")
    run.write_pareto([final_row(1, student=ODD, teacher=ODD), *final_rows()[1:]])
    for name, text in {
        "pareto": (run.path / "pareto.tex").read_text(encoding="utf-8"),
        "shown": latex.latex_table(tables.pareto(run.read_pareto())),
    }.items():
        assert compiled(text, tmp_path / name).read_bytes().startswith(b"%PDF")


def test_a_name_in_any_script_is_ascii_for_latex() -> None:
    text = latex.latex(["student"], [{"student": ODD}])
    assert text.isascii()
    for words in ("{[}b\\_c]", "\\'{e}", "(U+6570)", "(U+0105)", "$\\pm$0.1", "$\\rightarrow$"):
        assert words in text, words


def front(path: Path | None = None) -> dict[str, bytes]:
    records = [[row.record() for row in rows] for rows in (final_rows(), trial_rows(), ablation_rows())]
    return figures.front(*records)


def test_the_picture_is_as_wide_as_a_column() -> None:
    made = front()
    image = Image.open(io.BytesIO(made["png"]))
    assert image.width == pytest.approx(figures.COLUMN_IN * figures.DPI, abs=1)
    (box,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+)", made["pdf"])
    assert float(box[0]) / 72 == pytest.approx(figures.COLUMN_IN, abs=0.01)
    assert 3.2 <= figures.COLUMN_IN <= 3.5, "a column of a paper in two columns"


def test_equal_records_give_equal_pictures_in_both_forms() -> None:
    assert front() == front()


def test_error_bars_are_the_tables_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn = []
    whole = Axes.errorbar

    def kept(self: Axes, x: list[float], y: list[float], **options: object) -> object:
        drawn.append((y, options["yerr"]))
        return whole(self, x, y, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "errorbar", kept)
    front()
    rows, baselines = final_rows(), [row for row in ablation_rows() if row.role == "scratch"]
    assert drawn[0] == ([r.accuracy_test for r in rows], [r.accuracy_test_std for r in rows])
    assert drawn[1] == ([r.accuracy_test for r in baselines], [r.accuracy_test_std for r in baselines])


def test_the_run_leaves_both_forms(tmp_path: Path) -> None:
    run: RunFolder = write_full_run(tmp_path / "tiny" / "a1")
    assert (run.path / "pareto.pdf").read_bytes().startswith(b"%PDF")
    assert (run.path / "pareto.png").read_bytes().startswith(b"\x89PNG")
