"""Arrow tables from files that anyone may have written: plain columns only."""

from __future__ import annotations

import pyarrow as pa


def plain(table: pa.Table) -> pa.Table:
    """The table, if no column has an extension type, which is code that runs when a value is read.

    Importing `ray.data` registers one whose values are pickles: `to_pylist` would load them.

    Raises:
        pyarrow.ArrowInvalid: a column has one.
    """
    found = [field.name for field in table.schema if _is_extended(field.type)]
    if found:
        raise pa.ArrowInvalid(f"column {found[0]!r} has a type of its own ({table.schema.field(found[0]).type})")
    return table


def _is_extended(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if pa.types.is_dictionary(kind):  # which says that it has no fields
        return _is_extended(kind.value_type)
    return any(_is_extended(kind.field(number).type) for number in range(kind.num_fields))
