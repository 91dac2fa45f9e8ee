"""The unified training step: its losses by hand, and what it learns."""

import math
from collections import Counter
from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from brainjanus.core.errors import UserError
from brainjanus.generate import GenerationConfig, generate, marginal
from brainjanus.model.sequence import Block, Task
from brainjanus.tokenizers.text import END, up_to_end
from brainjanus.tokenizers.vision import wavelet
from brainjanus.train import omni
from brainjanus.train.codes import Batch, BrainRows, Codes
from brainjanus.train.omni import (
    Drawn,
    OmniTrainingConfig,
    Validation,
    blur,
    counts_of,
    drawable,
    excerpt,
    expand_tasks,
    fit_omni,
    step_losses,
    target_mask,
)
from brainjanus.train.optim import OptimConfig

SEEN = wavelet(torch.zeros(1, 3, 8, 8)).shape[1:]  # tokens, channels


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint):
    return make_checkpoint()


def brain_batch(rows=8):
    generator = torch.Generator().manual_seed(0)
    target = Block("brain", codes=torch.randint(6, (rows, 3), generator=generator), subject="a")
    condition = Block("image", vectors=torch.rand(rows, *SEEN, generator=generator), features="wavelet")
    return Batch([condition], target, torch.randn(rows, 10, generator=generator))


def losses(checkpoint, batch, **settings):
    plain = {"dropped": 0.0, "hidden": 0.5, "expectation": {"brain": 2.0, "image": 20.0}}
    config = OmniTrainingConfig(**(plain | settings))
    return losses_of(checkpoint.model, checkpoint.tokenizers, batch, config)


class Losses(NamedTuple):
    total: torch.Tensor
    likelihood: torch.Tensor
    expectation: torch.Tensor | None


def losses_of(model, tokenizers, batch, config):
    """Of a whole batch, which is drawn already."""

    rows, modality = batch.target.batch, batch.target.modality
    task = Task((), f"brain:{batch.target.subject}" if batch.target.subject else modality)
    dropped = torch.rand(rows, generator=torch.Generator().manual_seed(0)) < config.dropped
    hidden = torch.arange(rows) < (0 if modality == "text" else round(config.hidden * rows))
    judged = bool(hidden.any()) and config.expectation.get(modality, 0) > 0
    drawn = Drawn(task, batch, dropped, hidden, judged)
    found = step_losses(model, tokenizers, drawn, counts_of(drawn), config)
    named = {name.split("/")[0]: value for name, value in found.items()}
    return Losses(named["loss"], named["nats"], named.get("mse"))


def test_losses_by_hand(checkpoint):
    """The first half of the rows is hidden and gives the expectation; all rows give the likelihood."""
    batch = brain_batch()
    hidden = torch.zeros(8, 3, dtype=torch.bool)
    hidden[:4] = True
    logits = checkpoint.model(batch.conditions, batch.target, hidden)
    likelihood = -logits.log_softmax(-1).gather(2, batch.target.codes[..., None]).mean()
    expected = checkpoint.tokenizers.brain.decode_probabilities(logits[:4].softmax(-1), "a")
    error = (expected - batch.continuous[:4]).square().mean()
    out = losses(checkpoint, batch)
    torch.testing.assert_close(out.likelihood, likelihood)
    torch.testing.assert_close(out.expectation, error)
    torch.testing.assert_close(out.total, likelihood + 2 * error)


def test_pictures_are_expected_as_pixels(checkpoint):
    pixels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    target = Block("image", codes=checkpoint.tokenizers.image.encode(pixels))
    batch = Batch([Block("brain", vectors=torch.randn(4, 2, 4), subject="b")], target, pixels)
    out = losses(checkpoint, batch, hidden=1.0)
    logits = checkpoint.model(batch.conditions, target, torch.ones(4, 4, dtype=torch.bool))
    image = checkpoint.tokenizers.image
    expected = image.decode_vectors(logits.softmax(-1) @ image.quantizer.codebook)
    torch.testing.assert_close(out.expectation, F.mse_loss(expected, pixels))
    torch.testing.assert_close(out.total, out.likelihood + 20 * out.expectation)


@pytest.mark.parametrize("settings", [{"hidden": 0.0}, {"expectation": {"brain": 0.0}}, {"expectation": {}}])
def test_without_an_expectation_the_likelihood_is_all(checkpoint, settings):
    out = losses(checkpoint, brain_batch(), **settings)
    assert out.expectation is None
    assert out.total is out.likelihood


