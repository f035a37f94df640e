"""Progress bars on stderr, with the time left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from onnxq.progress import Progress
from onnxq.report.wording import printable

LONGEST_DETAIL = 40


class Bars:
    """One bar at a time, the current stage's; nothing where the console is no terminal.

    It is a listener for :class:`onnxq.progress.Progress`, to be used as a context.

    Args:
        console: where to draw; stderr when None.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
            transient=True,
            disable=not console.file.isatty(),
        )
        self._stage = ""
        self._task = TaskID(0)

    def __enter__(self) -> Bars:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wipe the bar."""
        self._bars.stop()

    def __call__(self, moment: Progress) -> None:
        """Show a moment."""
        if moment.stage != self._stage:
            if self._stage:
                self._bars.remove_task(self._task)
            self._stage = moment.stage
            self._task = self._bars.add_task(printable(moment.stage), total=moment.total, detail="")
        detail = printable(moment.detail)
        shown = detail if len(detail) <= LONGEST_DETAIL else f"…{detail[1 - LONGEST_DETAIL :]}"
        self._bars.update(self._task, completed=moment.done, total=moment.total, detail=shown)
