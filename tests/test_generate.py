"""Generation: estimates against enumeration, and what a row may and may not depend on."""

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch

from brainjanus import generate as module
from brainjanus.core.errors import UserError
from brainjanus.generate import GenerationConfig, draw, estimate, generate, marginal, sample, score, score_candidates
from brainjanus.model.draft import Drafts, lean_of
from brainjanus.model.sequence import Block, brain_block

TARGETS = ("text", "image", "brain:a")


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint):
    return make_checkpoint()


@pytest.fixture(scope="module")
def small(make_checkpoint):
    """Subject b has K = 2 codes out of N = 3: nine sequences in all."""
    return make_checkpoint(num_codes=3)


def conditions(target="brain:a", rows=4):
    generator = torch.Generator().manual_seed(0)
    given = {
        "image": torch.randint(256, (rows, 8, 8, 3), dtype=torch.uint8, generator=generator),
        "text": ["a cup", "one", "blue", "a red cup"][:rows],
        "brain:b": torch.randn(rows, 8, generator=generator),
    }
    given.pop(target, None)
    return given


def blocks(checkpoint, given):
    return [module.condition_block(checkpoint, name, rows) for name, rows in given.items()]


def same(one, other):
    return one == other if isinstance(one, list) else torch.equal(one, other)


def enumerated(checkpoint, given):
    """log p of all nine code sequences of subject b, [rows, 9, 2] per code, from teacher forcing."""
    sequences = torch.tensor(list(product(range(3), repeat=2)))
    rows = len(next(iter(given.values())))
    shown = blocks(checkpoint, given)
    log_p = []
    for sequence in sequences:
        target = Block("brain", codes=sequence.expand(rows, 2), subject="b")
        all_codes = checkpoint.model(shown, target).log_softmax(dim=-1)
        log_p.append(all_codes.gather(2, target.codes[..., None])[..., 0])
    return sequences, torch.stack(log_p, dim=1)


# --- estimates


@pytest.mark.parametrize(("target", "shape"), [("image", (4, 8, 8, 3)), ("brain:a", (4, 10)), ("brain:b", (4, 8))])
@pytest.mark.parametrize("config", [{"estimate": "sample"}, {"num_samples": 0}, {"num_samples": 2}, {"guidance": 2.0}])
def test_there_is_one_output_per_row(checkpoint, target, shape, config):
    values = generate(checkpoint, conditions(target), target, GenerationConfig(**config))
    assert values.shape == shape
    assert values.isfinite().all()
    if target == "image":
        assert values.min() >= 0 and values.max() <= 1


def test_captions_are_texts(checkpoint):
    captions = generate(checkpoint, conditions("text"), "text")
    assert len(captions) == 4
    assert all(isinstance(caption, str) for caption in captions)