def test_texts_are_never_hidden_and_scored_to_their_end(checkpoint):
    codes = checkpoint.tokenizers.text.encode(["a cup", "one", "a red cup", ""])
    batch = Batch([Block("brain", vectors=torch.randn(4, 2, 4), subject="b")], Block("text", codes=codes), None)
    out = losses(checkpoint, batch, hidden=1.0)
    log_p = checkpoint.model(batch.conditions, batch.target).log_softmax(-1).gather(2, codes[..., None])[..., 0]
    lengths = (codes != 0).sum(dim=1) + 1
    wanted = -sum(log_p[row, :length].sum() for row, length in enumerate(lengths)) / lengths.sum()
    torch.testing.assert_close(out.likelihood, wanted)
    assert out.expectation is None


def test_what_fills_texts_up_changes_no_loss(checkpoint):
    codes = checkpoint.tokenizers.text.encode(["a cup", "one", "a red cup", ""])
    given = Block("brain", vectors=torch.randn(4, 2, 4), subject="b")
    found = [
        losses(checkpoint, Batch([given], Block("text", codes=F.pad(codes, (0, more))), None)).total for more in (0, 6)
    ]
    torch.testing.assert_close(found[0], found[1])


def test_the_mask_of_a_text_ends_with_its_end():
    codes = torch.tensor([[5, 0, 0], [0, 7, 0], [3, 4, 5]])
    assert target_mask(codes).tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]


def test_dropped_rows_show_nothing(checkpoint):
    batch = brain_batch()
    other = batch._replace(conditions=[replace(batch.conditions[0], vectors=batch.conditions[0].vectors.flip(0))])
    one, two = losses(checkpoint, batch, dropped=1.0), losses(checkpoint, other, dropped=1.0)
    torch.testing.assert_close(one.total, two.total)
    shown = losses(checkpoint, batch).total
    assert not torch.allclose(shown, one.total)
    assert not torch.allclose(shown, losses(checkpoint, other).total)


def test_gradients_reach_the_model_alone(make_checkpoint):
    checkpoint = make_checkpoint()
    checkpoint.model.requires_grad_(True)
    losses(checkpoint, brain_batch()).total.backward()
    with_gradient = {n.split(".")[0] for n, p in checkpoint.model.named_parameters() if p.grad is not None}
    assert with_gradient == {n.split(".")[0] for n, _ in checkpoint.model.named_parameters()}
    assert all(p.grad is None for p in checkpoint.tokenizers.brain.parameters())
    assert checkpoint.model.heads["text"].weight.grad is None
    assert not checkpoint.model.image_codebook.requires_grad


def test_tasks_are_shared_by_the_subjects():
    weights = {"image->brain": 1.0, "brain->text": 3.0, "image+text->brain": 0.0}
    tasks = expand_tasks(weights, ("a", "b"), {"image", "text"})
    assert tasks == {
        Task(("image",), "brain:a"): 0.5, Task(("image",), "brain:b"): 0.5,
        Task(("brain:a",), "text"): 1.5, Task(("brain:b",), "text"): 1.5,
    }  # fmt: skip


def test_tasks_without_brains_and_without_conditions():
    tasks = expand_tasks({"text->image": 2.0, "->text": 1.0}, ("a", "b"), {"image", "text"})
    assert tasks == {Task(("text",), "image"): 2.0, Task((), "text"): 1.0}


def test_tasks_whose_modalities_are_absent_are_left_out():
    tasks = expand_tasks({"image->brain": 1.0, "text->brain": 1.0}, ("a",), {"text"})
    assert list(tasks) == [Task(("text",), "brain:a")]
    with pytest.raises(UserError, match=r"expected at least one of image->brain that the data .* brain, nothing else"):
        expand_tasks({"image->brain": 1.0}, ("a",), set())


@pytest.mark.parametrize(
    ("direction", "task"),
    [
        ("brain:a->text", Task(("brain:a",), "text")),
        ("brain:a->brain:b", Task(("brain:a",), "brain:b")),
        ("image+brain:b->text", Task(("image", "brain:b"), "text")),
    ],
)
def test_a_direction_that_names_its_subjects_is_one_task(direction, task):
    assert expand_tasks({direction: 3.0}, ("a", "b"), {"image", "text"}) == {task: 3.0}


