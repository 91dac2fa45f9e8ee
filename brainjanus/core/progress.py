"""Progress on the terminal: a bar where there is a terminal, a line now and then where there is none."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET_INTERVAL_SEC = 30.0  # between lines when nobody looks at a terminal


@contextmanager
def progress(name: str, total: int, start: int = 0) -> Iterator[Callable[[int, float | None], None]]:
    """Show how far `name` is; call the yielded function with (done, loss or None)."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=total, completed=start, note="")

            def advance(done: int, loss: float | None = None) -> None:
                bar.update(task, completed=done, note="" if loss is None else f"loss {loss:.3f}")

            yield advance
        return

    last = time.monotonic()

    def report(done: int, loss: float | None = None) -> None:
        nonlocal last
        if done >= total or time.monotonic() - last > QUIET_INTERVAL_SEC:
            last = time.monotonic()
            print(
                f"{name}: {done}/{total}" + ("" if loss is None else f", loss {loss:.3f}"), file=sys.stderr, flush=True
            )

    yield report