def test_averaged_probabilities_are_those_of_all_sequences(small):
    """The mean over samples approaches the exact marginal of the second code; the first is exact."""
    given = {"image": conditions(rows=2)["image"]}
    sequences, log_p = enumerated(small, given)
    p = log_p.sum(dim=2).exp()
    exact = torch.stack([(p[:, :, None] * torch.eye(3)[sequences[:, k]]).sum(dim=1) for k in range(2)], dim=1)
    target = Block("brain", codes=torch.zeros(2, 2, dtype=torch.long), subject="b")
    uniform = torch.rand(2, 3000, 2, generator=torch.Generator().manual_seed(0))
    codes, vectors = sample(small.model, blocks(small, given), target, GenerationConfig(), uniform, torch.eye(3))
    means = vectors.mean(dim=1)
    torch.testing.assert_close(means[:, 0], exact[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(means[:, 1], exact[:, 1], atol=0.02, rtol=0)
    shares = (codes[:, :, None] == sequences).all(dim=-1).float().mean(dim=1)
    torch.testing.assert_close(shares, p, atol=0.03, rtol=0)


def test_the_mean_of_many_samples_decodes_the_averaged_probabilities(small):
    given = {"image": conditions(rows=2)["image"]}
    sequences, log_p = enumerated(small, given)
    p = log_p.sum(dim=2).exp()
    exact = torch.stack([(p[:, :, None] * torch.eye(3)[sequences[:, k]]).sum(dim=1) for k in range(2)], dim=1)
    wanted = small.tokenizers.brain.decode_probabilities(exact, "b")
    values = generate(small, given, "brain:b", GenerationConfig(num_samples=2000))
    torch.testing.assert_close(values, wanted, atol=0.05, rtol=0)


def test_one_pass_estimates_each_code_by_itself(checkpoint):
    """The marginal is the model's with all codes hidden: it knows nothing of any code of the target."""
    given = conditions()
    target = Block("brain", codes=torch.full((4, 3), 5), subject="a")
    probabilities = marginal(checkpoint.model, blocks(checkpoint, given), target)
    hidden = torch.ones(4, 3, dtype=torch.bool)
    zeros = replace(target, codes=torch.zeros(4, 3, dtype=torch.long))
    torch.testing.assert_close(probabilities, checkpoint.model(blocks(checkpoint, given), zeros, hidden).softmax(-1))
    wanted = checkpoint.tokenizers.brain.decode_probabilities(probabilities, "a")
    torch.testing.assert_close(generate(checkpoint, given, "brain:a"), wanted)


def test_temperature_zero_takes_the_likeliest_code_each_time(small):
    given = {"image": conditions()["image"]}
    shown = blocks(small, given)
    codes = torch.zeros(4, 2, dtype=torch.long)
    for position in range(2):
        logits = small.model(shown, Block("brain", codes=codes, subject="b"))
        codes[:, position] = logits[:, position].argmax(dim=-1)
    greedy = generate(small, given, "brain:b", GenerationConfig(estimate="sample", temperature=0.0))
    torch.testing.assert_close(greedy, small.tokenizers.brain.decode(codes, "b"))


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
@pytest.mark.parametrize("target", TARGETS)
def test_what_narrows_to_one_code_is_greedy(checkpoint, target, narrow):
    greedy = GenerationConfig(estimate="sample", temperature=0.0)
    narrowed = GenerationConfig(estimate="sample", seed=5, **narrow)
    given = conditions(target)
    assert same(generate(checkpoint, given, target, greedy), generate(checkpoint, given, target, narrowed))


def test_nothing_is_said_behind_the_end(checkpoint):
    shown, goal = blocks(checkpoint, conditions("text")), module.target_block(checkpoint, "text", 4)
    uniform = torch.rand(4, 200, goal.length, generator=torch.Generator().manual_seed(0))
    codes, _ = sample(checkpoint.model, shown, goal, GenerationConfig(), uniform)
    ended = (codes == 0).cumsum(dim=-1) > 0
    assert ended[..., :-1].any()
    assert (codes[ended] == 0).all()


# --- draws

LOGITS = torch.tensor([2.0, -1.0, 1.0, 0.0])


def shares(config):
    uniform = (torch.arange(4000) + 0.5) / 4000
    return torch.bincount(draw(LOGITS.expand(4000, 4), uniform, config), minlength=4) / 4000


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"temperature": 2.0}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 2]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.5}, [0]),  # shares 0.64, 0.24, 0.09, 0.03
        ({"top_p": 0.7}, [0, 2]),
        ({"top_p": 0.89}, [0, 2, 3]),
        ({"top_k": 3, "top_p": 0.95, "temperature": 0.5}, [0, 2]),
    ],
)
def test_codes_are_drawn_as_often_as_they_are_likely(config, kept):
    wanted = torch.zeros(4)
    wanted[kept] = (LOGITS[kept] / config.get("temperature", 1.0)).softmax(dim=0)
    torch.testing.assert_close(shares(GenerationConfig(**config)), wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_interval_draw_a_code_that_is_kept(uniform):
    logits = torch.randn(500, 7, generator=torch.Generator().manual_seed(0)) * 5
    chosen = draw(logits, torch.full((500,), uniform), GenerationConfig(top_k=3))
    assert (logits.gather(1, chosen[:, None]) >= logits.topk(3).values[:, -1:]).all()


# --- brains whose patches have a code of each of two stages


@pytest.fixture(scope="module")
def staged(make_checkpoint):
    """Two stages of three codes: subject b has 2 patches, K = 4 codes."""
    return make_checkpoint(num_codes=3, stages=2, brain_input="sites")


@pytest.mark.parametrize(
    "config",
    [{}, {"guidance": 3.0}, {"guidance": 0.0}, {"top_k": 5}, {"temperature": 30.0}, {"temperature": 0.0}],
)
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_no_code_of_another_stage_is_drawn(staged, config, uniform):
    goal = module.target_block(staged, "brain:b", 4)
    shown = blocks(staged, {"image": conditions()["image"], "brain:a": torch.randn(4, 10)})
    fixed = torch.full((4, 3, 4), uniform)
    codes, vectors = sample(staged.model, shown, goal, GenerationConfig(**config), fixed, torch.eye(6))
    means = vectors.mean(dim=1)
    assert torch.equal(codes // 3, (torch.arange(4) % 2).expand(4, 3, 4))
    means = means.unflatten(2, (2, 3)).sum(dim=-1)  # of each stage
    torch.testing.assert_close(means, torch.eye(2).repeat(2, 1).expand(4, 4, 2))


def test_estimates_of_staged_codes(staged):
    """The expected response is that of the expected vectors of both stages, added; all sequences sum to one."""
    given = {"image": conditions(rows=2)["image"]}
    goal = module.target_block(staged, "brain:b", 2)
    for guidance in (1.0, 2.0):
        p = marginal(staged.model, blocks(staged, given), goal, guidance)
        latents = (p @ staged.model.brain_codebook).unflatten(1, (2, 2)).sum(dim=2)
        wanted = staged.tokenizers.brain.decode_latents(latents, "b")
        made = generate(staged, given, "brain:b", GenerationConfig(guidance=guidance))
        torch.testing.assert_close(made, wanted)
    sequences = torch.tensor(list(product(range(3), range(3, 6), repeat=2)))
    log_p = staged.model(
        blocks(staged, {"image": given["image"][:1].expand(81, -1, -1, -1)}),
        Block("brain", codes=sequences, subject="b"),
    ).log_softmax(dim=-1)
    log_p = log_p.gather(2, sequences[..., None])[..., 0].sum(dim=1)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-5)
    response = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    which = (staged.tokenizers.brain.encode(response, "b") == sequences).all(dim=1)
    assert which.sum() == 1
    torch.testing.assert_close(score(staged, {"image": given["image"][:1]}, "brain:b", response), log_p[which])


@pytest.mark.parametrize("config", [{"estimate": "sample"}, {"num_samples": 2}, {"guidance": 2.0}])
def test_staged_brains_are_made_and_shown(staged, config):
    given = {"brain:a": torch.randn(3, 10, generator=torch.Generator().manual_seed(0))}
    made = generate(staged, given, "brain:b", GenerationConfig(**config))
    assert made.shape == (3, 8) and made.isfinite().all()
    assert generate(staged, {"brain:b": made}, "image", GenerationConfig(**config)).isfinite().all()


# --- what a row depends on


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "config", [{"estimate": "sample"}, {"num_samples": 3}, {"estimate": "sample", "guidance": 2.0}]
)
def test_a_row_does_not_depend_on_its_neighbours(checkpoint, monkeypatch, target, config):
    given, config = conditions(target), GenerationConfig(**config)
    together = generate(checkpoint, given, target, config)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 2)
    in_parts = generate(checkpoint, given, target, config)
    fewer = generate(checkpoint, {name: rows[:2] for name, rows in given.items()}, target, config)
    if target == "text":
        assert together == in_parts and together[:2] == fewer
    else:
        torch.testing.assert_close(in_parts, together, atol=1e-2, rtol=0)
        torch.testing.assert_close(fewer, together[:2], atol=1e-2, rtol=0)


