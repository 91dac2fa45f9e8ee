"""Blocks and tasks: what they hold, and what they refuse."""

import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.model.sequence import Block, Task, modality_of, total_length

CODES = torch.zeros(2, 3, dtype=torch.long)


def test_a_block_knows_its_size():
    block = Block("brain", vectors=torch.zeros(2, 5, 4), subject="a")
    assert (block.batch, block.length) == (2, 5)
    assert block.content is block.vectors
    assert Block("text", codes=CODES).content is CODES


def test_a_withheld_block_is_another_block():
    block = Block("text", codes=CODES)
    assert block.withheld().dropped.tolist() == [True, True]
    assert block.withheld().codes is CODES
    assert block.dropped is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"modality": "text"},
        {"modality": "text", "codes": CODES, "vectors": torch.zeros(2, 3, 4)},
        {"modality": "brain", "codes": CODES},
        {"modality": "text", "codes": CODES, "subject": "a"},
    ],
)
def test_a_block_that_makes_no_sense_is_our_own_mistake(wrong):
    with pytest.raises(AssertionError):
        Block(**wrong)


def test_a_task_names_its_direction():
    task = Task(("image", "text"), "brain:a")
    assert (str(task), task.direction, task.subject) == ("image+text->brain:a", "image+text->brain", "a")
    task = Task(("brain:b", "brain:c"), "brain:a")
    assert (task.direction, task.subject) == ("brain+brain->brain", "b")
    assert (str(Task((), "text")), Task((), "text").subject) == ("nothing->text", None)


def test_says_what_is_wrong():
    with pytest.raises(UserError, match=r"expected text, image, brain:SUBJECT .* got 'brain'. Name the subject"):
        Task(("image",), "brain")
    with pytest.raises(UserError, match="expected a target that is not among its conditions, got 'text'"):
        Task(("text",), "text")
    with pytest.raises(UserError, match="'sound': expected text, image, brain:SUBJECT or part:SUBJECT"):
        modality_of("sound")


def test_the_length_of_a_sequence_counts_openings():
    """begin, [text] + 3, [brain] + 5, and [image] with three of its four codes."""
    blocks = [Block("text", codes=CODES), Block("brain", vectors=torch.zeros(2, 5, 4), subject="a")]
    assert total_length(blocks, 4) == 1 + 4 + 6 + 4
    assert total_length([], 4) == 1 + 4
