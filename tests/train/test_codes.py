"""The tokenized training split: nothing of the test split, and each row what it says it is."""

import copy
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.core.fused import nats
from brainjanus.data.dataset import Stimuli, Subject
from brainjanus.data.write import write_dataset
from brainjanus.model.checkpoint import Tokenizers, interface_of
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.draft import GUESS, Drafts, channels_of, weighed
from brainjanus.model.omni import OmniConfig, OmniModel
from brainjanus.model.sequence import Block, Task
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.tokenizers.text import END, TextTokenizer, TextTokenizerConfig
from brainjanus.tokenizers.vision import wavelet
from brainjanus.train import codes as module
from brainjanus.train import omni
from brainjanus.train.codes import (
    BrainRows,
    dtype_of_codes,
    encode_split,
    features_of,
    pick,
    rows_of_groups,
    training_rows,
    unit_pixels,
)
from brainjanus.train.draft import solve_drafts
from brainjanus.train.omni import OmniTrainingConfig, weigh_drafts
from brainjanus.train.state import generator_of
from brainjanus.train.tokenizer import Repeats, solve_axes

QUANTIZER = QuantizerConfig(num_codes=8, dim=4)


@pytest.fixture(scope="module")
def tokenizers(study):
    torch.manual_seed(0)
    orders = {s: torch.from_numpy(study.space(s).order.copy()) for s in study.subjects}
    brain = BrainTokenizer(BrainTokenizerConfig(patch_size=8, patch=PatchConfig(16, 1, 2), quantizer=QUANTIZER), orders)
    for subject in study.subjects:
        solve_axes(brain, Repeats(study, subject), 0.5)
    image = ImageTokenizer(ImageTokenizerConfig(16, 2, width=8, blocks=1, quantizer=QUANTIZER))
    captions = [c for s in study.split_ids("train") for c in study.captions(s)]
    return Tokenizers(brain.eval(), image.eval(), TextTokenizer.fit(captions, TextTokenizerConfig(num_codes=270)))


@pytest.fixture(scope="module")
def codes(study, tokenizers, tmp_path_factory):
    return encode_split(study, tokenizers, "train", ["wavelet"], tmp_path_factory.mktemp("codes"))


def draw(codes, task, size=64, seed=0, **inputs):
    generator = torch.Generator().manual_seed(seed)
    return codes.batch(task, size, generator, OmniConfig(**inputs))


def stimuli_of(codes, block, subject):
    """Which stimuli the patches of a brain block belong to."""
    brain = codes.brains[subject]
    patches = codes.tokenizer.patches(brain.values[:], subject)
    found = (block.vectors[:, None] == patches).flatten(2).all(dim=-1)
    return brain.stimulus[found.float().argmax(dim=1)]


# --- leakage


def test_training_rows_hold_no_test_stimulus(study, codes):
    train, test = set(study.split_ids("train")), set(study.split_ids("test"))
    assert set(codes.ids) == train
    assert not train & test
    for subject in study.subjects:
        seen = {codes.ids[i] for i in codes.brains[subject].stimulus.tolist()}
        assert seen == set(study.averages(subject, "train").stimulus_ids)
        test_rows = torch.from_numpy(study.responses(subject, study.trials(subject).rows("test")))
        assert not (codes.brains[subject].values[:][:, None] == test_rows).all(dim=-1).any()


def test_another_split_has_other_rows(study, tokenizers, tmp_path):
    test = encode_split(study, tokenizers, "test", [], tmp_path)
    assert test.ids == study.split_ids("test")
    assert test.features == {}


# --- rows


def test_rows_are_single_trials_then_averages(study, tmp_path):
    row_of = {stimulus: row for row, stimulus in enumerate(study.split_ids("train"))}
    values, stimulus, is_average = training_rows(study, "s2", "train", row_of, tmp_path)
    assert (len(values), int(is_average.sum())) == (48 + 8 + 8, 8)
    assert not is_average[:56].any()
    trials = study.trials("s2")
    ids = np.array(trials.stimulus_id)
    for row in torch.nonzero(is_average)[:, 0].tolist():
        name = study.split_ids("train")[stimulus[row]]
        repeats = study.responses("s2", np.flatnonzero(ids == name))
        assert len(repeats) == 2
        np.testing.assert_allclose(values[row], repeats.mean(axis=0), rtol=1e-5, atol=1e-6)
    for row, trial in enumerate(trials.rows("train")[:3]):
        assert study.split_ids("train")[stimulus[row]] == trials.stimulus_id[trial]
        np.testing.assert_array_equal(values[row], study.responses("s2", np.array([trial]))[0])


def test_codes_are_the_tokenizers(study, tokenizers, codes):
    for subject, brain in codes.brains.items():
        assert torch.equal(brain.codes[:].long(), tokenizers.brain.encode(brain.values[:], subject))
    pictures = torch.from_numpy(study.images(codes.ids))
    pixels = pictures.permute(0, 3, 1, 2)
    assert torch.equal(codes.pixels[:], pictures)
    assert torch.equal(codes.picture_codes[:].long(), tokenizers.image.encode(pixels / 255))
    captions = [study.captions(name)[0] for name in codes.ids]
    assert torch.equal(codes.caption_codes.long(), tokenizers.text.encode(captions))
    torch.testing.assert_close(codes.features["wavelet"][:], wavelet(pixels / 255))