@pytest.mark.parametrize("target", TARGETS)
def test_the_seed_decides(checkpoint, target):
    config = GenerationConfig(estimate="sample", seed=1)
    first = generate(checkpoint, conditions(target), target, config)
    assert same(generate(checkpoint, conditions(target), target, config), first)
    assert not same(generate(checkpoint, conditions(target), target, replace(config, seed=2)), first)


def test_the_same_rows_are_drawn_independently(checkpoint):
    """One condition eight times: the samples of a request differ."""
    given = {"image": conditions()["image"][:1].expand(8, -1, -1, -1)}
    values = generate(checkpoint, given, "brain:a", GenerationConfig(estimate="sample"))
    assert len(torch.unique(values, dim=0)) > 1


def test_several_conditions_all_count(checkpoint):
    given = conditions()
    values = generate(checkpoint, given, "brain:a")
    for name in given:
        fewer = {n: r for n, r in given.items() if n != name}
        assert not torch.allclose(generate(checkpoint, fewer, "brain:a"), values)


def test_without_conditions_there_is_one_row(checkpoint):
    assert generate(checkpoint, {}, "brain:a").shape == (1, 10)
    assert len(generate(checkpoint, {}, "text")) == 1


def test_codes_are_written_to_no_argument(checkpoint):
    given = conditions()
    copies = {name: rows.clone() for name, rows in given.items() if name != "text"}
    generate(checkpoint, given, "brain:a", GenerationConfig(estimate="sample", guidance=2.0))
    assert all(torch.equal(given[name], rows) for name, rows in copies.items())


# --- guidance


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("config", [{"estimate": "sample", "temperature": 0.0}, {"num_samples": 0}])
def test_guidance_by_one_is_none(checkpoint, target, config):
    plain = generate(checkpoint, conditions(target), target, GenerationConfig(**config))
    almost = generate(checkpoint, conditions(target), target, GenerationConfig(guidance=1 + 1e-7, **config))
    assert plain == almost if target == "text" else torch.allclose(plain, almost, atol=1e-4)


@pytest.mark.parametrize("target", TARGETS)
def test_guided_rows_are_those_of_two_separate_passes(checkpoint, target):
    """Greedy codes under guidance, from one batch of given and withheld rows, against two models side by side."""
    shown = blocks(checkpoint, conditions(target))
    goal = module.target_block(checkpoint, target, 4)
    codes = goal.codes.clone()
    ended = torch.zeros(4, dtype=torch.bool)
    for position in range(goal.length):
        given = checkpoint.model(shown, replace(goal, codes=codes))[:, position]
        without = checkpoint.model([b.withheld() for b in shown], replace(goal, codes=codes))[:, position]
        codes[:, position] = torch.where(ended, 0, (without + 2.5 * (given - without)).argmax(dim=-1))
        ended |= (codes[:, position] == 0) & (target == "text")
    config = GenerationConfig(estimate="sample", temperature=0.0, guidance=2.5)
    drawn, _ = sample(checkpoint.model, shown, goal, config, torch.zeros(4, 1, goal.length))
    assert torch.equal(drawn[:, 0], codes)


def test_guidance_of_the_marginal(checkpoint):
    shown, goal = blocks(checkpoint, conditions()), module.target_block(checkpoint, "brain:a", 4)
    given = marginal(checkpoint.model, shown, goal).log()
    without = marginal(checkpoint.model, [b.withheld() for b in shown], goal).log()
    wanted = (without + 3 * (given - without)).softmax(dim=-1)
    torch.testing.assert_close(marginal(checkpoint.model, shown, goal, 3.0), wanted, atol=1e-4, rtol=1e-3)


def test_no_guidance_at_all_shows_nothing_of_the_conditions(checkpoint):
    given = conditions()
    other = {name: rows[::-1] if name == "text" else rows.flip(0) for name, rows in given.items()}
    config = GenerationConfig(guidance=0.0, estimate="sample")
    one, two = (generate(checkpoint, shown, "brain:a", config) for shown in (given, other))
    torch.testing.assert_close(one, two)


# --- likelihood


