"""Jobs: turns, progress, cancelling, failures."""

import threading
import time

import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.core.progress import progress
from brainjanus.explorer import jobs as module
from brainjanus.explorer.jobs import Jobs


@pytest.fixture
def jobs():
    made = Jobs(workers=2)
    yield made
    made.close()


def steps(gate=None, count=3):
    """Work of several steps, each after the gate opened."""

    def work():
        with progress("steps", count) as advance:
            for done in range(count):
                if gate is not None:
                    gate.wait(10)
                advance(done + 1, None)
        return count

    return work


def ended(job):
    assert job.over.wait(10)
    return job


def test_a_job_says_how_far_it_is_and_keeps_its_result(jobs):
    gate = threading.Event()
    job = jobs.submit("a", "count", steps(gate))
    while job.name != "steps":
        time.sleep(0.001)
    assert (job.state, job.done, job.total) == ("running", 0, 3)
    gate.set()
    assert ended(job).state == "done" and job.result == 3 and job.done == 3
    assert jobs.get(job.id) is job and jobs.get("other") is None


def test_progress_that_is_heard_is_not_shown(jobs, capfd):
    ended(jobs.submit("a", "count", steps()))
    assert capfd.readouterr() == ("", "")


def test_a_running_job_is_cancelled_at_its_next_step(jobs):
    gate = threading.Event()
    job = jobs.submit("a", "count", steps(gate))
    while job.state == "waiting":
        time.sleep(0.001)
    jobs.cancel(job.id)
    assert not job.over.is_set()
    gate.set()
    assert ended(job).state == "cancelled" and job.result is None


def test_a_waiting_job_is_cancelled_at_once(jobs):
    gate = threading.Event()
    first, second = (jobs.submit("a", "count", steps(gate)) for _ in range(2))
    assert jobs.cancel(second.id).state == "cancelled"
    gate.set()
    assert ended(first).state == "done"
    assert jobs.cancel(first.id).state == "done", "what is done stays done"


def test_one_owner_does_not_keep_another_waiting(jobs):
    """However much the first asks for, and however long it takes."""
    gate = threading.Event()
    many = [jobs.submit("a", "count", steps(gate)) for _ in range(5)]
    assert ended(jobs.submit("b", "count", steps())).state == "done"
    assert sum(job.state == "running" for job in many) == 1
    gate.set()
    assert all(ended(job).state == "done" for job in many)


def test_owners_take_turns():
    jobs, order, gate = Jobs(workers=1), [], threading.Event()
    jobs.submit("z", "wait", steps(gate))
    submitted = [
        jobs.submit(owner, "note", lambda owner=owner: order.append(owner)) for owner in ("a", "a", "a", "b", "c")
    ]
    gate.set()
    for job in submitted:
        ended(job)
    jobs.close()
    assert order == ["a", "b", "c", "a", "a"]


def test_a_mistake_of_the_user_is_told_apart_from_ours(jobs, capfd):
    def mistaken():
        raise UserError("picture: expected one, got none. Give one.")

    job = ended(jobs.submit("a", "encode", mistaken))
    assert (job.state, job.problem, job.is_users) == ("failed", "picture: expected one, got none. Give one.", True)
    job = ended(jobs.submit("a", "encode", lambda: 1 / 0))
    assert job.state == "failed" and not job.is_users and "ZeroDivisionError" in job.problem
    assert "ZeroDivisionError" in capfd.readouterr().err, "our own mistakes keep their traceback"


def test_too_little_memory_is_told_and_not_called_ours(jobs, capfd):
    def large():
        raise torch.OutOfMemoryError("CUDA out of memory.\nSee")

    job = ended(jobs.submit("a", "decode", large))
    assert job.problem.startswith("decode: expected enough memory of a graphics card, got 'CUDA out of memory.'. Ask")
    assert job.state == "failed" and job.is_users and not capfd.readouterr().err


def test_too_many_jobs_are_refused(jobs, monkeypatch):
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    gate = threading.Event()
    for _ in range(2):
        jobs.submit("a", "count", steps(gate))
    with pytest.raises(UserError, match="expected fewer than 2 that wait"):
        jobs.submit("a", "count", steps(gate))
    jobs.submit("b", "count", steps())
    gate.set()


def test_owners_who_wait_for_nothing_do_not_count(jobs, monkeypatch):
    monkeypatch.setattr(module, "MOST_OWNERS", 2)
    gate = threading.Event()
    busy = [jobs.submit(owner, "count", steps(gate)) for owner in ("y", "z")]
    while any(job.state == "waiting" for job in busy):
        time.sleep(0.001)
    for number in range(5):
        jobs.cancel(jobs.submit(f"{number}", "count", steps()).id)
    for owner in ("a", "b"):
        jobs.submit(owner, "count", steps())
    with pytest.raises(UserError, match="fewer than 2 owners that wait"):
        jobs.submit("c", "count", steps())
    gate.set()


def test_results_are_not_kept_for_ever(jobs, monkeypatch):
    monkeypatch.setattr(module, "MOST_KEPT", 1)
    first, second = (ended(jobs.submit("a", "count", steps())) for _ in range(2))
    third = ended(jobs.submit("a", "count", steps()))
    assert jobs.get(first.id) is None and jobs.get(second.id) is None and jobs.get(third.id) is third
    monkeypatch.setattr(module, "KEPT_SEC", 0.0)
    assert jobs.get(third.id) is None


def test_closing_ends_what_runs():
    jobs, gate = Jobs(workers=1), threading.Event()
    running, waiting = (jobs.submit("a", "count", steps(gate)) for _ in range(2))
    while running.state == "waiting":
        time.sleep(0.001)
    threading.Timer(0.05, gate.set).start()
    jobs.close()
    assert running.state == "cancelled" and waiting.state == "waiting"