# --- batches


def test_rows_of_a_batch_belong_together(study, tokenizers, codes):
    batch = draw(codes, Task(("brain:s1", "image"), "text"))
    stimuli = stimuli_of(codes, batch.conditions[0], "s1")
    assert len(set(stimuli.tolist())) > 10
    torch.testing.assert_close(batch.conditions[1].vectors, codes.features["wavelet"][stimuli])
    texts = tokenizers.text.decode(batch.target.codes)
    assert texts == [study.captions(codes.ids[i])[0] for i in stimuli.tolist()]
    assert batch.continuous is None


def test_a_text_that_is_a_target_is_as_long_as_the_longest_of_its_batch(tokenizers, codes):
    """Of the whole batch, whatever the part: as its ends count, those that fill it up are left out."""
    longer = replace(codes, caption_codes=torch.nn.functional.pad(codes.caption_codes, (0, 5)))
    task, lengths = Task(("brain:s1",), "text"), set()
    for seed in range(20):
        whole = draw(codes, task, size=3, seed=seed).target.codes
        assert torch.equal(draw(longer, task, size=3, seed=seed).target.codes, whole)
        assert (whole[:, -1] == END).all() and (whole == END).int().cumsum(dim=1).amin() == 0
        assert int((whole != END).sum(dim=1).max()) + 1 == whole.shape[1]
        generator = torch.Generator().manual_seed(seed)
        part = longer.batch(task, 3, generator, OmniConfig(), part=slice(1, 2)).target.codes
        assert torch.equal(part, whole[1:2])
        lengths.add(whole.shape[1])
    assert max(lengths) <= tokenizers.text.max_length and len(lengths) > 1
    ended = replace(codes, text_end=int(codes.caption_codes[0, 0]))  # Janus ends with another code than 0
    first = draw(ended.among(torch.arange(64) == 0), Task((), "text"), size=2).target.codes
    assert first.shape == (2, 1)


def test_a_brain_target_brings_what_was_measured(tokenizers, codes):
    batch = draw(codes, Task(("text",), "brain:s2"))
    assert torch.equal(batch.target.codes, tokenizers.brain.encode(batch.continuous, "s2"))
    assert batch.continuous.shape == (64, 28)


def test_a_picture_target_brings_its_pixels(tokenizers, codes):
    batch = draw(codes, Task(("brain:s1",), "image"))
    assert torch.equal(batch.target.codes, tokenizers.image.encode(batch.continuous))
    assert batch.target.features is None


def test_conditions_enter_as_the_model_wants_them(tokenizers, codes):
    brain, image = draw(codes, Task(("brain:s1", "image"), "text"), image_input="codes", brain_input="codes").conditions
    assert brain.vectors is None and image.vectors is None
    assert brain.codes.shape == (64, 5)
    assert image.codes.shape == (64, 4)
    brain, _ = draw(codes, Task(("brain:s1", "image"), "text"), brain_input="latents").conditions
    assert brain.vectors.shape == (64, 5, 4)
    brain, image = draw(codes, Task(("brain:s1", "image"), "text")).conditions
    assert brain.vectors.shape == (64, 5, tokenizers.brain.config.patch_size)
    assert (image.vectors.shape, image.features) == ((64, *codes.features["wavelet"].shape[1:]), "wavelet")
    (text,) = draw(codes, Task(("text",), "brain:s1"), text_input="wavelet").conditions  # any features will do
    assert (text.modality, text.vectors.shape, text.features) == ("text", image.vectors.shape, "wavelet")


def test_every_stimulus_of_a_subject_is_as_likely_and_repeated_ones_come_as_averages(codes):
    """s1 saw 48 stimuli, eight of them twice."""
    brain = codes.brains["s1"]
    batch = draw(codes, Task(("image",), "brain:s1"), size=6000)
    rows = (batch.continuous[:, None] == brain.values[:]).all(dim=-1).float().argmax(dim=1)
    counts = torch.bincount(brain.stimulus[rows], minlength=64)
    assert (counts > 0).sum() == 48
    assert counts[counts > 0].min() > 80 and counts.max() < 175, "125 each"
    repeated = torch.isin(brain.stimulus[rows], brain.stimulus[brain.is_average])
    share = brain.is_average[rows][repeated].float().mean()
    assert float(share) == pytest.approx(module.AVERAGES, abs=0.04)
    single = torch.bincount(rows[repeated & ~brain.is_average[rows]], minlength=len(brain.values))
    assert (single > 0).sum() == 16, "either trial of a repeated stimulus is drawn"


def test_without_brains_every_stimulus_is_drawn(codes):
    batch = draw(codes, Task(("text",), "image"), size=1000)
    assert len(torch.unique(batch.continuous, dim=0)) == 64