def test_probabilities_of_all_sequences_sum_to_one(small):
    """score() of every sequence that subject b can have; responses stand for their codes here."""
    given = conditions(rows=2)
    given.pop("brain:b")
    sequences, log_p = enumerated(small, given)
    torch.testing.assert_close(log_p.sum(dim=2).exp().sum(dim=1), torch.ones(2))
    responses = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    codes = small.tokenizers.brain.encode(responses, "b")
    which = (codes[:, None] == sequences).all(dim=-1).float().argmax(dim=1)
    torch.testing.assert_close(
        score(small, given, "brain:b", responses), log_p.sum(dim=2).gather(1, which[:, None])[:, 0]
    )


def test_a_text_is_scored_up_to_and_with_its_end(checkpoint):
    given, captions = conditions("text"), ["a cup", "one", "", "a red cup"]
    codes = checkpoint.tokenizers.text.encode(captions)
    log_p = checkpoint.model(blocks(checkpoint, given), Block("text", codes=codes)).log_softmax(dim=-1)
    for row, caption in enumerate(captions):
        length = int((codes[row] != 0).sum()) + 1
        wanted = sum(float(log_p[row, k, codes[row, k]]) for k in range(length))
        assert float(score(checkpoint, given, "text", captions)[row]) == pytest.approx(wanted, rel=1e-4), caption


def test_pictures_are_scored_and_in_parts_too(checkpoint, monkeypatch):
    given, pictures = conditions("image"), conditions()["image"]
    whole = score(checkpoint, given, "image", pictures)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 3)
    torch.testing.assert_close(score(checkpoint, given, "image", pictures), whole, atol=1e-4, rtol=1e-4)
    assert (whole < 0).all()


@pytest.mark.parametrize("image_input", ["wavelet", "codes"])
def test_pictures_may_be_floats_as_generate_returns_them(make_checkpoint, image_input):
    checkpoint = make_checkpoint(image_input=image_input)
    pictures = conditions()["image"]
    wanted = generate(checkpoint, {"image": pictures}, "brain:a")
    torch.testing.assert_close(generate(checkpoint, {"image": pictures / 255}, "brain:a"), wanted)
    made = generate(checkpoint, {"brain:a": torch.zeros(2, 10)}, "image")
    assert generate(checkpoint, {"image": made}, "brain:b").shape == (2, 8)
    torch.testing.assert_close(
        score(checkpoint, {}, "image", pictures / 255), score(checkpoint, {}, "image", pictures), atol=1e-4, rtol=1e-4
    )


# --- what it refuses


@pytest.mark.parametrize(
    ("given", "target", "message"),
    [
        ({"brain:a": torch.zeros(2, 9)}, "image", "responses of a: expected 10 sites, got 9"),
        ({"brain:c": torch.zeros(2, 9)}, "image", r"the subjects it was trained on \(a, b\), got 'c'"),
        ({"brain:a": torch.tensor([[0.0] * 10, [float("nan")] * 10])}, "image", "responses of a: .* infinity in row 1"),
        ({"text": ["a cup"]}, "brain:c", r"the subjects it was trained on \(a, b\), got 'c'"),
        ({"text": ["a cup"]}, "text", "expected a target that is not among the conditions, got 'text'. Leave it out"),
        ({"text": ["one"], "brain:a": torch.zeros(2, 10)}, "image", "got text 1, brain:a 2. Pair them by stimulus id"),
        ({"text": ["unseen words " * 9]}, "image", "expected at most .* codes with its end"),
        ({"sound": [1]}, "image", "'sound': expected text, image, brain:SUBJECT or part:SUBJECT"),
        ({"text": ["one"]}, "sound", "'sound': expected text, image, brain:SUBJECT or part:SUBJECT"),
        ({"brain:a": torch.zeros(10)}, "image", r"responses of a: expected \[b, sites\], .* got the shape \[10\]"),
        ({"brain:a": []}, "image", r"responses of a: .* at least one row, got the shape \[0\]"),
        ({"brain:a": torch.zeros(0, 10)}, "image", r"at least one row, got the shape \[0, 10\]"),
        ({"brain:a": ["one"]}, "image", r"responses of a: expected \[b, sites\] as one array, got list"),
        (
            {"image": torch.zeros(8, 8, 3, dtype=torch.uint8)},
            "text",
            r"expected pictures \[b, h, w, 3\], .*uint8 \[8, 8",
        ),
        (
            {"image": torch.zeros(2, 8, 8, 4)},
            "text",
            r"image: expected pictures \[b, h, w, 3\], .*float32 \[2, 8, 8, 4",
        ),
        ({"image": torch.full((2, 8, 8, 3), 255.0)}, "text", r"floats in \[0, 1\], got float32 .* from 255 to 255"),
        ({"image": torch.zeros(2, 8, 8, 3).long()}, "text", r"uint8 or floats in \[0, 1\], got int64"),
        (
            {"image": torch.zeros(2, 8, 8)},
            "text",
            r"image: expected features 'wavelet' \[b, .* got the shape \[2, 8, 8\]",
        ),
        ({"image": []}, "text", r"image: expected pictures .* or features .* at least one row"),
        ({"image": ["cup.png"]}, "text", "image: expected pictures .* as one array, got list"),
        ({"text": []}, "image", r"text: expected a caption, or a list of at least one, got \[\]"),
        ({"text": [1, 2]}, "image", r"text: expected a caption, or a list of at least one, got \[1, 2\]"),
    ],
)
def test_says_what_is_wrong(checkpoint, given, target, message):
    with pytest.raises(UserError, match=message):
        generate(checkpoint, given, target)


