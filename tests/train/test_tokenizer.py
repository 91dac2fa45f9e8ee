"""The tokenizers learn what is there to be learnt."""

import json

import pytest
import torch

from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.train.codes import training_rows
from brainjanus.train.optim import OptimConfig
from brainjanus.train.tokenizer import fit_brain_tokenizer, fit_image_tokenizer

BRAIN = BrainTokenizerConfig(8, width=32, depth=1, heads=2, quantizer=QuantizerConfig(num_codes=16, dim=8, decay=0.9))
IMAGE = ImageTokenizerConfig(16, 2, width=16, blocks=1, quantizer=QuantizerConfig(num_codes=16, dim=8, decay=0.9))


def make_brain(study):
    torch.manual_seed(0)
    return BrainTokenizer(BRAIN, {s: torch.from_numpy(study.space(s).order.copy()) for s in study.subjects})


@pytest.fixture(scope="module")
def responses(study):
    row_of = {stimulus: row for row, stimulus in enumerate(study.split_ids("train"))}
    return {subject: training_rows(study, subject, "train", row_of)[0] for subject in study.subjects}


def test_brain_codes_hold_what_eight_classes_of_responses_share(study, responses, tmp_path):
    """Distortion on held-out means falls far below their variance, for both subjects, by one codebook."""
    config = OptimConfig(steps=160, batch_size=32, learning_rate=5e-3, precision="float32")
    tokenizer = fit_brain_tokenizer(make_brain(study), responses, config, tmp_path, seed=0)
    for subject in study.subjects:
        test = torch.from_numpy(study.averages(subject, "test").responses)
        decoded = tokenizer.decode(tokenizer.encode(test, subject), subject)
        assert (decoded - test).square().mean() < 0.5 * test.var(dim=0, correction=0).mean(), subject
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["perplexity"] > 4
    assert lines[-1]["mse"] < 0.6 * lines[0]["mse"]
    assert {line["stage"] for line in lines} == {"brain tokenizer"}


def test_subjects_take_turns(study, responses, tmp_path):
    """After one step only the first subject's maps have moved, after two both have."""
    before = make_brain(study)
    for steps, moved in ((1, {"s1"}), (2, {"s1", "s2"})):
        config = OptimConfig(steps=steps, batch_size=4, precision="float32", weight_decay=0.0)
        after = fit_brain_tokenizer(make_brain(study), responses, config, tmp_path / str(steps), seed=0)
        assert {s for s in ("s1", "s2") if not torch.equal(after.map_of(s).into, before.map_of(s).into)} == moved


def test_the_codebook_is_part_of_what_is_trained_and_saved(study, responses, tmp_path):
    config = OptimConfig(steps=3, batch_size=8, precision="float32")
    tokenizer = fit_brain_tokenizer(make_brain(study), responses, config, tmp_path, seed=0)
    assert not torch.equal(tokenizer.quantizer.codebook, make_brain(study).quantizer.codebook)
    again = fit_brain_tokenizer(make_brain(study), responses, config, tmp_path, seed=0)
    assert torch.equal(again.quantizer.codebook, tokenizer.quantizer.codebook)
    assert torch.equal(again.quantizer.usage, tokenizer.quantizer.usage)


def test_picture_codes_hold_what_is_seen(study, tmp_path):
    """Four codes of a picture tell colour and side: far below the variance of held-out pictures."""
    torch.manual_seed(0)
    pixels = torch.from_numpy(study.images(study.split_ids("train"))).permute(0, 3, 1, 2)
    config = OptimConfig(steps=120, batch_size=16, learning_rate=5e-3, precision="float32")
    tokenizer = fit_image_tokenizer(ImageTokenizer(IMAGE), pixels, config, tmp_path, seed=0)
    test = torch.from_numpy(study.images(study.split_ids("test"))).permute(0, 3, 1, 2) / 255
    error = (tokenizer.decode(tokenizer.encode(test)) - test).square().mean()
    assert error < 0.3 * test.var(dim=0, correction=0).mean()
    assert not tokenizer.training
