"""The loop of generation: what it computes once, when it stops, and what it does not depend on."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from brainjanus.core import linear
from brainjanus.core.errors import UserError
from brainjanus.generate import GenerationConfig, generate, sample
from brainjanus.model import omni
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.model.sequence import Block

SAMPLE = GenerationConfig(estimate="sample")
GREEDY = GenerationConfig(estimate="sample", temperature=0.0)


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint):
    return make_checkpoint()


@pytest.fixture
def entered(checkpoint, monkeypatch):
    """The shapes [b, l] of everything that enters the decoder."""
    shapes, forward = [], checkpoint.model.decoder.forward

    def listening(x, *rest):
        shapes.append(x.shape[:2])
        return forward(x, *rest)

    monkeypatch.setattr(checkpoint.model.decoder, "forward", listening)
    return shapes


def image(rows=2, seed=0):
    return Block("image", codes=torch.randint(6, (rows, 4), generator=torch.Generator().manual_seed(seed)))


def goal(modality, rows=2, length=3):
    subject = "a" if modality == "brain" else None
    return Block(modality, codes=torch.zeros(rows, length, dtype=torch.long), subject=subject)


def uniform(rows, samples, length, seed=1):
    return torch.rand(rows, samples, length, generator=torch.Generator().manual_seed(seed))


# --- no needless work


def test_the_conditions_enter_once_for_all_samples_and_both_halves(checkpoint, entered):
    config = replace(SAMPLE, guidance=2.0)
    sample(checkpoint.model, [image()], goal("brain"), config, uniform(2, 5, 3))
    assert entered == [(4, 6), (20, 1), (20, 1), (20, 1)]


@pytest.mark.parametrize(("samples", "allocations"), [(1, 1), (3, 2)])
def test_the_cache_is_allocated_for_the_whole_request(checkpoint, monkeypatch, samples, allocations):
    made, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **named: made.append(args) or empty(*args, **named))
    sample(checkpoint.model, [image()], goal("brain"), SAMPLE, uniform(2, samples, 3))
    assert len([args for args in made if len(args[0]) == 5]) == allocations


def test_a_text_stops_when_all_have_ended(checkpoint, entered, monkeypatch):
    """Row 0 ends at its third code, row 1 at its second."""
    logits = torch.zeros(9, 2, checkpoint.model.vocabulary.text)
    logits[:, :, 5] = 1
    logits[2, 0, 0] = logits[1, 1, 0] = 2
    steps = iter(logits)
    monkeypatch.setattr(checkpoint.model, "logits", lambda states, *_: next(steps)[:, None])
    drawn = sample(checkpoint.model, [image()], goal("text", length=9), GREEDY, uniform(2, 1, 9))
    assert drawn.codes[:, 0].tolist() == [[5, 5] + [0] * 7, [5] + [0] * 8]
    assert len(entered) == 1 + 3


def test_another_code_may_end_a_text(make_checkpoint, monkeypatch):
    model = make_checkpoint().model
    model.interface = replace(model.interface, text_end=7)
    logits = torch.zeros(3, 1, model.vocabulary.text)
    logits[[0, 1, 2], 0, [0, 7, 3]] = 1
    steps = iter(logits)
    monkeypatch.setattr(model, "logits", lambda states, *_: next(steps)[:, None])
    drawn = sample(model, [image(1)], goal("text", 1), GREEDY, uniform(1, 1, 3))
    assert drawn.codes.tolist() == [[[0, 7, 7]]]


# --- what a row does not depend on


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("target", ["image", "brain"])
def test_texts_of_different_lengths_in_one_batch_are_each_as_alone(checkpoint, target, guidance):
    codes = torch.randint(1, 262, (3, 6), generator=torch.Generator().manual_seed(2))
    lengths = (6, 2, 4)
    seen = torch.arange(6) < torch.tensor(lengths)[:, None]
    config, numbers = replace(SAMPLE, guidance=guidance), uniform(3, 4, 3)
    together = sample(checkpoint.model, [Block("text", codes=codes, seen=seen)], goal(target, 3), config, numbers)
    for row, length in enumerate(lengths):
        alone = Block("text", codes=codes[row : row + 1, :length], seen=torch.ones(1, length, dtype=torch.bool))
        drawn = sample(checkpoint.model, [alone], goal(target, 1), config, numbers[row : row + 1])
        assert torch.equal(drawn.codes[0], together.codes[row])


def test_a_sample_does_not_depend_on_how_many_there_are(checkpoint):
    numbers = uniform(2, 6, 3)
    many = sample(checkpoint.model, [image()], goal("brain"), SAMPLE, numbers).codes
    few = sample(checkpoint.model, [image()], goal("brain"), SAMPLE, numbers[:, 2:4]).codes
    assert torch.equal(few, many[:, 2:4])


TWO = """
import json, pathlib, sys, torch
from brainjanus.core.processes import is_first, together
from brainjanus.generate import GenerationConfig, estimate
from brainjanus.model.checkpoint import Checkpoint