def test_says_that_the_model_lacks_a_modality(make_checkpoint):
    brains = make_checkpoint(modalities=False)
    for given, target, name in (({"text": ["one"]}, "brain:a", "captions"), ({}, "image", "pictures")):
        with pytest.raises(UserError, match=rf"trained on \(brain\), got .* a dataset that has {name}"):
            generate(brains, given, target)


def test_captions_may_be_read_through_features(make_checkpoint):
    """... as conditions; as targets they are codes as ever."""
    checkpoint = make_checkpoint(text_input="words")
    features = torch.randn(2, 2, 7, generator=torch.Generator().manual_seed(0))
    values = generate(checkpoint, {"text": features}, "brain:a")
    assert not torch.allclose(values[0], values[1])
    assert len(generate(checkpoint, {"brain:a": torch.zeros(2, 10)}, "text")) == 2
    assert score(checkpoint, {"brain:a": torch.zeros(2, 10)}, "text", ["one", "a cup"]).shape == (2,)
    for words in (["a cup", "one"], "a cup"):
        with pytest.raises(UserError, match=r"text: expected the features 'words', through which .* got words"):
            generate(checkpoint, {"text": words}, "brain:a")


def test_says_that_the_vision_encoder_is_not_at_hand(make_checkpoint):
    trained_on_clip = make_checkpoint(image_input="clip")
    with pytest.raises(UserError, match="vision encoder 'clip': expected one that is built in"):
        generate(trained_on_clip, {"image": conditions()["image"]}, "brain:a")
    features = torch.rand(2, *trained_on_clip.model.interface.features["clip"])
    assert generate(trained_on_clip, {"image": features}, "brain:a").shape == (2, 10)


def test_says_that_features_are_not_those_of_the_training(make_checkpoint):
    for inputs, name in (({"text_input": "words"}, "text"), ({"image_input": "clip"}, "image")):
        checkpoint = make_checkpoint(**inputs)
        encoder = next(iter(inputs.values()))
        tokens, channels = checkpoint.model.interface.features[encoder]
        for shape in ((2, tokens + 1, channels), (2, tokens, channels - 1)):
            message = rf"{name}: expected features '{encoder}' \[b, {tokens}, {channels}\], .* got the shape \[2, "
            with pytest.raises(UserError, match=message):
                generate(checkpoint, {name: torch.zeros(shape)}, "brain:a")


def test_says_what_cannot_be_scored(checkpoint):
    given, features = conditions("image"), torch.zeros(4, *checkpoint.model.interface.features["wavelet"])
    with pytest.raises(UserError, match=r"image: expected pictures \[b, h, w, 3\], .*features cannot be scored"):
        score(checkpoint, given, "image", features)
    with pytest.raises(UserError, match="generation: expected a target that is not among the conditions, got 'text'"):
        score(checkpoint, given, "text", given["text"])
    with pytest.raises(UserError, match=r"got text 4, brain:b 4, image 2\. Pair them by stimulus id"):
        score(checkpoint, given, "image", conditions()["image"][:2])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_samples": -1}, "num_samples and top_k must be at least 0, got -1 and 0"),
        ({"top_k": -1}, "num_samples and top_k must be at least 0, got 0 and -1"),
        ({"temperature": -0.1}, "temperature and guidance must be at least 0"),
        ({"guidance": -0.1}, "temperature and guidance must be at least 0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must lie in \(0, 1\], got 1.1"),
        ({"top_p": 0.0, "top_k": -1}, "top_k must .*; top_p must"),
        ({"seed": -1}, r"seed must lie in \[0, 2\*\*63\), got -1"),
    ],
)
def test_says_which_option_is_wrong(config, message):
    with pytest.raises(UserError, match=message):
        GenerationConfig(**config)


def test_says_which_estimates_there_are():
    config = GenerationConfig()
    object.__setattr__(config, "estimate", "median")  # where types are checked, as here, nothing else passes
    with pytest.raises(UserError, match="estimate must be sample or mean, got 'median'"):
        config.__post_init__()


# --- several samples, their error, hypotheses


def test_all_samples_come_back_and_the_first_is_the_value(checkpoint):
    config = GenerationConfig(estimate="sample", num_samples=3, seed=1)
    for target, shape in (("brain:a", (4, 3, 10)), ("image", (4, 3, 8, 8, 3))):
        made = estimate(checkpoint, conditions(target), target, config)
        assert made.samples.shape == shape
        assert torch.equal(made.values, made.samples[:, 0])
        assert made.standard_error is None
        assert made.samples.std(dim=1).mean() > 0
    captions = estimate(checkpoint, conditions("text"), "text", config)
    assert [len(row) for row in captions.samples] == [3] * 4
    assert captions.values == [row[0] for row in captions.samples]


def test_the_first_of_many_samples_is_not_another_seed_s(checkpoint):
    """Rows in one batch, alone, and in batches of any size draw the same."""
    config = GenerationConfig(estimate="sample", num_samples=2)
    whole = estimate(checkpoint, conditions(), "brain:a", config).samples
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS_AT_ONCE", 2)
        torch.testing.assert_close(estimate(checkpoint, conditions(), "brain:a", config).samples, whole)


def test_the_standard_error_is_that_of_the_mean(small):
    """The means of many requests scatter as much as each says of itself."""
    given = {"image": conditions(rows=2)["image"]}
    made = [estimate(small, given, "brain:b", GenerationConfig(num_samples=16, seed=seed)) for seed in range(60)]
    scatter = torch.stack([one.values for one in made]).std(dim=0)
    told = torch.stack([one.standard_error for one in made]).square().mean(dim=0).sqrt()
    ratio = (scatter / told)[told > 1e-4]
    assert len(ratio) > 8
    assert float(ratio.log().mean().exp()) == pytest.approx(1, abs=0.12)
    assert estimate(small, given, "brain:b").standard_error is None


