"""The alignment of brain latents to what was seen and said: its loss by hand, and what it does."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Stimuli, Subject
from brainjanus.data.write import write_dataset
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.train.alignment import Alignment, AlignmentConfig, Seen, seen
from brainjanus.train.codes import features_of
from brainjanus.train.optim import OptimConfig
from brainjanus.train.tokenizer import ObjectiveConfig, fit_brain_tokenizer

QUANTIZER = QuantizerConfig(similarity="euclidean", num_codes=16, dim=3, decay=0.9)
BRAIN = BrainTokenizerConfig(patch_size=8, patch=PatchConfig(16, 1, 2), quantizer=QUANTIZER)


def make_brain(dataset):
    torch.manual_seed(0)
    return BrainTokenizer(BRAIN, {s: torch.arange(dataset.space(s).num_sites) for s in dataset.subjects})


# --- the loss


def clip_loss(brain, other, temperature, stimuli):
    """Radford et al. 2021, figure 3, in loops; pairs of one stimulus in two rows are left out."""
    brain, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (brain, other))
    similar = np.exp(brain @ other.T / temperature)
    total = 0.0
    for row, own in enumerate(stimuli):
        against = [i for i, stimulus in enumerate(stimuli) if i == row or stimulus != own]
        total -= np.log(similar[row, row] / similar[row, against].sum()) / 2
        total -= np.log(similar[row, row] / similar[against, row].sum()) / 2
    return total / len(stimuli)


@pytest.mark.parametrize("there", [("image",), ("text",), ("image", "text")])
@pytest.mark.parametrize("stimuli", [[4, 0, 2, 1], [3, 1, 3, 3]])
def test_the_loss_is_that_of_clip(plant, there, stimuli):
    torch.manual_seed(1)
    tokenizer = make_brain(plant(train=6, test=2))
    known = Seen(*(torch.randn(6, size) if name in there else None for name, size in (("image", 5), ("text", 7))))
    alignment = Alignment(AlignmentConfig(weight=1.0, dim=8, temperature=0.3), tokenizer, known)
    latents = torch.randn(4, 4, 3)
    with torch.no_grad():
        brain = alignment.maps["brain:a"](latents.flatten(1)).numpy()
        others = [alignment.maps[name](getattr(known, name)[stimuli]).numpy() for name in there]
        loss = float(alignment.loss(latents, "a", torch.tensor(stimuli)))
    assert loss == pytest.approx(np.mean([clip_loss(brain, other, 0.3, stimuli) for other in others]), rel=1e-5)


def test_gradients_reach_latents_and_maps(plant):
    alignment = Alignment(
        AlignmentConfig(weight=1.0), make_brain(plant(train=6, test=2)), Seen(torch.randn(6, 5), None)
    )
    latents = torch.randn(4, 4, 3, requires_grad=True)
    alignment.loss(latents, "a", torch.arange(4)).backward()
    assert latents.grad.abs().sum(dim=(1, 2)).min() > 0
    assert all(p.grad is not None for p in alignment.parameters())


def test_the_loss_is_where_the_latents_are(plant):
    """What it is made of follows; what was shown stays where it was, and none of it is saved."""
    known = Seen(torch.randn(6, 5), torch.randn(6, 7))
    alignment = Alignment(AlignmentConfig(weight=1.0), make_brain(plant(train=6, test=2)), known).to("meta")
    loss = alignment.loss(torch.randn(4, 4, 3, device="meta"), "a", torch.arange(4))
    assert loss.is_meta and alignment.stimuli.image.device.type == "cpu"
    assert all(name.startswith("maps.") for name in alignment.state_dict())


# --- what was seen and said


def test_pictures_are_standardised_features_and_captions_counts_of_their_pieces(study):
    ids = study.split_ids("train")
    image, text = seen(study, ids, AlignmentConfig(weight=1.0))
    wavelet = features_of(study, "wavelet", ids).flatten(1)
    torch.testing.assert_close(image, (wavelet - wavelet.mean(0)) / wavelet.std(0).clamp_min(1e-6))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(64))
    said = [study.captions(stimulus)[0] for stimulus in ids]
    similar = text @ text.T
    for row in range(8):
        alike = [other == said[row] for other in said]
        assert [value > 0.999 for value in similar[row].tolist()] == alike, "captions alone decide"


def test_several_captions_count_on_average(plant):
    captions = {f"s{i:04}": ["a cup", "a red one"] if i == 0 else ["a cup"] if i == 1 else ["milk"] for i in range(8)}
    dataset = plant(train=6, test=2, captions=captions)
    both, one, other = seen(dataset, ("s0000", "s0001", "s0002"), AlignmentConfig(weight=1.0, image="none")).text
    assert 0.3 < float(both @ one) < 0.99
    assert float(one @ other) == 0, "no piece in common, and their end says nothing"
    other = seen(dataset, ("s0000", "s0001"), AlignmentConfig(weight=1.0, image="facts", text="none"))
    assert other.text is None and other.image.shape == (2, 4)


def test_features_of_the_dataset_stand_for_pictures_and_captions(plant):
    dataset = plant(train=6, test=2)
    ids = dataset.split_ids("train")
    facts = torch.from_numpy(dataset.features("facts", ids)[:, 0])
    expected = (facts - facts.mean(0)) / facts.std(0)
    for names in ({"image": "facts"}, {"image": "none", "text": "facts"}):
        found = seen(dataset, ids, AlignmentConfig(weight=1.0, **names))
        torch.testing.assert_close(found.image if "text" not in names else found.text, expected)
        assert (found.text is None) == ("text" not in names), "and nothing of captions that are not there"


def test_what_is_not_there_is_said(plant, study, tmp_path):
    dataset = plant(train=6, test=2)
    ids = dataset.split_ids("train")
    with pytest.raises(UserError, match=r"expected pictures or captions to align the tokenizer to, got neither .*"
                       r" Train with --objective\.alignment\.weight 0"):  # fmt: skip
        seen(dataset, ids, AlignmentConfig(weight=1.0))
    for wrong in ({"image": "clip"}, {"image": "facts", "text": "t5"}):
        with pytest.raises(UserError, match=r"expected features that it has \(facts, some\), got '(clip|t5)'"):
            seen(dataset, ids, AlignmentConfig(weight=1.0, **wrong))
    bare = write_dataset(
        tmp_path / "bare", name="bare", modality="fMRI", zscore="all",
        subjects=[Subject(study.space("s1"), study.responses("s1"), study.trials("s1"))],
        stimuli=Stimuli(study.stimulus_ids, captions={s: ["red"] for s in study.stimulus_ids if s != "s007"}),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"a caption for every stimulus, got none for 1 of \d+, 's007' among them"):
        seen(bare, bare.split_ids("train"), AlignmentConfig(weight=1.0))


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(UserError, match=r"^alignment config: weight must be at least 0, got -1\.0; dim must be at "
                       r"least 1, got 0; temperature must be positive, got 0\.0\. Correct the config"):  # fmt: skip
        AlignmentConfig(weight=-1.0, dim=0, temperature=0.0)
    with pytest.raises(UserError, match="image and text must not both be 'none'"):
        AlignmentConfig(weight=1.0, image="none", text="none")
    AlignmentConfig(image="none", text="none")  # it is off


# --- training


@pytest.fixture(scope="module")
def trained(plant, tmp_path_factory):
    """Training to align with four of the 24 facts that decide responses, or hardly to.

    By weight: the state that is left, the log, and the vectors of the codes of training and of held-out averages. Then
    the four facts about both.
    """
    dataset, made = plant(train=400, test=300, rank=24), {}
    averages = [dataset.averages("a", split) for split in ("train", "test")]
    for weight in (1e-9, 3.0):
        folder = tmp_path_factory.mktemp("aligned")
        optim = OptimConfig(steps=150, batch_size=64, learning_rate=5e-3, precision="float32")
        objective = ObjectiveConfig(alignment=AlignmentConfig(weight=weight, dim=16, image="some"))
        tokenizer = fit_brain_tokenizer(make_brain(dataset), dataset, optim, folder, 0, objective)
        with torch.no_grad():
            codes = [tokenizer.encode(torch.from_numpy(average.responses), "a") for average in averages]
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        vectors = [tokenizer.quantizer.codebook[one].flatten(1) for one in codes]
        (state,) = (folder / "state").glob("step-*150/*.safetensors")
        made[weight] = load_file(state), lines, vectors
    facts = [torch.from_numpy(dataset.features("some", average.stimulus_ids)[:, 0]) for average in averages]
    return made, [(x - facts[0].mean(0)) / facts[0].std(0) for x in facts]


def retrieved(brain, other):
    """How often the right one of two held-out stimuli is nearer."""
    similar = F.normalize(brain, dim=-1) @ F.normalize(other, dim=-1).T
    right = (similar.diagonal()[:, None] > similar).float().sum() / len(similar) / (len(similar) - 1)
    return float(right)


def test_aligned_codes_tell_more_about_what_was_seen(trained):
    """Held-out stimuli are told apart by codes alone, by way of ridge to the facts, which knows no alignment."""
    made, (train, test) = trained
    right = {}
    for weight, (*_, (x, held)) in made.items():
        right[weight] = retrieved(held @ torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]), x.T @ train), test)
    assert right[3.0] > right[1e-9] + 0.025, right


def test_the_maps_are_trained_and_saved_with_the_state(trained):
    made, (_, test) = trained
    state, lines, (_, held) = made[3.0]
    names = ("brain:a", "image")
    maps = [[state[f"model.alignment.maps.{name}.{of}"] for of in ("weight", "bias")] for name in names]
    assert retrieved(F.linear(held, *maps[0]), F.linear(test, *maps[1])) > 0.8, "chance is 0.5"
    assert lines[-1]["alignment"] < 0.7 * lines[0]["alignment"]


def test_the_loss_is_weighted(plant, tmp_path):
    """A first step with twice the weight has a loss that is larger by the alignment's."""
    dataset, lines = plant(train=20, test=2), {}
    for weight in (1.0, 2.0):
        objective = ObjectiveConfig(alignment=AlignmentConfig(weight=weight, image="facts"))
        optim = OptimConfig(steps=1, batch_size=8, precision="float32")
        fit_brain_tokenizer(make_brain(dataset), dataset, optim, tmp_path / str(weight), 0, objective)
        lines[weight] = json.loads((tmp_path / str(weight) / "log.jsonl").read_text())
    assert lines[1.0]["alignment"] == lines[2.0]["alignment"]
    assert lines[2.0]["loss"] - lines[1.0]["loss"] == pytest.approx(lines[1.0]["alignment"], rel=1e-5)
