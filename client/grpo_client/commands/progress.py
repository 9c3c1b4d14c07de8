"""The progress bar of a scoring run: lines done, scored tokens a second, time left."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class TokensPerSecond(ProgressColumn):
    """Scored tokens over elapsed time, of this run alone."""

    def render(self, task: Task) -> Text:
        if not task.elapsed:
            return Text("- tokens/s")
        return Text(f"{task.fields['tokens'] / task.elapsed:,.0f} tokens/s", style="progress.data.speed")


class ScoreProgress:
    """A bar over the lines of a file."""

    def __init__(self, progress: Progress, lines: int | None, resumed: int) -> None:
        self._progress = progress
        self._tokens = 0
        self._task = progress.add_task(
            "scoring", total=None if lines is None else resumed + lines, completed=resumed, tokens=0
        )

    def advance(self, tokens: int) -> None:
        """One line more, with so many scored tokens."""
        self._tokens += tokens
        self._progress.update(self._task, advance=1, tokens=self._tokens)


@contextmanager
def score_progress(console: Console, lines: int | None, resumed: int) -> Generator[ScoreProgress]:
    """A bar for `lines` more lines (None: nobody knows how many come), after `resumed` that were done before."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("lines,"),
        TokensPerSecond(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield ScoreProgress(progress, lines, resumed)
