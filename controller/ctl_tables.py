"""Tables on an operator's terminal."""

import os
import sys

from rich.console import Console, JustifyMethod
from rich.table import Table

KEPT_WHOLE = {"VM", "node", "mode", "state", "resource"}


def console() -> Console:
    """As wide as the terminal; 160 columns into a pipe, where nothing must be cut off."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(width=wide, highlight=False)


def table_of(*headers: str) -> Table:
    """A table whose columns named with a leading `>` stand at the right.

    In a narrow terminal amounts and reasons go on in the next line; names stay whole.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        justify: JustifyMethod = "right" if header[:1] == ">" else "left"
        table.add_column(header.lstrip(">"), justify=justify, no_wrap=header in KEPT_WHOLE)
    return table


def print_table(table: Table, nothing: str) -> None:
    if table.row_count:
        console().print(table)
    else:
        console().print(nothing)
