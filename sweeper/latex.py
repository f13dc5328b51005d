"""Tables for print: a booktabs `tabular`, in ASCII that any engine and any font sets."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from sweeper.tables import Record, TextTable, is_numeric, short

_WRITTEN = {
    "[": "{[}",  # after the end of a row it would be the option of the line break
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{char: "\\" + char for char in "&%$#_{}"},
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
}
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip


def latex(columns: Sequence[str], records: Sequence[Record]) -> str:
    """Every column under its contracted name: `\\input` it below `\\usepackage{booktabs}`, in a float or by itself."""
    align = "".join("r" if is_numeric(records, name) else "l" for name in columns)
    return _tabular(align, columns, ([short(name, record.get(name)) for name in columns] for record in records))


def latex_table(table: TextTable) -> str:
    """What people read, at a width that a page has, where `latex` has every column."""
    return _tabular("".join("r" if name in table.right else "l" for name in table.headers), table.headers, table.rows)


def _tabular(align: str, headers: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    head = " & ".join(map(_escaped, headers))
    rows = "".join(f"  {' & '.join(map(_escaped, row))} \\\\\n" for row in cells)
    return (
        f"% needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{align}}}\n  \\toprule\n  {head} \\\\\n  \\midrule\n"
        f"{rows}  \\bottomrule\n\\end{{tabular}}\n"
    )


def _escaped(text: str) -> str:
    return "".join(_WRITTEN.get(char) or _letter(char) for char in text)


def _letter(char: str) -> str:
    """An accent as its command; what ASCII and accents do not make, by its code point."""
    if char.isascii():
        return char
    letter, *marks = [*unicodedata.normalize("NFD", char)]
    if not (letter.isascii() and marks and all(mark in _ACCENTS for mark in marks)):
        return f"(U+{ord(char):04X})"
    for mark in marks:
        letter = f"\\{_ACCENTS[mark]}{{{letter}}}"
    return letter