def test_a_named_subject_adds_to_its_share():
    tasks = expand_tasks({"brain->text": 1.0, "brain:a->text": 1.0, "brain:a->image": 1.0}, ("a", "b"), {"text"})
    assert tasks == {Task(("brain:a",), "text"): 1.5, Task(("brain:b",), "text"): 0.5}


@pytest.mark.parametrize("direction", ["brain:a->brain", "brain:a+brain->text", "brain+brain->text"])
def test_two_brains_have_to_be_named(direction):
    with pytest.raises(UserError, match=r"expected the names of the subjects of its brains \(a, b\), got 'brain'"):
        expand_tasks({direction: 1.0}, ("a", "b"), {"image", "text"})


def test_between_brains_are_all_pairs_of_subjects():
    pairs = {Task((f"brain:{a}", "image"), f"brain:{b}"): 0.5 for a in "abc" for b in "abc" if a != b}
    assert expand_tasks({"brain+image->brain": 3.0}, ("a", "b", "c"), {"image"}) == pairs
    assert list(expand_tasks({"brain->brain": 1.0, "image->brain": 1.0}, ("a",), {"image"})) == [
        Task(("image",), "brain:a")
    ]


def test_a_part_is_one_of_the_target_s_brain():
    assert expand_tasks({"part->brain": 1.0, "part+text->image": 2.0}, ("a", "b"), {"image", "text"}) == {
        Task(("part:a",), "brain:a"): 0.5,
        Task(("part:b",), "brain:b"): 0.5,
        Task(("part:a", "text"), "image"): 1.0,
        Task(("part:b", "text"), "image"): 1.0,
    }


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"foo->brain": 1.0}, "task 'foo->brain': expected conditions and a target out of .* got 'foo'"),
        ({"image->brain:": 1.0}, "got 'brain:'"),
        ({"image->brain": 0.0}, "tasks: expected at least one with a weight above 0, got image->brain without"),
    ],
)
def test_says_which_tasks_do_not_exist(tasks, message):
    with pytest.raises(UserError, match=message):
        expand_tasks(tasks, ("a", "b"), {"image", "text"})


def test_says_which_subjects_there_are():
    with pytest.raises(UserError, match=r"task 'brain:a->brain:c': expected one of the subjects a, b, got 'c'"):
        expand_tasks({"brain:a->brain:c": 1.0}, ("a", "b"), {"image", "text"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropped": 1.1}, r"dropped must lie in \[0, 1\], got 1.1"),
        ({"hidden": -0.1}, r"hidden must lie in \[0, 1\], got -0.1"),
        ({"tasks": {"image": 1.0}}, "task 'image' must have the form condition->target"),
        ({"tasks": {"image->brain": -1.0}}, "task 'image->brain' must have a weight of at least 0"),
        ({"tasks": {"image->brain": math.nan}}, "task 'image->brain' must have a weight of at least 0"),
        ({"tasks_at_end": {"image->brain": math.inf}}, "task 'image->brain' must have a weight of at least 0"),
        ({"expectation": {"brain": math.nan}}, "expectation of 'brain' must be at least 0, got nan"),
        ({"validation": 0.6}, r"validation must lie in \[0, 0.5\], got 0.6"),
        ({"validate_every": -1}, "validate_every must be at least 0, got -1"),
        ({"patience": 2, "validate_every": 0}, "patience must come with validate_every"),
        ({"tasks": {"image": -1.0}, "hidden": 2.0}, "hidden .*; task 'image' must have the form.*; task 'image' must"),
    ],
)
def test_says_what_is_wrong(settings, message):
    with pytest.raises(UserError, match=message):
        OmniTrainingConfig(**settings)


# --- held-out stimuli


@pytest.mark.parametrize("at_once", [7, 96, 200])
@torch.no_grad()
def test_losses_of_held_out_stimuli_do_not_depend_on_how_many_rows_are_computed_at_once(checkpoint, at_once):
    codes, config = planted(checkpoint), OmniTrainingConfig()
    tasks = {Task(("text",), "brain:a"): 1.0, Task(("brain:a",), "text"): 3.0}

    def losses_by(rows):
        validation = Validation(codes, tasks, config, checkpoint.model.config, rows)
        largest = max(drawn.batch.target.batch for _, parts in validation.drawn for drawn in parts)
        return validation.losses(checkpoint.model, checkpoint.tokenizers, config, END, torch.device("cpu")), largest

    (found, largest), (expected, whole) = losses_by(at_once), losses_by(0)
    assert (largest, whole) == (min(at_once, 96), 96)
    assert set(found) == {"loss", "nats/text->brain", "mse/text->brain", "nats/brain->text"}
    assert found == pytest.approx(expected, rel=1e-4)