@pytest.mark.parametrize("target", TARGETS)
def test_candidates_are_scored_under_every_row(checkpoint, target):
    given = conditions(target, rows=3)
    options = {"text": ["a cup", "one", "blue", "a red cup"], "brain:a": torch.randn(4, 10)}
    options["image"] = conditions(rows=4)["image"]
    table = score_candidates(checkpoint, given, target, options[target])
    assert table.shape == (3, 4)
    for column in range(4):
        alone = [options[target][column]] * 3
        rows = alone if target == "text" else torch.stack([torch.as_tensor(row) for row in alone])
        torch.testing.assert_close(table[:, column], score(checkpoint, given, target, rows), atol=1e-4, rtol=1e-4)


def test_in_one_pass_each_code_is_judged_by_itself(checkpoint):
    given, options = conditions(), torch.randn(5, 10)
    table = score_candidates(checkpoint, given, "brain:a", options, one_pass=True)
    p = marginal(checkpoint.model, blocks(checkpoint, given), module.target_block(checkpoint, "brain:a", 4))
    codes = checkpoint.tokenizers.brain.encode(options, "a")
    for row, column in product(range(4), range(5)):
        torch.testing.assert_close(table[row, column], p[row, torch.arange(3), codes[column]].log().sum())


# --- parts of brains, and drafts


@pytest.fixture(scope="module")
def drafted(make_checkpoint):
    """Of subject a there is a map to b, not back."""
    made = make_checkpoint(brain_input="sites")
    torch.manual_seed(4)
    drafts = Drafts({"a": (10, 3), "b": (8, 2)}, [("a", "b")])
    for name, value in drafts.named_buffers():
        if not name.startswith("trusts."):
            value.copy_(torch.rand(value.shape) + 0.2)
    return replace(made, drafts=drafts)


def part(subject="a", rows=4, known=4):
    sites = {"a": 10, "b": 8}[subject]
    values = torch.randn(rows, sites, generator=torch.Generator().manual_seed(7))
    return values.masked_fill(torch.arange(sites) >= known, float("nan"))


@pytest.mark.parametrize(
    "config", [{}, {"num_samples": 2}, {"estimate": "sample", "num_samples": 2}, {"guidance": 2.0}]
)
def test_a_part_is_completed_and_stays_as_it_was(drafted, config):
    given = part()
    made = estimate(drafted, {"part:a": given}, "brain:a", GenerationConfig(**config))
    assert made.values.shape == (4, 10) and made.values.isfinite().all()
    assert torch.equal(made.values[:, :4], given[:, :4])
    if made.samples is not None:
        assert torch.equal(made.samples[:, 1, :4], given[:, :4])
    other = estimate(drafted, {"part:a": -given}, "brain:a", GenerationConfig(**config))
    assert (made.values - other.values)[:, 4:].abs().max() > 1e-3, "the rest follows the part"


def test_what_codes_cannot_hold_of_the_draft_is_added(drafted):
    given, brain = part(), drafted.tokenizers.brain
    filled = drafted.drafts.complete(given, "a")
    lean = lean_of(brain, filled, "a", 1.0)
    block = brain_block(brain, filled, "a", "sites", unmeasured=given.isnan())
    goal = replace(module.target_block(drafted, "brain:a", 4), lean=lean)
    p = marginal(drafted.model, [block], goal)
    wanted = filled + brain.decode_probabilities(p, "a") - brain.decode_probabilities(lean.softmax(dim=-1), "a")
    torch.testing.assert_close(generate(drafted, {"part:a": given}, "brain:a")[:, 4:], wanted[:, 4:])


def test_another_brain_brings_its_draft_as_a_condition(drafted):
    """Without a map there is none, and the brain alone is read."""
    a, b = torch.randn(4, 10), torch.randn(4, 8)
    request = module.asked_of(drafted, {"brain:a": a, "image": conditions()["image"]}, "brain:b")
    assert [block.subject for block in request.conditions] == ["a", None, "b"]
    assert request.known is None
    draft = drafted.drafts.carried(a, "a", "b")
    torch.testing.assert_close(drafted.tokenizers.brain.sites_of("b").join(request.conditions[2].vectors), draft)
    back = module.asked_of(drafted, {"brain:b": b}, "brain:a")
    assert len(back.conditions) == 1 and back.beyond is None


def test_a_part_of_a_brain_is_a_condition_of_anything(drafted):
    for target in ("image", "text", "brain:b"):
        made = generate(drafted, {"part:a": part()}, target, GenerationConfig(temperature=0.0))
        assert len(made) == 4


def test_whether_sites_were_measured_is_seen(drafted):
    """The same numbers, once measured and once filled in, are read differently."""
    filled = drafted.drafts.complete(part(), "a")
    one = generate(drafted, {"brain:a": filled}, "image")
    other = generate(drafted, {"part:a": part()}, "image")
    assert (one - other).abs().max() > 1e-4


def test_several_brains_are_read_at_once(drafted):
    given = {"brain:a": torch.randn(3, 10), "brain:b": torch.randn(3, 8)}
    both = generate(drafted, given, "image")
    assert both.shape == (3, 8, 8, 3)
    assert (both - generate(drafted, {"brain:a": given["brain:a"]}, "image")).abs().max() > 1e-4


