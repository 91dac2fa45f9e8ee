"""Vocabulary: codes and tokens, there and back."""

import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.core.vocabulary import CONTROLS, MODALITIES, Vocabulary

VOCABULARY = Vocabulary(text=5, image=7, brain=3, subjects=("a", "b"))


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_code_becomes_a_token_and_itself_again(modality):
    codes = torch.arange(getattr(VOCABULARY, modality))
    tokens = VOCABULARY.to_tokens(codes, modality)
    assert tokens.tolist() == list(VOCABULARY.range(modality))
    assert VOCABULARY.to_codes(tokens, modality).tolist() == codes.tolist()


def test_controls_subjects_and_ranges_share_no_token_and_leave_no_gap():
    controls = [VOCABULARY.control(name) for name in (*CONTROLS, "brain:a", "brain:b")]
    ranges = [token for modality in MODALITIES for token in VOCABULARY.range(modality)]
    assert controls + ranges == list(range(VOCABULARY.size))


def test_a_subject_is_named_with_or_without_its_modality():
    assert VOCABULARY.control("b") == VOCABULARY.control("brain:b") == len(CONTROLS) + 1


def test_an_empty_tensor_has_no_wrong_code():
    assert VOCABULARY.to_tokens(torch.zeros(2, 0, dtype=torch.long), "text").shape == (2, 0)
    assert VOCABULARY.to_codes(torch.zeros(2, 0, dtype=torch.long), "text").shape == (2, 0)


@pytest.mark.parametrize("code", [-1, 7])
def test_refuses_a_code_outside_its_codebook(code):
    with pytest.raises(UserError, match=r"image codes: expected ids in \[0, 7\)"):
        VOCABULARY.to_tokens(torch.tensor([0, code]), "image")


@pytest.mark.parametrize("offset", [-1, 7])
def test_refuses_a_token_of_another_modality(offset):
    start = VOCABULARY.range("image").start
    with pytest.raises(UserError, match=rf"image tokens: expected ids in \[{start}, {start + 7}\)"):
        VOCABULARY.to_codes(torch.tensor([start, start + offset]), "image")


def test_refuses_an_unknown_subject():
    with pytest.raises(UserError, match="expected one of the subjects a, b, got 'c'"):
        VOCABULARY.control("brain:c")
