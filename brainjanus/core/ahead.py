"""What is needed next is made while what is there is used. Enters: a function of a number. Leaves: what it makes."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(make: Callable[[int], T], start: int, stop: int, depth: int = 2, workers: int = 1) -> Generator[T]:
    """make(start), ..., make(stop - 1): while one is used, the next `depth` of them are made in other threads.

    Two of them even out that one read from a disk takes longer than another. `make` has to follow from its step alone.
    What it raises is raised where its item would have come. When the caller stops early and closes the iterator, each
    of the `workers` threads finishes the item that it is at, and ends.
    """
    worker = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    try:
        coming = deque(worker.submit(make, step) for step in range(start, min(start + depth, stop)))
        for step in range(start, stop):
            item = coming.popleft().result()
            if step + depth < stop:
                coming.append(worker.submit(make, step + depth))
            yield item
            del item  # the caller alone decides how long it is kept
    finally:
        worker.shutdown(cancel_futures=True)