# --- learning


def planted(checkpoint, classes=6):
    """Stimuli that decide every code of a's response: class c has the codes (c, c, c) and the features of its own."""
    generator = torch.Generator().manual_seed(0)
    brain, which = checkpoint.tokenizers.brain, torch.arange(classes)
    codes = which[:, None].expand(-1, 3)
    rows = BrainRows(which, which < 0, brain.decode(codes, "a"), codes)
    captions = checkpoint.tokenizers.text.encode(["a red cup", "a blue one", "one", "cup", "red", "blue"])
    return Codes(
        tuple("abcdef"), None, None, [], captions, [i[None] for i in which],
        {"wavelet": torch.rand(classes, *SEEN, generator=generator)}, {"a": rows}, brain,
    )  # fmt: skip


def test_a_planted_mapping_is_learnt(make_checkpoint, tmp_path, read_log):
    """After sixty steps captions tell the codes, code by code and all at once, and the log says so."""
    checkpoint = make_checkpoint()
    codes, model, tokenizers = planted(checkpoint), checkpoint.model.requires_grad_(True), checkpoint.tokenizers
    config = OmniTrainingConfig(
        OptimConfig(steps=60, batch_size=24, learning_rate=1e-2, precision="float32", log_every=20),
        tasks={"text->brain": 1.0, "brain->text": 1.0}, dropped=0.0,
    )  # fmt: skip
    fit_omni(model, tokenizers, codes, config, tmp_path, seed=0)
    brain = codes.brains["a"]
    target = Block("brain", codes=brain.codes, subject="a")
    given = [Block("text", codes=codes.caption_codes, seen=up_to_end(codes.caption_codes, END))]
    with torch.no_grad():
        for hidden in (torch.zeros(6, 3, dtype=torch.bool), torch.ones(6, 3, dtype=torch.bool)):
            nats = F.cross_entropy(model(given, target, hidden).flatten(0, 1), brain.codes.flatten())
            assert nats < 0.3 * math.log(6), "the floor is that of six codes that are equally likely"
    greedy = GenerationConfig(temperature=0.0)
    assert generate(checkpoint, {"brain:a": brain.values}, "text", greedy).count("a red cup") <= 2
    lines = read_log(tmp_path / "log.jsonl")
    assert {"stage", "step", "lr", "loss", "nats/text->brain", "mse/text->brain", "nats/brain->text"} == set(lines[-1])
    assert lines[-1]["nats/brain->text"] < lines[0]["nats/brain->text"]


def test_tokenizers_stay_as_they_are(make_checkpoint, tmp_path):
    checkpoint = make_checkpoint()
    before = {name: value.clone() for name, value in checkpoint.tokenizers.brain.state_dict().items()}
    codebook = checkpoint.model.brain_codebook.clone()
    codes = planted(checkpoint)
    checkpoint.tokenizers.brain.requires_grad_(True).train()
    optim = OptimConfig(steps=2, batch_size=4, precision="float32")
    config = OmniTrainingConfig(optim, tasks={"text->brain": 1.0})
    fit_omni(checkpoint.model.requires_grad_(True), checkpoint.tokenizers, codes, config, tmp_path, seed=0)
    after = checkpoint.tokenizers.brain.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(checkpoint.model.brain_codebook, codebook)
    assert not any(p.requires_grad for p in checkpoint.tokenizers.brain.parameters())


def test_losses_are_compared_with_those_of_the_same_task(make_checkpoint, tmp_path, monkeypatch):
    """Of one pair of subjects they may be several times as large as of another."""

    class Seen(Exception):
        pass

    def look(model, steps, *_, **__):
        tasks = [Task(("brain:a",), "brain:b"), Task(("brain:b",), "brain:a")]
        named = {steps.task(SimpleNamespace(task=task)) for task in tasks}
        assert named == {"brain:a->brain:b", "brain:b->brain:a"}
        raise Seen

    checkpoint = make_checkpoint()
    monkeypatch.setattr(omni, "fit", look)
    config = OmniTrainingConfig(OptimConfig(steps=2, batch_size=4), tasks={"text->brain": 1.0})
    with pytest.raises(Seen):
        fit_omni(checkpoint.model, checkpoint.tokenizers, planted(checkpoint), config, tmp_path, seed=0)


