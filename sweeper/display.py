"""A status that is drawn again and again below what a terminal prints, and is right after the terminal was resized.

The only place that knows rich's live display: `rich.live` moves up by as many lines as it drew, which is too few where
a terminal that became narrower has broken them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import rich.console
from rich.console import ConsoleRenderable
from rich.live import Live

from sweeper import screen
from sweeper.status import Status

PER_SECOND = 4.0


class Display(Live):
    """Draws what `look` returns while a `with` block runs.

    Args:
        is_kept: the last picture stays when the block ends; else it leaves no trace.
    """

    def __init__(self, console: rich.console.Console, look: Callable[[], Status], *, is_kept: bool = False) -> None:
        self._look, self._size = look, console.size
        self._on_screen: list[int] = []  # columns of each line that was drawn last
        self._next: list[int] = []
        super().__init__(
            console=console, get_renderable=self._draw, refresh_per_second=PER_SECOND, transient=not is_kept
        )

    def _draw(self) -> rich.console.RenderableType:
        """One line less than the terminal has: the last line that was printed stays in sight."""
        width, height = self.console.size
        lines = screen.render(self._look(), width, height - 1, ascii_only=self.console.options.ascii_only)
        self._next = [line.cell_len for line in lines]
        return rich.console.Group(*lines)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What rich prints: first it moves up over what it drew last, whatever has become of that."""
        with self._lock:
            size, shape = self.console.size, self._live_render._shape
            if shape is not None and size != self._size:
                rows = sum(max(1, math.ceil(cells / size.width)) for cells in self._on_screen)
                self._live_render._shape = (shape[0], max(1, min(rows, size.height)))
            self._size, self._on_screen = size, self._next
            return super().process_renderables(renderables)
