"""Items come in order, made ahead in one thread."""

import threading
import time

import pytest

from brainjanus.core.ahead import ahead
from brainjanus.core.errors import UserError


@pytest.mark.parametrize("depth", [1, 2])
def test_items_come_in_order_and_are_made_ahead_in_one_thread(depth):
    threads, made = set(), []
    last = threading.Event()

    def make(step):
        threads.add(threading.get_ident())
        made.append(step)
        if step == 2 + depth:
            last.set()
        return step * step

    items = ahead(make, 2, 6, depth)
    assert next(items) == 4
    assert last.wait(10), "the next ones are made while this one is used"
    time.sleep(0.05)
    assert made == list(range(2, 3 + depth)), "and no further one"
    assert list(items) == [9, 16, 25]
    assert made == [2, 3, 4, 5] and len(threads) == 1 and threading.get_ident() not in threads
    assert list(ahead(make, 3, 3, depth)) == []
    assert list(ahead(make, 3, 4, depth)) == [9]


def test_what_is_raised_comes_where_its_item_would():
    def make(step):
        if step == 2:
            raise UserError("step 2: expected nothing.")
        return step

    items = ahead(make, 0, 5)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(UserError, match="step 2"):
        next(items)


def test_a_loop_that_is_left_early_leaves_no_thread():
    before, made = threading.active_count(), []
    items = ahead(lambda step: made.append(step), 0, 1000)
    next(items)
    items.close()
    assert threading.active_count() == before
    assert len(made) <= 3
