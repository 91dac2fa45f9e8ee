"""Progress: a bar on a terminal, a passing line in a notebook, a line now and then where there is neither.

Or told to whoever started the work, who may also end it: see `heard`.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from brainjanus.core.processes import is_first

QUIET_INTERVAL_SEC = 30.0  # between lines when nobody looks at a terminal
NOTEBOOK_INTERVAL_SEC = 0.5  # between two states of the line in a notebook
_unshown = [False]
Listener = Callable[[str, int, int, str | None], None]  # name, done, total, what else there is to say
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def unshown() -> Iterator[None]:
    """What goes on inside is a part of something that shows its own progress: a terminal holds one bar at a time."""
    _unshown.append(True)
    try:
        yield
    finally:
        _unshown.pop()


@contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """What goes on inside, in this thread, is told to `listener` and not shown; what that raises ends the work."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def progress(name: str, total: int, start: int = 0) -> Iterator[Callable[[int, str | None], None]]:
    """Show how far `name` is; call the yielded function with (done, what else there is to say, or None).

    Of several processes, the first alone shows it.
    """
    listener = _listener.get()
    if listener is not None:
        heeded = listener
        heeded(name, start, total, None)

        def tell(done: int, note: str | None = None) -> None:
            heeded(name, done, total, note)

        yield tell
        return
    if not is_first() or _unshown[-1]:
        yield silent
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=total, completed=start, note="")

            def advance(done: int, note: str | None = None) -> None:
                bar.update(task, completed=done, note=note or "")

            yield advance
        return
    if in_notebook():
        with passing_line() as write:

            def pass_on(done: int, note: str | None = None) -> None:
                write(", ".join(filter(None, (f"{name}: {done}/{total}", note))))

            yield pass_on
        return

    begun = last = time.monotonic()

    def report(done: int, note: str | None = None) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last > QUIET_INTERVAL_SEC:
            last = now
            left = (now - begun) / max(1, done - start) * (total - done)
            words = [f"{name}: {done}/{total}", note, duration(left) + " left" if done < total else None]
            print(", ".join(filter(None, words)), file=sys.stderr, flush=True)

    yield report


def in_notebook() -> bool:
    """Whether a Jupyter kernel shows what is printed."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


@contextmanager
def passing_line() -> Iterator[Callable[[str], None]]:
    """A line below the cell of a notebook that is written over, and empty at the end; short work has none."""
    from IPython.display import display

    handle: Any = None
    last = time.monotonic()

    def write(line: str) -> None:
        nonlocal handle, last
        now = time.monotonic()
        if now - last < NOTEBOOK_INTERVAL_SEC:
            return
        last = now
        if handle is None:
            handle = display({"text/plain": line}, raw=True, display_id=True)
        else:
            handle.update({"text/plain": line}, raw=True)

    try:
        yield write
    finally:
        if handle is not None:
            handle.update({"text/plain": ""}, raw=True)


def silent(done: int, note: str | None = None) -> None:
    pass


def duration(seconds: float) -> str:
    """As 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