run = pathlib.Path(sys.argv[1])
checkpoint = Checkpoint.load(run)
given = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
made = {}
with together():
    for target in ("text", "image", "brain:a"):
        for samples in (1, 3):
            config = GenerationConfig(estimate="sample", num_samples=samples, seed=3)
            values = estimate(checkpoint, {"brain:b": given}, target, config).values
            made[f"{target} {samples}"] = values if isinstance(values, list) else values.tolist()
    made["mean"] = estimate(checkpoint, {"brain:b": given[:1]}, "brain:a").values.tolist()  # one row: nothing for one
    name = "first" if is_first() else "second"
(run / f"{name}-of-{sys.argv[2]}.json").write_text(json.dumps(made))
"""


def test_two_processes_make_what_one_does(make_checkpoint, tmp_path):
    make_checkpoint().save(tmp_path)
    (tmp_path / "script.py").write_text(TWO)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for processes, command in (("1", [sys.executable]), ("2", torchrun)):
        command = [*command, str(tmp_path / "script.py"), str(tmp_path), processes]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
    one, first, second = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first-of-1", "first-of-2", "second-of-2")
    )
    assert first == second
    assert {name: value for name, value in first.items() if name.startswith("text")} == {
        name: value for name, value in one.items() if name.startswith("text")
    }
    for name in one:
        if not name.startswith("text"):
            torch.testing.assert_close(torch.tensor(first[name]), torch.tensor(one[name]))


# --- precisions


def test_a_small_model_is_prepared_without_rounding(make_checkpoint, tmp_path):
    given = {"brain:b": torch.randn(4, 8)}
    plain, prepared = make_checkpoint(), make_checkpoint().prepare()
    for target in ("text", "brain:a"):
        expected, found = (generate(one, given, target) for one in (plain, prepared))
        assert found == expected if target == "text" else torch.allclose(found, expected, atol=1e-5)
    prepared.save(tmp_path)
    loaded = Checkpoint.load(tmp_path).model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in plain.model.state_dict().items())


@pytest.mark.skipif(not linear.has_half(), reason="torch was built without products with float16 weights")
def test_a_large_model_on_a_cpu_is_rounded_to_half_precision(make_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(linear, "LARGE", 1000)
    plain, prepared = make_checkpoint().model, make_checkpoint().prepare()
    expected, found = (model([image()], goal("brain")) for model in (plain, prepared.model))
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 2e-2 * expected.std()
    with pytest.raises(UserError, match=r"weights rounded for generation\. Load it with precision float32"):
        prepared.save(tmp_path / "run")
    assert not (tmp_path / "run" / "model.json").exists()


@pytest.mark.parametrize("target", ["text", "image", "brain"])
def test_in_bfloat16_the_decoder_and_the_heads_compute_and_brains_stay_exact(make_checkpoint, target):
    plain, prepared = make_checkpoint().model, make_checkpoint().prepare("bfloat16").model
    shown = [Block("brain", vectors=torch.randn(2, 2, 4), subject="b"), image()] if target != "image" else []
    length = 4 if target == "image" else 3
    expected, found = (model(shown, goal(target, length=length)) for model in (plain, prepared))
    assert (found - expected).std() < 0.1 * expected.std()
    assert prepared.decoder.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    assert {prepared.brain_codebook.dtype, prepared.places["image"].dtype} == {torch.float32}
    drawn = sample(prepared, shown, goal(target), SAMPLE, uniform(2, 2, length)).codes
    assert drawn.shape == (2, 2, length)


def test_a_request_that_is_longer_than_the_context_is_refused(make_checkpoint):
    model = make_checkpoint().model
    short = replace(model.config.decoder, max_position_embeddings=8)
    model.config, model.decoder.config = replace(model.config, decoder=short), short
    assert isinstance(model, omni.OmniModel)
    sample(model, [image()], goal("brain", length=2), SAMPLE, uniform(2, 1, 2))
    with pytest.raises(
        UserError, match="decoder: expected at most 8 positions, got 9 of the conditions and the target"
    ):
        sample(model, [image()], goal("brain", length=3), SAMPLE, uniform(2, 1, 3))