def test_a_batch_is_decided_by_its_generator(codes):
    task = Task(("image",), "brain:s1")
    one, same, other = (draw(codes, task, seed=seed).target.codes for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_two_brains_are_paired_by_stimulus(codes):
    batch = draw(codes, Task(("brain:s1", "brain:s2"), "text"), size=200)
    stimuli = stimuli_of(codes, batch.conditions[0], "s1")
    assert torch.equal(stimuli, stimuli_of(codes, batch.conditions[1], "s2"))
    shared = set(codes.brains["s1"].stimulus.tolist()) & set(codes.brains["s2"].stimulus.tolist())
    assert set(stimuli.tolist()) == shared, "all that both saw, and nothing else"
    from_one = draw(codes, Task(("brain:s1",), "brain:s2"), size=200)
    assert set(stimuli_of(codes, from_one.conditions[0], "s1").tolist()) == shared, "without anything to expect"
    apart = codes.brains["s1"]._replace(stimulus=torch.full_like(codes.brains["s1"].stimulus, 63))
    seen = codes.brains["s2"].stimulus
    none = replace(codes, brains={"s1": apart, "s2": codes.brains["s2"]._replace(stimulus=seen.clamp_max(62))})
    with pytest.raises(UserError, match=r"expected training stimuli that all of its brains saw, got none"):
        draw(none, Task(("brain:s1", "brain:s2"), "text"))


# --- drafts


@pytest.fixture(scope="module")
def drafted(study, codes):
    regions = {subject: torch.from_numpy(np.stack([*study.space(subject).rois.values()])) for subject in ("s1",)}
    return replace(codes, solved=solve_drafts(study, codes.descriptions()), regions=regions)


def test_a_part_of_a_brain_is_filled_in_out_of_fold(tokenizers, drafted):
    batch = draw(drafted, Task(("part:s1",), "brain:s1"))
    (part,) = batch.conditions
    filled = tokenizers.brain.sites_of("s1").join(part.vectors)
    hidden = batch.judged
    assert torch.equal(filled[~hidden], batch.continuous[~hidden])
    shares = tokenizers.brain.patches(hidden.float(), "s1").mean(dim=-1)
    torch.testing.assert_close(part.unmeasured, shares)
    assert len(hidden.unique(dim=0)) == 1 and 0 < int(hidden[0].sum()) < hidden.shape[1]
    known = batch.continuous.masked_fill(hidden, float("nan"))
    brain = drafted.brains["s1"]
    stimuli = torch.stack([brain.stimulus[(brain.values[:] == row).all(dim=1)][0] for row in batch.continuous])
    for row in range(8):
        fold = drafted.solved.folds[int(drafted.solved.fold[stimuli[row]])]
        torch.testing.assert_close(filled[row : row + 1], fold.drafts.complete(known[row : row + 1], "s1"))
    leant = tokenizers.brain.decode_probabilities(batch.target.lean.softmax(dim=-1), "s1")
    torch.testing.assert_close(batch.beyond, filled - leant)


def test_a_brain_comes_with_the_draft_of_another(tokenizers, drafted):
    batch = draw(drafted, Task(("brain:s1",), "brain:s2"))
    brain, draft = batch.conditions
    assert (brain.subject, draft.subject, brain.unmeasured) == ("s1", "s2", None)
    assert bool((draft.unmeasured[:, :-1] == 1).all())
    assert batch.judged is None
    assert batch.beyond.shape == batch.continuous.shape == (64, 28)


def left_over_by(study, codes, subject):
    """What every mean response to a training stimulus has beside the expected one."""
    averages = study.averages(subject, "train")
    stimuli = torch.tensor([codes.ids.index(stimulus) for stimulus in averages.stimulus_ids])
    return torch.from_numpy(averages.responses) - codes.solved.expected(subject, stimuli)


@pytest.mark.parametrize("subject", ["s1", "s2"])
def test_what_is_left_over_is_that_of_a_mean_response(study, drafted, subject):
    """Of which some are of two trials and some of one; random numbers name each equally often."""
    residuals = left_over_by(study, drafted, subject)
    every = torch.arange(len(residuals)) / len(residuals) + 1e-4
    torch.testing.assert_close(drafted._left_over(subject, every), residuals, atol=1e-5, rtol=1e-5)
    ends = drafted._left_over(subject, torch.tensor([0.0, 0.99999999]))
    torch.testing.assert_close(ends, residuals[[0, -1]], atol=1e-5, rtol=1e-5)


def test_what_was_never_measured_is_expected_and_has_noise(study, drafted):
    stimuli = drafted._draw_stimuli(Task(("brain:s1",), "brain:s2"), 200, torch.Generator().manual_seed(0))
    unseen = ~torch.isin(stimuli, drafted.brains["s2"].stimulus)
    assert 0 < int(unseen.sum()) < 200
    values, codes, expected = drafted._draw("s2", stimuli, torch.Generator().manual_seed(0), slice(None))
    assert torch.equal(values[~unseen], expected[~unseen])
    noise = values[unseen] - expected[unseen]
    left_over = left_over_by(study, drafted, "s2")
    distance = (noise[:, None] - left_over).abs().amax(dim=2).amin(dim=1)
    assert float(distance.max()) < 1e-4, "each is what a measured response leaves over"
    assert torch.equal(codes[unseen], drafted.tokenizer.encode(values[unseen], "s2"))


@pytest.mark.parametrize("regions", [True, False])
def test_parts_are_of_every_size(regions):
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    masks = torch.arange(90)[None] // 15 == torch.arange(6)[:, None]
    masks = torch.nn.functional.pad(masks, (0, 10)) if regions else None
    generator = torch.Generator().manual_seed(1)
    known = torch.stack([module.draw_part(order, masks, generator) for _ in range(300)])
    count = known.sum(dim=1)
    assert count.min() >= 1 and count.max() < 100
    assert count.float().std() > 15
    whole = torch.stack([known[:, mask].float().mean(dim=1) for mask in masks]) if regions else None
    if whole is not None:
        of_regions = ((whole == 0) | (whole == 1)).all(dim=0).float().mean()
        assert float(of_regions) == pytest.approx(module.REGIONS, abs=0.15)


def test_codes_are_stored_in_the_smallest_integers_that_hold_them(study, codes, tmp_path):
    """A picture of 576 codes of 16,384 is 1,152 bytes."""
    kinds = {256: torch.uint8, 257: torch.int16, 16_384: torch.int16, 32_768: torch.int16, 32_769: torch.int32}
    for num_codes, dtype in kinds.items():
        assert dtype_of_codes(num_codes) == dtype
        assert int(torch.tensor(num_codes - 1).to(dtype)) == num_codes - 1
    assert 576 * dtype_of_codes(16_384).itemsize == 1152
    assert codes.picture_codes.dtype == codes.brains["s1"].codes.dtype == torch.uint8
    config = BrainTokenizerConfig(
        patch_size=8, patch=PatchConfig(8, 0, 1), quantizer=QuantizerConfig(num_codes=40_000, dim=2)
    )
    large = BrainTokenizer(config, {"s1": torch.arange(40)})
    values = codes.brains["s1"].values
    large.solve("s1", values[:], values[:0])
    encoded = module.encode_brain(study, large, "s1", "train", values, tmp_path)
    assert int(encoded[:].max()) > 32_767
    assert torch.equal(encoded[:].long(), large.encode(values[:], "s1"))


# --- a stimulus that lacks something


@pytest.fixture
def incomplete(study, tmp_path):
    """A function that writes the study with pictures and captions of only some stimuli."""

    def write(pictured, captioned):
        ids = study.stimulus_ids
        return write_dataset(
            tmp_path / "incomplete", name="incomplete", modality="fMRI", zscore="all",
            subjects=[Subject(study.space(s), study.responses(s), study.trials(s)) for s in study.subjects],
            stimuli=Stimuli(
                ids, study.images(pictured), np.array([ids.index(s) for s in pictured]),
                {s: study.captions(s) for s in captioned},
            ),
        )  # fmt: skip

    return write


def test_says_which_training_stimulus_has_no_caption(study, tokenizers, incomplete, tmp_path):
    ids = study.stimulus_ids
    dataset = incomplete(ids, [s for s in ids if s not in ("s007", "s009", "s070")])
    with pytest.raises(UserError, match=r"a caption for every stimulus, got none for \d+ of \d+, 's007' among them"):
        encode_split(dataset, tokenizers, "train", [], tmp_path)


def test_says_which_training_stimulus_has_no_picture(study, tokenizers, incomplete, tmp_path):
    ids = study.stimulus_ids
    dataset = incomplete([s for s in ids if s not in ("s007", "s009", "s070")], ids)
    with pytest.raises(UserError, match="expected a picture of stimulus 's007', got none"):
        encode_split(dataset, tokenizers, "train", [], tmp_path)


# --- several pictures, several captions


def test_pictures_and_captions_are_drawn_and_features_averaged(study, tokenizers, tmp_path):
    ids = ["a", "b", "c"]
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    trials = study.trials("s1")._replace(
        stimulus_id=["a", "b", "a", "b", "c"], split=["train"] * 4 + ["test"],
        session=np.zeros(5, int), run=np.zeros(5, int), repeat=np.zeros(5, int),
    )  # fmt: skip
    dataset = write_dataset(
        tmp_path / "blocks", name="blocks", modality="fMRI",
        subjects=[Subject(study.space("s1"), np.random.default_rng(1).normal(size=(5, 40)).astype(np.float32), trials),
                  Subject(study.space("s2"), np.random.default_rng(2).normal(size=(5, 28)).astype(np.float32), trials)],
        stimuli=Stimuli(ids, pixels, np.array([0, 0, 0, 1, 1, 2]), {"a": ["red", "left"], "b": ["blue"], "c": ["red"]}),
        zscore="all",
    )  # fmt: skip
    codes = encode_split(dataset, tokenizers, "train", ["wavelet"], tmp_path / "codes")
    assert [len(rows) for rows in codes.pictures_of] == [3, 2]
    assert [len(rows) for rows in codes.captions_of] == [2, 1]
    batch = draw(codes, Task(("text",), "image"), size=200)
    seen = {tuple(text[: (text.index(END))]) for text in batch.conditions[0].codes.tolist()}
    assert len(seen) == 3
    assert len(torch.unique(batch.continuous, dim=0)) == 5
    means = features_of(dataset, "wavelet", ["b", "a"])
    every = wavelet(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(means, torch.stack([every[3:5].mean(dim=0), every[:3].mean(dim=0)]))


def test_pick_takes_a_member_of_each_group():
    groups = rows_of_groups([3, 1, 2])
    assert [g.tolist() for g in groups] == [[0, 1, 2], [3], [4, 5]]
    picked = pick(groups, torch.tensor([0, 1, 2] * 100), torch.Generator().manual_seed(0)).reshape(100, 3)
    assert [set(column.tolist()) for column in picked.T] == [{0, 1, 2}, {3}, {4, 5}]


# --- what is stored


def test_what_was_encoded_before_is_read_back(study, tokenizers, codes, tmp_path, monkeypatch):
    first = encode_split(study, tokenizers, "train", [], tmp_path)
    for tokenizer in (BrainTokenizer, ImageTokenizer):
        monkeypatch.setattr(tokenizer, "encode", lambda *_: pytest.fail("encoded again"))
    again = encode_split(study, tokenizers, "train", [], tmp_path)
    assert torch.equal(first.brains["s1"].codes[:], again.brains["s1"].codes[:])
    assert torch.equal(first.picture_codes[:], again.picture_codes[:])


def test_a_split_is_encoded_where_it_is_asked_for_by_copies(study, tokenizers, codes, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "copy_on", lambda one, device: asked.append((one, device)) or copy.deepcopy(one))
    again = encode_split(study, tokenizers, "train", ["wavelet"], tmp_path, torch.device("cpu", 0))
    assert asked == [(one, torch.device("cpu", 0)) for one in (tokenizers.image, tokenizers.brain, tokenizers.brain)]
    assert again.tokenizer is tokenizers.brain
    assert torch.equal(again.picture_codes[:], codes.picture_codes[:])
    assert all(torch.equal(again.brains[s].codes[:], codes.brains[s].codes[:]) for s in study.subjects)
    monkeypatch.undo()
    copied = module.copy_on(tokenizers.image, "meta")
    assert {p.device.type for p in copied.parameters()} == {"meta"}
    assert {p.device.type for p in tokenizers.image.parameters()} == {"cpu"}
    assert module.copy_on(tokenizers.image, "cpu") is tokenizers.image


def test_other_tokenizers_find_nothing_of_these(study, tokenizers, codes, tmp_path):
    encode_split(study, tokenizers, "train", [], tmp_path)
    torch.manual_seed(1)
    orders = {s: torch.from_numpy(study.space(s).order.copy()) for s in study.subjects}
    other = Tokenizers(BrainTokenizer(tokenizers.brain.config, orders), ImageTokenizer(tokenizers.image.config))
    other.brain.load_state_dict(tokenizers.brain.state_dict() | {"quantizer.codebook": torch.randn(8, 4)})
    again = encode_split(study, other, "train", [], tmp_path)
    assert torch.equal(again.brains["s1"].codes[:].long(), other.brain.encode(again.brains["s1"].values[:], "s1"))
    assert torch.equal(again.picture_codes[:].long(), other.image.encode(unit_pixels(again.pixels[:])))
    assert again.caption_codes is None
    assert not torch.equal(again.brains["s1"].codes[:], codes.brains["s1"].codes[:])


@torch.no_grad()
def test_trust_in_the_model_is_what_lowers_the_error_most(tokenizers, drafted):
    """Of training rows whose drafts are out of fold: less and more trust are both worse."""
    torch.manual_seed(0)
    sizes = {name: tuple(values.shape[1:]) for name, values in drafted.features.items()}
    decoder = DecoderConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
    )
    model = OmniModel(OmniConfig(decoder), interface_of(tokenizers, sizes))
    torch.nn.init.normal_(model.heads["brain"].weight, std=0.5)
    model.load_codebooks(tokenizers.image.quantizer.codebook, tokenizers.brain.quantizer.codebook)
    drafts = copy.deepcopy(drafted.solved.whole.drafts)
    weigh_drafts(model, tokenizers, drafted, drafts, 0, batches=3, size=40)
    few = copy.deepcopy(drafted.solved.whole.drafts)
    weigh_drafts(model, tokenizers, drafted, few, 0, batches=3, size=40, at_once=7)
    for kind in ("part", "brain"):
        torch.testing.assert_close(getattr(few.trust("s2"), kind), getattr(drafts.trust("s2"), kind))
    for kind, task in (("part", Task(("part:s2",), "brain:s2")), ("brain", Task(("brain:s1",), "brain:s2"))):
        error = dict.fromkeys((0.0, 0.5, 1.0, "solved"), 0.0)
        solved = float(getattr(drafts.trust("s2"), kind))
        assert 0 <= solved <= 1
        for number in range(3):
            batch = drafted.batch(task, 40, generator_of(0, number), model.config)
            hidden = torch.ones_like(batch.target.codes, dtype=torch.bool)
            p = model(batch.conditions, batch.target, hidden).softmax(dim=-1)
            own = tokenizers.brain.decode_probabilities(p, "s2") + batch.beyond
            judged = torch.ones_like(own, dtype=torch.bool) if batch.judged is None else batch.judged
            for share in error:
                trust = solved if share == "solved" else share
                made = trust * own + (1 - trust) * batch.draft
                error[share] += float((made - batch.continuous)[judged].square().sum())
        assert error["solved"] <= min(error[0.0], error[0.5], error[1.0]) + 1e-6


def test_what_few_stimuli_say_is_believed_less():
    """The weight of least squares less its standard error over stimuli, however often each was drawn."""
    generator = torch.Generator().manual_seed(0)
    added = torch.randn(400, 50, generator=generator, dtype=torch.float64)
    missing = 0.4 * added + 2 * torch.randn(400, 50, generator=generator, dtype=torch.float64)
    products = torch.stack([(added * missing).sum(dim=1), added.square().sum(dim=1)])
    weight, few = float(products[0].sum() / products[1].sum()), products[:, :16]
    found = torch.stack([p[0].sum() / p[1].sum() for p in products.unflatten(1, (25, 16)).unbind(dim=1)])
    own = float(few[0].sum() / few[1].sum())
    assert own - omni.believed(few, 16) == pytest.approx(float(found.std()), rel=0.35)
    assert weight - omni.believed(products, 400) == pytest.approx(float(found.std()) / 5, rel=0.35)
    assert omni.believed(few.repeat(1, 30), 16) == pytest.approx(omni.believed(few, 16)), "drawn again is not more"
    less = products * torch.tensor([[-1.0], [1.0]])
    assert omni.believed(less, 400) == 0.0 and omni.believed(torch.zeros(2, 5), 5) == 0.0
    assert omni.believed(torch.stack([products[1] * 3, products[1]]), 400) == 1.0


def test_a_draft_leans_no_more_to_codes_than_measured_responses_let_it(drafted):
    """Some of what it leans to is expected, not measured: codes hold noise that an expected response has not."""
    drafts = copy.deepcopy(drafted.solved.whole.drafts)
    solved = replace(drafted.solved, whole=drafted.solved.whole._replace(drafts=drafts))
    fresh, trust = replace(drafted, solved=solved), drafts.trust("s2")
    omni.measure_drafts(fresh, drafts, OmniConfig(), 0)
    for kind, name in (("brain", "brain:s1"), ("part", "part:s2")):

        def unlikely(near, kind=kind, name=name):
            trust.near(kind).fill_(near)
            batches = [draw(fresh, Task((name,), "brain:s2"), 64, seed) for seed in range(100, 112)]
            return float(torch.stack([nats(b.target.lean, b.target.codes).mean() for b in batches]).mean())

        found = float(trust.near(kind))
        least = unlikely(found)
        assert least < math.log(QUANTIZER.num_codes), "no better than nothing"
        assert least < 1.02 * min(unlikely(found / 4), unlikely(found * 4))


def test_held_out_stimuli_are_shown_whole(codes):
    """Training is blurred, and withholds conditions; what it is measured on is not."""
    task, model = Task(("image",), "brain:s1"), OmniConfig()
    config = OmniTrainingConfig(blurred=0.5, dropped=0.5)
    trained = omni.draw(codes, task, generator_of(0, 0), config, model, 8)
    assert trained.batch.conditions[0].kept is not None and trained.dropped.any()
    ((_, (measured,)),) = omni.Validation(codes, {task: 1.0}, config, model).drawn
    assert measured.batch.conditions[0].kept is None and not measured.dropped.any()
    said, config = Task(("text",), "brain:s1"), OmniTrainingConfig(excerpts=1.0)

    def ends_late(drawn):
        """How many codes are shown of each, and where the last of them lies."""
        seen = drawn.batch.conditions[0].seen
        return seen.sum(dim=1), (seen * torch.arange(1, seen.shape[1] + 1)).amax(dim=1)

    shown, last = ends_late(omni.draw(codes, said, generator_of(0, 0), config, model, 8))
    assert (shown < last).any()
    ((_, (measured,)),) = omni.Validation(codes, {said: 1.0}, config, model).drawn
    shown, last = ends_late(measured)
    assert (shown == last).all()


def test_nothing_is_added_to_what_is_told_without_held_out_stimuli(tokenizers, study, codes):
    """Of pictures and words; with some, as much as they are certain of."""
    config = OmniConfig(DecoderConfig(16, 16, 1, 2, 2))
    described, pieces = codes.described(config), codes.pieces()
    solved = solve_drafts(study, codes.descriptions(), described=described, pieces=pieces)
    for kind in ("image", "text"):
        solved.whole.drafts.reading(kind, "s2").offset.add_(1)  # the model is not trained, the draft not good either
    told = replace(codes, solved=solved)
    sizes = {name: tuple(values.shape[1:]) for name, values in codes.features.items()}
    torch.manual_seed(0)
    model = OmniModel(config, interface_of(tokenizers, sizes))
    model.load_codebooks(tokenizers.image.quantizer.codebook, tokenizers.brain.quantizer.codebook)
    torch.nn.init.normal_(model.heads["brain"].weight, std=0.1)
    found = {}
    for held_out in (None, told):
        drafts = copy.deepcopy(solved.whole.drafts)
        weigh_drafts(model, tokenizers, told, drafts, 0, batches=2, size=30, validation=held_out)
        found[held_out is None] = [float(drafts.trust("s2").of(kind)) for kind in ("image", "text", "image+text")]
    assert found[True] == [0.0, 0.0, 0.0]
    assert any(0 < share < 1 for share in found[False])


def test_features_that_are_wide_are_read_by_few_of_their_channels(study, codes, monkeypatch):
    config = OmniConfig(DecoderConfig(16, 16, 1, 2, 2))
    whole = codes.described(config)["image"]
    places, channels = codes.features["wavelet"][0].shape
    monkeypatch.setattr(module, "MOST_FLAT", places * channels - 1)
    monkeypatch.setattr(module, "MOST_MIXED", 2 * places)
    few = codes.described(config)["image"]
    assert few.mix.shape == (channels, 2) and few.side == whole.side
    assert few.table.shape == (len(codes.ids), 2 * places)
    torch.testing.assert_close(few.mix.T @ few.mix, torch.eye(2), atol=1e-5, rtol=0)
    spread = whole.table.unflatten(1, (places, channels)).flatten(0, 1)
    kept = few.table.unflatten(1, (places, 2)).flatten(0, 1)
    most = torch.linalg.eigvalsh(torch.cov(spread.T))[-2:].sum()
    torch.testing.assert_close(torch.cov(kept.T).diagonal().sum(), most)
    drafts = solve_drafts(study, codes.descriptions(), described={"image": few}).whole.drafts
    again = Drafts(**drafts.facts())
    again.load_state_dict(drafts.state_dict())
    block = Block("image", vectors=codes.features["wavelet"][:5].float(), features="wavelet")
    torch.testing.assert_close(again.described(block), few.table[:5])


@torch.no_grad()
def test_trust_in_the_picture_that_is_expected_is_what_lowers_the_error_most(tokenizers, study, codes):
    """Of held-out stimuli."""
    config = OmniConfig(DecoderConfig(16, 16, 1, 2, 2))
    solved = solve_drafts(study, codes.descriptions(), pictures=codes.small_pictures())
    channels = channels_of(solved.whole.drafts.guessed)
    sizes = {GUESS: (solved.whole.drafts.guessed // channels, channels)}
    torch.manual_seed(0)
    model = OmniModel(config, interface_of(tokenizers, sizes))
    solved.whole.drafts.look_mean.sub_(0.4)  # the model is not trained, the draft not good either
    model.load_codebooks(tokenizers.image.quantizer.codebook, tokenizers.brain.quantizer.codebook)
    torch.nn.init.normal_(model.heads["image"].weight, std=0.5)
    task = Task(("brain:s2",), "image")
    own, drafts = replace(codes, solved=solved), solved.whole.drafts
    held_out = replace(codes, solved=solved.for_others(len(codes.ids)))
    weigh_drafts(model, tokenizers, own, drafts, 0, batches=2, size=30)
    assert float(drafts.trust("s2").of("picture")) == 0
    weigh_drafts(model, tokenizers, own, drafts, 0, batches=2, size=30, validation=held_out)
    solution = float(drafts.trust("s2").of("picture"))
    assert 0 < solution < 1
    shares = (0.0, *torch.linspace(max(0, solution - 0.1), solution + 0.2, 31).tolist(), 1.0)
    error = dict.fromkeys(shares, 0.0)
    for number in range(2):
        batch = held_out.batch(task, 30, generator_of(0, number), config, weighing=True)
        hidden = torch.ones_like(batch.target.codes, dtype=torch.bool)
        p = model(batch.conditions, batch.target, hidden).softmax(dim=-1)
        expected = tokenizers.image.decode_probabilities(p)
        for share in error:
            error[share] += float((weighed(expected, batch.draft, share) - batch.continuous).square().sum())
    best = min(error, key=error.__getitem__)
    assert solution - 0.01 <= best < 1, "rather less than too much"
    assert error[min(shares, key=lambda share: abs(share - solution))] < min(error[0.0], error[1.0])


def test_residuals_are_what_trials_have_beside_the_codes_of_their_stimulus_s_average(study, tokenizers, codes):
    """Of a stimulus that was shown once there is no average: beside its own codes."""
    residuals, values = codes.residuals("s1"), []
    trials = study.trials("s1")
    repeated = Counter(trials.stimulus_id[row] for row in trials.rows("train"))
    averages = study.averages("s1", "train")
    mean = dict(zip(averages.stimulus_ids, torch.from_numpy(averages.responses), strict=True))
    for row in trials.rows("train"):
        trial = torch.from_numpy(study.responses("s1", np.array([row])))[0]
        told = mean[trials.stimulus_id[row]] if repeated[trials.stimulus_id[row]] > 1 else trial
        values.append(trial - tokenizers.brain.decode(tokenizers.brain.encode(told[None], "s1"), "s1")[0])
    assert len(residuals) == len(values) and max(repeated.values()) > 1
    wanted = torch.stack(values)
    torch.testing.assert_close(residuals.sort(dim=0).values, wanted.detach().sort(dim=0).values, atol=1e-4, rtol=1e-4)
    assert len(codes.residuals("s1", most=10)) <= 10


# --- parts of a batch, some of the stimuli, means of repeats


TASKS = [
    Task(("image", "text"), "brain:s1"),
    Task(("brain:s1",), "text"),
    Task(("brain:s1",), "image"),
    Task(("part:s1",), "brain:s1"),
    Task(("brain:s1",), "brain:s2"),
]


def shortened(x, like):
    """What `like` is longer by in its second dimension holds nothing."""
    return torch.nn.functional.pad(x, (0, like.shape[1] - x.shape[1])) if x.dim() == 2 else x


def assert_is_part(whole, parts, where):
    """The rows of tensors, or of the tensors of blocks, that were made apart are those of the whole."""
    if isinstance(whole, torch.Tensor):
        for rows, part in zip(where, parts, strict=True):
            wanted = whole[rows]
            torch.testing.assert_close(shortened(part, wanted), wanted * shortened(torch.ones_like(part), wanted))
    else:
        assert all(part == whole for part in parts)


@pytest.mark.parametrize("inputs", [{}, {"image_input": "codes", "brain_input": "codes"}])
@pytest.mark.parametrize("shown", ["averages", "repeats"])
@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_parts_of_a_batch_are_its_rows(drafted, task, shown, inputs):
    """Whichever rows are made, the same are drawn, and as many random numbers."""
    codes, config = replace(drafted, shown=shown), OmniConfig(**inputs)
    where = [slice(0, None, 3), slice(1, None, 3), slice(2, None, 3)]
    generators = [torch.Generator().manual_seed(4) for _ in range(4)]
    whole = codes.batch(task, 32, generators[0], config)
    parts = [codes.batch(task, 32, g, config, part=rows) for g, rows in zip(generators[1:], where, strict=True)]
    assert len({tuple(g.get_state().tolist()) for g in generators}) == 1
    assert [part.target.batch for part in parts] == [11, 11, 10]
    for name, value in whole._asdict().items():
        if name not in ("conditions", "target"):
            assert_is_part(value, [getattr(part, name) for part in parts], where)
    blocks = [(whole.target, [part.target for part in parts])]
    blocks += [(block, [part.conditions[i] for part in parts]) for i, block in enumerate(whole.conditions)]
    for block, mine in blocks:
        for name, value in vars(block).items():
            assert_is_part(value, [vars(part)[name] for part in mine], where)
    assert whole.continuous is not None or task.target == "text"


def test_some_stimuli_alone_are_drawn(codes):
    allowed = torch.arange(64) % 3 == 0
    some = codes.among(allowed)
    stimuli = stimuli_of(codes, draw(some, Task(("brain:s1",), "text"), size=300).conditions[0], "s1")
    assert set(stimuli.tolist()) == set(codes.brains["s1"].stimulus[:48].tolist()) & set(range(0, 64, 3))
    assert len(torch.unique(draw(some, Task(("text",), "image"), size=300).continuous, dim=0)) == 22
    fewer = some.among(torch.arange(64) == 3)
    assert fewer.stimuli_of(Task(("text",), "image")).tolist() == [3]
    with pytest.raises(UserError, match="expected training stimuli that all of its brains saw, got none"):
        draw(codes.among(torch.zeros(64, dtype=torch.bool)), Task(("image",), "brain:s1"))


def test_means_of_random_repeats(tokenizers):
    """Trial t of stimulus 0 is 2^t in every site: a mean says which were in it, and how many."""
    values = torch.cat([2.0 ** torch.arange(4), torch.tensor([100.0])])[:, None].expand(5, 40).contiguous()
    brain = BrainRows(torch.tensor([0, 0, 0, 0, 2]), torch.zeros(5, dtype=torch.bool), values, torch.zeros(5, 5).int())
    codes = module.Codes(
        ("a", "b", "c"), None, None, [], None, [], {}, {"s1": brain}, tokenizers.brain, shown="repeats"
    )
    batch = draw(codes, Task((), "brain:s1"), size=3000)
    known = {}
    for number in range(1, 16):
        members = [2.0**t for t in range(4) if number >> t & 1]
        known[round(sum(members) / len(members), 4)] = (number, len(members))
    assert len(known) == 15
    assert torch.equal(batch.continuous, batch.continuous[:, :1].expand_as(batch.continuous))
    means = Counter(round(v, 4) for v in batch.continuous[:, 0].tolist())
    assert means.pop(100.0) == pytest.approx(1500, abs=150)
    assert means.keys() == known.keys(), "every subset, and nothing else"
    sizes = Counter()
    for mean, count in means.items():
        sizes[known[mean][1]] += count
    assert all(count == pytest.approx(375, abs=90) for count in sizes.values()) and len(sizes) == 4
    assert torch.equal(batch.target.codes, tokenizers.brain.encode(batch.continuous, "s1"))
    assert torch.equal(
        draw(codes, Task((), "brain:s1"), size=50).continuous, draw(codes, Task((), "brain:s1"), size=50).continuous
    )


def test_what_was_never_measured_is_expected_beside_means_of_repeats(drafted):
    codes = replace(drafted, shown="repeats")
    stimuli = codes._draw_stimuli(Task(("brain:s1",), "brain:s2"), 200, torch.Generator().manual_seed(0))
    unseen = ~torch.isin(stimuli, codes.brains["s2"].stimulus)
    values, found, expected = codes._draw("s2", stimuli, torch.Generator().manual_seed(0), slice(None))
    assert torch.equal(values[~unseen], expected[~unseen])
    torch.testing.assert_close(expected[unseen], codes.solved.expected("s2", stimuli[unseen]))
    assert torch.equal(found, codes.tokenizer.encode(values, "s2"))


# --- responses in half precision


def test_responses_in_float16_are_read_as_such_and_given_out_as_float32(study, tokenizers, tmp_path):
    half = write_dataset(
        tmp_path / "half", name="half", modality="fMRI", zscore="none", responses_dtype="float16",
        subjects=[Subject(study.space(s), study.responses(s), study.trials(s)) for s in study.subjects],
        stimuli=Stimuli(study.stimulus_ids, study.images(study.stimulus_ids)),
    )  # fmt: skip
    codes = encode_split(half, Tokenizers(tokenizers.brain, tokenizers.image), "train", [], tmp_path / "codes")
    brain = codes.brains["s1"]
    assert brain.values.dtype == torch.float16
    batch = draw(codes, Task(("image",), "brain:s1"), image_input="codes")
    assert batch.continuous.dtype == torch.float32
    assert torch.equal(batch.target.codes, tokenizers.brain.encode(batch.continuous, "s1"))
    averages = study.averages("s1", "train")
    means = torch.from_numpy(averages.responses[averages.num_repeats > 1])
    torch.testing.assert_close(brain.values[:][brain.is_average].float(), means, atol=4e-3, rtol=2e-3)
