"""Scores of decoded captions.

Enters: reference captions and decoded captions. Leaves: score matrices `[stimulus, decoded]`, as in `evaluate.brain`.

Content-word F1: a caption counts as the set of its content words: lower-cased words minus STOPWORDS. A set, so that
saying a word twice earns nothing and a bag-of-words baseline can be compared. A stimulus has several references; the
best one counts.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Articles, pronouns, auxiliaries, conjunctions and prepositions: words without content of their own.
_STOPWORDS = """
    a an the this that these those some it its he his him she her they their them there here who which what
    is are was were be been being am has have had do does and or but while as than then so not no
    of on in at by to from with without near beside next behind under below above over between into onto through
    around along against across for off out up down
"""
STOPWORDS = frozenset(_STOPWORDS.split())
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(caption: str) -> list[str]:
    """The words of a caption in order, lower-cased."""
    return _WORD.findall(caption.lower())


def content_words(caption: str) -> frozenset[str]:
    """The words that are not in STOPWORDS."""
    return frozenset(words(caption)) - STOPWORDS


# N stimuli, M decoded captions
def content_f1_scores(references: Sequence[Sequence[str]], decoded: Sequence[str]) -> Float[np.ndarray, "n m"]:
    """Score matrix of content-word F1: entry [i, j] is the best F1 of decoded caption j over the references of i.

    A stimulus without references, or a caption without content words, scores 0.
    """
    said = [content_words(caption) for caption in decoded]
    known = {word: column for column, word in enumerate(sorted(set().union(*said)))}

    def indicator(sets: Sequence[frozenset[str]]) -> np.ndarray:
        table = np.zeros((len(sets), len(known)), np.float32)
        for row, names in enumerate(sets):
            table[row, [known[name] for name in names if name in known]] = 1
        return table

    columns, lengths = indicator(said).T, np.array([len(names) for names in said], np.float32)
    scores = np.zeros((len(references), len(decoded)))
    for row, captions in enumerate(references):
        sets = [content_words(caption) for caption in captions]
        total = np.array([[len(names)] for names in sets], np.float32).reshape(-1, 1) + lengths
        overlap = 2 * indicator(sets) @ columns
        scores[row] = np.divide(overlap, total, out=np.zeros_like(overlap), where=total > 0).max(axis=0, initial=0)
    return scores


def human_content_f1(references: Sequence[Sequence[str]]) -> float | None:
    """The human ceiling: the first caption of each stimulus against its others; None if no stimulus has two."""
    several = [captions for captions in references if len(captions) > 1]
    if not several:
        return None
    return float(np.mean([content_f1_scores([captions[1:]], captions[:1])[0, 0] for captions in several]))


# T training stimuli, D vector length
def word_vectors(
    decoded: Sequence[str], captions: Sequence[Sequence[str]], vectors: Float[np.ndarray, "t d"]
) -> Float[np.ndarray, "m d"]:
    """The vector of each decoded caption, looked up among training captions.

    captions, vectors: of the training stimuli. A caption has the mean vector of the stimuli whose captions share most
    of its content words (F1), and zeros if none shares any.
    """
    match = content_f1_scores(captions, decoded).T
    best = (match == match.max(axis=1, keepdims=True)) & (match > 0)
    return best @ vectors.astype(np.float64) / np.maximum(best.sum(axis=1, keepdims=True), 1)


def cosine_scores(true: Float[np.ndarray, "n d"], decoded: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Score matrix of the cosine between vectors; 0 for a vector of zeros."""

    def direction(vectors: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, length, out=np.zeros(vectors.shape), where=length > 0)

    return direction(true.astype(np.float64)) @ direction(decoded.astype(np.float64)).T