@pytest.mark.parametrize("dropped", [0.0, 1.0])
@pytest.mark.parametrize("part", [False, True])
def test_the_expectation_is_the_decoded_one_with_what_the_draft_adds_where_it_counts(make_checkpoint, dropped, part):
    """By hand: of rows whose conditions are withheld there is no draft; known sites of a part do not count."""
    checkpoint = make_checkpoint()
    model, tokenizers = checkpoint.model, checkpoint.tokenizers
    generator = torch.Generator().manual_seed(0)
    shown, target, beyond = (torch.randn(8, 10, generator=generator) for _ in range(3))
    judged = torch.rand(8, 10, generator=generator) < 0.5 if part else None
    block = Block("brain", vectors=tokenizers.brain.latents(shown, "a"), subject="a")
    goal = Block("brain", codes=tokenizers.brain.encode(target, "a"), subject="a")
    config = OmniTrainingConfig(dropped=dropped, hidden=1.0)
    batch = Batch([block], goal, target, shown, beyond, judged)
    losses = losses_of(model, tokenizers, batch, config)
    p = marginal(model, [block.withheld() if dropped else block], goal)
    expected = tokenizers.brain.decode_probabilities(p, "a") + (0 if dropped else beyond)
    wrong = (expected - target).square()
    torch.testing.assert_close(losses.expectation, wrong.mean() if judged is None else wrong[judged].mean())


def test_what_cannot_be_drawn_is_left_out_and_said(make_checkpoint, capsys):
    codes = planted(make_checkpoint())
    nobody = replace(
        codes, brains={"a": codes.brains["a"], "b": codes.brains["a"]._replace(stimulus=torch.arange(6) + 6)}
    )
    nobody = replace(nobody, ids=tuple("abcdefghijkl"))
    assert drawable(nobody, Task(("text",), "brain:a"))
    assert not drawable(nobody, Task(("brain:a",), "brain:b"))
    assert "brain:a->brain:b: left out, as no training stimulus was shown to all" in capsys.readouterr().err


def test_features_are_blurred_alike_whoever_draws_them():
    shown = Block("image", vectors=torch.rand(40, *SEEN), features="wavelet")
    whole = blur(shown, 0.3, torch.Generator().manual_seed(0), 40, slice(None)).kept
    assert abs(float((whole == 0).float().mean()) - 0.3) < 0.01
    assert abs(float(whole.mean()) - 1) < 0.02
    half = Block("image", vectors=shown.vectors[20:], features="wavelet")
    torch.testing.assert_close(blur(half, 0.3, torch.Generator().manual_seed(0), 40, slice(20, 40)).kept, whole[20:])
    codes = Block("image", codes=torch.zeros(40, 4, dtype=torch.long))
    assert blur(codes, 0.3, torch.Generator().manual_seed(0), 40, slice(None)).kept is None


def test_excerpts_are_captions_of_a_stretch_or_without_one():
    lengths = torch.arange(400) % 9 + 1  # the end included; the shortest is an end alone
    seen = torch.arange(12) < lengths[:, None]
    block = Block("text", codes=torch.ones(400, 12, dtype=torch.long), seen=seen)
    shown = excerpt(block, 0.5, torch.Generator().manual_seed(0), 400, slice(None)).seen
    assert not (shown & ~seen).any() and shown[torch.arange(400), lengths - 1].all()
    cut, several = (shown != seen).any(dim=1), lengths > 2
    assert 0.3 < float(cut[several].float().mean()) < 0.5 and not cut[~several].any()  # some stretches are the whole
    told = [row[: n - 1].int().tolist() for row, n in zip(shown[cut], lengths[cut], strict=True)]
    parts = Counter(tuple(shown for shown, _ in groupby(row)) for row in told)  # which of them follow each other
    assert parts.keys() == {(1, 0), (0, 1), (0, 1, 0), (1, 0, 1)} and min(parts.values()) > 10
    assert any(sum(row) == 1 < len(row) for row in told)
    half = replace(block, codes=block.codes[200:], seen=seen[200:])
    again = excerpt(half, 0.5, torch.Generator().manual_seed(0), 400, slice(200, 400)).seen
    torch.testing.assert_close(again, shown[200:])
    picture = Block("image", codes=torch.zeros(400, 4, dtype=torch.long))
    assert excerpt(picture, 1.0, torch.Generator().manual_seed(0), 400, slice(None)) is picture