def test_nothing_at_all_gives_one_of_anything(checkpoint):
    assert generate(checkpoint, {}, "image").shape == (1, 8, 8, 3)
    assert len(generate(checkpoint, {}, "text")) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"part:a": torch.full((2, 10), float("nan"))},
            "part:a: expected at least one known site in every row, got none",
        ),
        ({"part:a": torch.full((2, 10), float("inf"))}, "expected finite numbers, got NaN or infinity in row 0"),
        ({"part:a": torch.zeros(2, 9)}, "responses of a: expected 10 sites, got 9"),
        ({"part:z": torch.zeros(2, 9)}, "expected one of the subjects .*, got 'z'"),
    ],
)
def test_says_what_is_wrong_with_a_part(drafted, given, message):
    with pytest.raises(UserError, match=message):
        generate(drafted, given, "image")


def test_a_model_without_drafts_completes_nothing(checkpoint):
    with pytest.raises(UserError, match="part:a: expected a model with linear drafts"):
        generate(checkpoint, {"part:a": part()}, "image")


# --- the noise of trials


def test_samples_with_the_noise_of_trials_scatter_more_and_mean_the_same(drafted):
    given = {"image": conditions(rows=2)["image"]}
    config = GenerationConfig(estimate="sample", num_samples=400)
    plain = estimate(drafted, given, "brain:a", config).samples
    noisy = estimate(drafted, given, "brain:a", replace(config, trial_noise=True)).samples
    noise = (noisy - plain).flatten(0, 1)
    scatter = drafted.drafts.scatter("a")
    wanted = (scatter.axes.square().sum(dim=0) + scatter.spread.square()).sqrt()
    torch.testing.assert_close(noise.std(dim=0), wanted, rtol=0.15, atol=0.0)
    assert float((noise.mean(dim=0) / wanted).abs().max()) < 0.2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS_AT_ONCE", 1)
        alone = estimate(drafted, given, "brain:a", replace(config, num_samples=3, trial_noise=True)).samples
    together = estimate(drafted, given, "brain:a", replace(config, num_samples=3, trial_noise=True)).samples
    torch.testing.assert_close(alone, together)


def test_what_is_known_gets_no_noise(drafted):
    config = GenerationConfig(estimate="sample", num_samples=2, trial_noise=True)
    made = estimate(drafted, {"part:a": part()}, "brain:a", config).samples
    assert torch.equal(made[:, 1, :4], part()[:, :4])


def test_a_mean_has_no_noise_of_trials(checkpoint):
    with pytest.raises(UserError, match="trial_noise is of samples: estimate must be sample"):
        GenerationConfig(trial_noise=True)


