"""Work that takes a while: it waits its turn, says how far it is, can be cancelled, and its result is kept for a time.

Enters: a function without arguments, and whose it is. Leaves: a Job. Nobody waits for another: each owner has one job
at a time, the next is taken from the owner who has waited longest, and there are more workers than one.
"""

import secrets
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from brainjanus.core.errors import UserError, first_line, short_of
from brainjanus.core.progress import heard

State = Literal["waiting", "running", "done", "failed", "cancelled"]
WORKERS = 3
MOST_WAITING = 32  # jobs of one owner that wait or run
MOST_OWNERS = 256
KEPT_SEC, MOST_KEPT = 900.0, 200  # finished jobs, which hold their results


class Cancelled(Exception):
    """Raised inside a job, where it next says how far it is."""


@dataclass(eq=False)
class Job:
    """One piece of work. done of total steps of what is going on (name). problem: one sentence, of a failed job."""

    kind: str
    owner: str
    work: Callable[[], Any] = field(repr=False)
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: State = "waiting"
    name: str = ""
    done: int = 0
    total: int = 0
    result: Any = field(default=None, repr=False)
    problem: str = ""
    is_users: bool = True  # whether the problem is a mistake in the request
    ended: float = 0.0
    over: threading.Event = field(default_factory=threading.Event, repr=False)
    stop: bool = False


class Jobs:
    """A queue with its workers. `close` ends it."""

    def __init__(self, workers: int = WORKERS) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # by owner, whose turn it is first
        self._busy: set[str] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._run, daemon=True, name=f"job-{n}") for n in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, owner: str, kind: str, work: Callable[[], Any]) -> Job:
        """Raises UserError if this owner, or all of them, have too much waiting already."""
        with self._changed:
            self._forget()
            own = sum(job.owner == owner and not job.over.is_set() for job in self._jobs.values())
            if own >= MOST_WAITING:
                raise UserError(
                    f"jobs: expected fewer than {MOST_WAITING} that wait, got {own}. Wait for them, or cancel some."
                )
            if owner not in self._waiting and len(self._waiting) >= MOST_OWNERS:
                raise UserError(f"jobs: expected fewer than {MOST_OWNERS} owners that wait, got more. Try again later.")
            job = Job(kind, owner, work)
            self._jobs[job.id] = job
            self._waiting.setdefault(owner, deque()).append(job)
            self._changed.notify_all()
            return job

    def get(self, identity: str) -> Job | None:
        with self._changed:
            self._forget()
            return self._jobs.get(identity)

    def cancel(self, identity: str) -> Job | None:
        """End a job: at once if it waits, at its next step if it runs."""
        with self._changed:
            job = self._jobs.get(identity)
            if job is None or job.over.is_set():
                return job
            job.stop = True
            queue = self._waiting.get(job.owner)
            if queue is not None and job in queue:
                queue.remove(job)
                if not queue:
                    del self._waiting[job.owner]
                self._end(job, "cancelled")
            return job

    def close(self) -> None:
        """Cancel everything and wait for the workers."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.stop = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=30)

    def _next(self) -> Job | None:
        for owner, queue in self._waiting.items():
            if owner not in self._busy:
                job = queue.popleft()
                del self._waiting[owner]  # to the end, if there is more
                if queue:
                    self._waiting[owner] = queue
                return job
        return None

    def _run(self) -> None:
        while True:
            with self._changed:
                while (job := None if self._closed else self._next()) is None:
                    if self._closed:
                        return
                    self._changed.wait()
                self._busy.add(job.owner)
                job.state = "running"
            self._do(job)
            with self._changed:
                self._busy.discard(job.owner)
                self._changed.notify_all()

    def _do(self, job: Job) -> None:
        def listen(name: str, done: int, total: int, note: str | None) -> None:
            if job.stop:
                raise Cancelled
            job.name, job.done, job.total = name, done, total

        state: State = "done"
        try:
            with heard(listen):
                listen("", 0, 0, None)
                job.result = job.work()
        except Cancelled:
            state = "cancelled"
        except UserError as error:
            state, job.problem = "failed", str(error)
        except Exception as error:
            state = "failed"
            if (where := short_of(error)) is not None:
                job.problem = (
                    f"{job.kind}: expected enough memory of {where}, got '{first_line(error)}'. Ask for fewer samples, "
                    "or again when others have their answers."
                )
            else:
                job.is_users = False
                job.problem = (
                    f"{job.kind}: expected an answer, got {type(error).__name__}: {error}. This is our mistake."
                )
                traceback.print_exc()
        with self._changed:
            self._end(job, state)

    def _end(self, job: Job, state: State) -> None:
        job.state, job.ended = state, time.monotonic()
        job.work = _nothing  # what it held is let go
        job.over.set()

    def _forget(self) -> None:
        """Drop what ended long ago, and the oldest where there are many."""
        ended = [job for job in self._jobs.values() if job.over.is_set()]
        old = [job for job in ended if time.monotonic() - job.ended > KEPT_SEC]
        for job in {*old, *ended[: max(0, len(ended) - MOST_KEPT)]}:
            del self._jobs[job.id]


def _nothing() -> None:
    pass
