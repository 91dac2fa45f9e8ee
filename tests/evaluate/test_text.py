import numpy as np
import pytest

from brainjanus.evaluate.text import (
    content_f1_scores,
    content_words,
    cosine_scores,
    human_content_f1,
    word_vectors,
    words,
)


def f1(said: set[str], meant: set[str]) -> float:
    both = len(said & meant)
    return 2 * both / (len(said) + len(meant)) if said or meant else 0.0


def test_content_words_drop_case_punctuation_and_stopwords():
    assert content_words("The Red  dog's ball, and a RED car!") == {"red", "dog's", "ball", "car"}
    assert words("Été: zwei Bälle_2") == ["été", "zwei", "bälle", "2"]


def test_f1_is_the_best_reference_by_a_direct_loop():
    references = [["a red dog runs", "the dog"], ["two cats on a mat"], ["dog", "cats", "red cats run"]]
    decoded = ["a dog runs", "red cats", "", "on the mat a mat"]
    scores = content_f1_scores(references, decoded)
    for i, group in enumerate(references):
        for j, said in enumerate(decoded):
            expected = max(f1(content_words(said), content_words(reference)) for reference in group)
            assert scores[i, j] == pytest.approx(expected)


def test_repeating_a_word_earns_nothing():
    assert content_f1_scores([["a dog"]], ["dog dog dog"])[0, 0] == 1


@pytest.mark.parametrize(("references", "said"), [([[]], "dog"), ([["the"]], "of"), ([["dog"]], "")])
def test_nothing_said_or_nothing_known_scores_zero(references, said):
    assert content_f1_scores(references, [said]).tolist() == [[0]]


def test_human_ceiling_is_the_first_caption_against_the_rest():
    references = [["red dog", "dog", "cat"], ["blue car", "blue car"], ["alone"]]
    assert human_content_f1(references) == pytest.approx((2 / 3 + 1) / 2)
    assert human_content_f1([["alone"], []]) is None


def test_word_vectors_are_looked_up_among_training_captions():
    captions, vectors = [["a dog"], ["a cat"], ["a black cat"]], np.eye(3)
    found = word_vectors(["the dog", "cat", "black", "horse"], captions, vectors)
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])


def test_an_undecided_lookup_is_the_mean_of_the_candidates():
    found = word_vectors(["cat"], [["cat"], ["cat"], ["dog"]], np.eye(3))
    np.testing.assert_allclose(found, [[0.5, 0.5, 0]])


def test_cosine_of_a_zero_vector_is_zero():
    scores = cosine_scores(np.array([[3.0, 0], [1, 1]]), np.array([[1.0, 0], [0, 0]]))
    np.testing.assert_allclose(scores, [[1, 0], [np.sqrt(0.5), 0]])