@pytest.mark.parametrize("config", [{"num_samples": 3}, {"estimate": "sample", "num_samples": 3, "guidance": 2.0}, {}])
def test_what_memory_holds_at_once_does_not_matter(checkpoint, config):
    config = GenerationConfig(**config)
    request = module.asked_of(checkpoint, conditions("image"), "image")
    assert module.at_once(checkpoint.model, request, config) == 256 // (1 if config.guidance == 1 else 2)
    whole = estimate(checkpoint, conditions("image"), "image", config)
    table = score_candidates(checkpoint, conditions(), "brain:a", torch.ones(3, 10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WORK_BYTES", 1)
        assert module.at_once(checkpoint.model, request, config) == 1
        parts = estimate(checkpoint, conditions("image"), "image", config)
        torch.testing.assert_close(score_candidates(checkpoint, conditions(), "brain:a", torch.ones(3, 10)), table)
    torch.testing.assert_close(parts.values, whole.values)
    assert (parts.standard_error is None) == (config.num_samples == 0 or config.estimate == "sample")
    assert parts.samples is None or parts.samples.shape == whole.samples.shape


def test_features_with_nan_are_refused(checkpoint):
    features = torch.zeros(2, *checkpoint.model.interface.features["wavelet"])
    features[1, 0, 0] = float("nan")
    with pytest.raises(UserError, match="image: expected finite features, got NaN or infinity in row 1"):
        generate(checkpoint, {"image": features}, "text")


@pytest.mark.parametrize("name", ["brain", "part"])
def test_a_brain_has_to_be_somebody_s(checkpoint, name):
    with pytest.raises(UserError, match=rf"expected the subject of a brain \(a, b\), got '{name}'"):
        generate(checkpoint, {name: torch.zeros(1, 10)}, "image")


def test_without_guidance_not_even_the_draft_is_shown(drafted):
    none = GenerationConfig(guidance=0.0)
    one, other = (generate(drafted, {"brain:a": x}, "brain:b", none) for x in (torch.ones(1, 10), -torch.ones(1, 10)))
    torch.testing.assert_close(one, other)


def test_likelihoods_of_one_pass_are_finite_however_unlikely(checkpoint):
    sure = replace(checkpoint, model=copy.deepcopy(checkpoint.model))
    sure.model.heads["brain"].weight.mul_(1e4)
    assert score_candidates(sure, conditions(), "brain:a", torch.randn(5, 10), one_pass=True).isfinite().all()


def test_a_mean_believes_the_model_as_far_as_is_known(drafted):
    """At trust 0 the draft is given back, in between both are mixed; samples stay what the model draws."""
    given, a = part(), torch.randn(4, 10, generator=torch.Generator().manual_seed(2))
    filled, carried = drafted.drafts.complete(given, "a"), drafted.drafts.carried(a, "a", "b")
    sampled = GenerationConfig(estimate="sample")
    wanted = {}
    for share in (1.0, 0.0, 0.25):
        drafts = copy.deepcopy(drafted.drafts)
        drafts.trust("a").part.fill_(share)
        drafts.trust("b").brain.fill_(share)
        some = replace(drafted, drafts=drafts)
        wanted[share] = [
            generate(some, {"part:a": given}, "brain:a"),
            generate(some, {"brain:a": a}, "brain:b"),
            generate(some, {"part:a": given}, "brain:a", sampled),
        ]
    torch.testing.assert_close(wanted[0.0][0], filled)
    torch.testing.assert_close(wanted[0.0][1], carried)
    for own, none, some in zip(wanted[1.0][:2], wanted[0.0], wanted[0.25], strict=False):
        assert (own - none).abs().max() > 1e-3
        torch.testing.assert_close(some, 0.25 * own + 0.75 * none)
    assert torch.equal(wanted[1.0][2], wanted[0.0][2])


@pytest.fixture(scope="module")
def told(make_checkpoint):
    """Pictures and words tell of both subjects, linearly."""
    made = make_checkpoint()
    torch.manual_seed(5)
    tokens, channels = made.model.interface.features["wavelet"]
    sizes = {"image": (tokens * channels, 5), "text": (6, 5)}
    drafts = Drafts({"a": (10, 3), "b": (8, 2)}, [], sizes, pieces=6)
    for name, value in drafts.named_buffers():
        if not name.startswith("trusts."):
            value.copy_(torch.rand(value.shape) if value.is_floating_point() else torch.arange(6))
    return replace(made, drafts=drafts)


@pytest.mark.parametrize("kinds", ["image", "text", "image+text"])
def test_what_is_told_linearly_is_weighed_against_the_model(told, kinds):
    given = {kind: conditions()[kind] for kind in kinds.split("+")}
    blocks = {name: module.condition_block(told, name, rows) for name, rows in given.items()}
    linear = told.drafts.told(blocks, "a")
    made = {}
    for share in (1.0, 0.0, 0.25):
        drafts = copy.deepcopy(told.drafts)
        drafts.trust("a").of(kinds).fill_(share)
        made[share] = replace(told, drafts=drafts)
    own, none, some = (generate(made[share], given, "brain:a") for share in (1.0, 0.0, 0.25))
    torch.testing.assert_close(own, generate(replace(told, drafts=None), given, "brain:a"))
    torch.testing.assert_close(none, linear)
    torch.testing.assert_close(some, 0.25 * own + 0.75 * linear)
    sampled = GenerationConfig(estimate="sample")
    assert torch.equal(*(generate(made[share], given, "brain:a", sampled) for share in (1.0, 0.0)))
    withheld = GenerationConfig(guidance=0.0)
    torch.testing.assert_close(*(generate(made[share], given, "brain:a", withheld) for share in (1.0, 0.0)))


def test_a_picture_that_responses_tell_of_is_weighed_against_the_model(make_checkpoint):
    made = make_checkpoint()
    torch.manual_seed(5)
    plain = Drafts({"a": (10, 3), "b": (8, 2)}, [])
    drafts = Drafts({"a": (10, 3), "b": (8, 2)}, [], pictured=4)
    for name, value in drafts.named_buffers():
        if not name.startswith("trusts."):
            value.copy_(torch.rand(value.shape) / 8)
    there = plain.state_dict().keys() - {"look", "look_mean"}
    plain.load_state_dict({name: value for name, value in drafts.state_dict().items() if name in there}, strict=False)
    given = {"brain:a": torch.randn(4, 10), "brain:b": torch.randn(4, 8)}
    small = torch.stack([drafts.picture(rows, name[-1]) for name, rows in given.items()]).mean(dim=0)
    linear = torch.nn.functional.interpolate(small, (8, 8), mode="bilinear", antialias=True)
    linear = linear.permute(0, 2, 3, 1)

    def asked(share, some=given, config=None):
        weighed = copy.deepcopy(drafts)
        for subject, own in zip("ab", share, strict=True):
            weighed.trust(subject).of("picture").fill_(own)
        return generate(replace(made, drafts=weighed), some, "image", config)

    own = generate(replace(made, drafts=plain), given, "image")
    torch.testing.assert_close(asked((1, 1)), own)
    torch.testing.assert_close(asked((0, 0)), linear.clamp(0, 1))
    torch.testing.assert_close(asked((0.2, 0.4)), (0.3 * own + 0.7 * linear).clamp(0, 1))
    sampled, withheld = GenerationConfig(estimate="sample"), GenerationConfig(guidance=0.0)
    assert torch.equal(*(asked((share, share), config=sampled) for share in (0, 1)))  # of the model alone
    torch.testing.assert_close(*(asked((share, share), config=withheld) for share in (0, 1)))
    both = given | {"text": conditions("image")["text"]}  # nothing is drafted of words
    assert torch.equal(*(asked((share, share), both) for share in (0, 1)))


def test_words_are_counted_as_far_as_they_are_seen(told):
    block = Block("text", codes=torch.tensor([[0, 2, 2, 5]]), seen=torch.tensor([[True, True, True, False]]))
    assert told.drafts.described(block).tolist() == [[1, 0, 1, 0, 0, 0]]
    assert told.drafts.described(Block("image", codes=torch.zeros(1, 4, dtype=torch.long))) is None
