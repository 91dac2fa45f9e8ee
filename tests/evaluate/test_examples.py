import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.evaluate.examples import (
    LINEAR,
    CodebookUsage,
    caption_examples,
    displayable,
    even_ranks,
    image_examples,
    map_examples,
)
from brainjanus.evaluate.record import Predictions


def test_even_ranks_go_from_the_best_to_the_worst():
    assert even_ranks(np.array([0.3, 0.9, 0.1, 0.5, 0.7]), 3) == [1, 3, 2]
    assert even_ranks(np.array([0.3, 0.9]), 8) == [1, 0]


def test_image_examples_match_stimuli_by_id(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    mean = Predictions("brain->image", "s1", ids, "mean", tiny.images(ids))
    sample = Predictions("brain->image", "s1", ids[::-1], "sample", tiny.images(ids[::-1]))
    examples = image_examples(tiny, [mean, sample], count=4)
    assert len(examples) == 4
    for example in examples:
        assert list(example.decoded) == ["mean", "sample", LINEAR]
        np.testing.assert_array_equal(example.decoded["mean"], example.seen)
        np.testing.assert_array_equal(example.decoded["sample"], example.seen)


def test_caption_examples_hold_references_and_baseline(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    said = Predictions("brain->text", "s1", ids, "greedy", ["a horse", *(tiny.captions(i)[0] for i in ids[1:])])
    examples = caption_examples(tiny, said, count=3)
    assert examples[-1].decoded == "a horse"
    assert examples[0].references == tiny.captions(examples[0].stimulus_id)
    assert examples[0].baseline


def test_map_examples_are_pictures(tiny):
    averages = tiny.averages("s1", "test")
    examples = map_examples(
        tiny, Predictions("image->brain", "s1", averages.stimulus_ids, "mean", averages.responses), count=2
    )
    assert len(examples) == 4  # two stimuli, the quality of each site, what sites prefer
    assert all(example.png.startswith(b"\x89PNG") for example in examples)


def test_examples_of_two_subjects_are_refused(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    both = [Predictions("brain->image", subject, ids, "mean", tiny.images(ids)) for subject in ("s1", "s2")]
    with pytest.raises(UserError, match="of one subject"):
        image_examples(tiny, both)


def test_pictures_are_clipped_for_display_only():
    picture = np.array([[[-3.0, 300, 99.6]]])
    assert displayable(picture).tolist() == [[[0, 255, 100]]]


def test_codebook_usage():
    usage = CodebookUsage("brain", np.array([5, 5, 0, 0]))
    assert usage.used == 0.5
    assert usage.perplexity == pytest.approx(2)
