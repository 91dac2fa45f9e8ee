"""What a training step of a tokenizer is shown, what training gives, and what it leaves alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.conv import PaperConfig
from brainjanus.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.train import tokenizer as module
from brainjanus.train.alignment import AlignmentConfig
from brainjanus.train.optim import OptimConfig
from brainjanus.train.tokenizer import (
    WHOLE,
    ObjectiveConfig,
    Repeats,
    brain_losses,
    fit_brain_tokenizer,
    fit_image_tokenizer,
    solve_axes,
)

QUANTIZER = QuantizerConfig(similarity="euclidean", num_codes=16, dim=3, decay=0.9)
BRAIN = BrainTokenizerConfig(patch_size=8, patch=PatchConfig(16, 1, 2), quantizer=QUANTIZER)
IMAGE = ImageTokenizerConfig(16, 2, width=16, blocks=1, quantizer=QuantizerConfig(num_codes=16, dim=8, decay=0.9))
FEW = OptimConfig(steps=5, batch_size=16, learning_rate=5e-3, precision="float32", log_every=2, save_every=3)


def make_brain(dataset, config=BRAIN, seed=0):
    torch.manual_seed(seed)
    return BrainTokenizer(config, {s: torch.from_numpy(dataset.space(s).order.copy()) for s in dataset.subjects})


def draws(repeats, objective=None, size=200, seed=0):
    objective = objective or ObjectiveConfig()
    return repeats.draw(size, objective, torch.Generator().manual_seed(seed))


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@torch.no_grad()
def held_out_error(tokenizer, dataset, subject):
    """Squared error of the decoded held-out averages, relative to their variance."""
    test = torch.from_numpy(dataset.averages(subject, "test").responses)
    decoded = tokenizer.decode(tokenizer.encode(test, subject), subject)
    return float((decoded - test).square().mean() / test.var(dim=0, correction=0).mean())


# --- what a step sees


class Rows(Dataset):
    """Each trial of this dataset responds with a one in a place of its own: responses tell which trials they are of."""

    def __init__(self, dataset):
        super().__init__(dataset.path, dataset.manifest)

    def responses(self, subject, rows=None):
        num = len(self.trials(subject).stimulus_id)
        return np.eye(num, dtype=np.float32)[np.arange(num) if rows is None else rows]


@pytest.fixture(scope="module")
def uneven(plant):
    """Training stimuli with 1, 2, 3 and 5 repeats in turn."""
    return plant(train=40, test=10, counts=(1, 2, 3, 5))


@pytest.fixture(scope="module")
def trials_of(uneven):
    """Which training trials each training stimulus was shown in."""
    trials, ids = uneven.trials("a"), uneven.split_ids("train")
    return [np.flatnonzero(np.array(trials.stimulus_id) == stimulus) for stimulus in ids]


def test_input_and_target_are_disjoint_repeats_of_one_stimulus(uneven, trials_of):
    drawn = draws(Repeats(Rows(uneven), "a"), ObjectiveConfig(other_repeats=1.0), size=600)
    for x, target, stimulus in zip(*drawn, strict=True):
        of_it, (shown, others) = trials_of[stimulus], (w.nonzero()[:, 0].numpy() for w in (x, target))
        np.testing.assert_allclose(x[shown], 1 / len(shown), rtol=1e-6)
        np.testing.assert_allclose(target[others], 1 / len(others), rtol=1e-6)
        if len(shown) == len(of_it):  # all repeats: the target is the input
            assert torch.equal(x, target) and set(shown) == set(of_it)
        else:
            assert not set(shown) & set(others) and {*shown, *others} == set(of_it)


def test_the_share_of_other_repeats_in_the_target(uneven):
    rows = Rows(uneven)
    x, others, stimulus = draws(Repeats(rows, "a"), ObjectiveConfig(other_repeats=1.0))
    for share in (0.0, 0.5, 0.8):
        drawn = draws(Repeats(rows, "a"), ObjectiveConfig(other_repeats=share))
        assert torch.equal(drawn.input, x) and torch.equal(drawn.stimulus, stimulus)
        torch.testing.assert_close(drawn.target, share * others + (1 - share) * x)
    assert torch.equal(draws(Repeats(rows, "a"), ObjectiveConfig(other_repeats=0.0)).target, x)


def test_means_are_those_of_a_loop_over_trials(uneven):
    weights, drawn = draws(Repeats(Rows(uneven), "a")), draws(Repeats(uneven, "a"))
    responses = uneven.responses("a")
    for row in range(0, 200, 10):
        for w, value in zip(weights[:2], drawn[:2], strict=True):
            by_hand = sum(w[row, t].item() * responses[t] for t in w[row].nonzero()[:, 0].tolist())
            np.testing.assert_allclose(value[row], by_hand, atol=1e-5)


def test_stimuli_and_repeats_are_equally_likely_and_of_training_alone(uneven, trials_of):
    """How many repeats are shown is even from one to all but one, beside WHOLE of all."""
    x, _, stimulus = draws(Repeats(Rows(uneven), "a"), size=20000)
    assert not x[:, uneven.trials("a").rows("test")].any()
    counts = torch.bincount(stimulus, minlength=40)
    assert counts.min() > 400 and counts.max() < 600, "500 each"
    for which, of_it in enumerate(trials_of[:8]):
        mine = x[stimulus == which]
        shares = mine[:, of_it].mean(dim=0)
        np.testing.assert_allclose(shares, 1 / len(of_it), atol=0.08)
        shown = np.bincount((mine > 0).sum(dim=1), minlength=len(of_it) + 1)[1:] / len(mine)
        part = (1 - WHOLE) / max(1, len(of_it) - 1)
        np.testing.assert_allclose(shown, [part] * (len(of_it) - 1) + [WHOLE if len(of_it) > 1 else 1], atol=0.08)


def test_stimuli_are_rows_of_those_of_all_subjects(study):
    """s2 did not see the first sixteen training stimuli of the study."""
    ids, repeats = study.split_ids("train"), Repeats(study, "s2")
    assert tuple(ids[row] for row in repeats.stimuli) == study.trials("s2").stimuli("train")
    averages = study.averages("s2", "train")
    row_of = {stimulus: row for row, stimulus in enumerate(averages.stimulus_ids)}
    drawn = draws(repeats)
    for x, stimulus in zip(drawn.input, drawn.stimulus, strict=True):
        rows = [row_of[ids[stimulus]]]
        if averages.num_repeats[rows[0]] == 1:
            np.testing.assert_allclose(x, averages.responses[rows[0]], atol=1e-5)


def test_noise_is_added_to_the_input_alone_and_all_is_decided_by_the_generator(uneven):
    repeats = Repeats(uneven, "a")
    plain, noisy = draws(repeats), draws(repeats, ObjectiveConfig(noise=0.3))
    assert torch.equal(plain.target, noisy.target)
    assert float((noisy.input - plain.input).std()) == pytest.approx(0.3, rel=0.05)
    assert all(torch.equal(a, b) for a, b in zip(noisy, draws(repeats, ObjectiveConfig(noise=0.3)), strict=True))
    assert not torch.equal(plain.input, draws(repeats, seed=1).input)


# --- what is solved for


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("counts", [(3,), (1, 2, 12)])
def test_the_noise_that_is_deducted_is_what_other_repeats_do_not_share(plant, monkeypatch, counts, share):
    """What is left is the covariance of an average with a target of which `share` is another average."""
    dataset = plant((("a", 4),), train=3000, test=2, counts=counts, rank=2, noise=1.0)
    solved = []
    monkeypatch.setattr(BrainTokenizer, "solve", lambda self, *given: solved.append(given))
    tokenizer = make_brain(dataset, replace(BRAIN, patch_size=2))
    solve_axes(tokenizer, Repeats(dataset, "a"), share)
    ((subject, *tensors, noise),) = solved
    means, residuals = (x.numpy() for x in tensors)
    assert subject == "a" and means.shape == (3000, 4)
    left = means.T @ means / len(means) - noise * residuals.T @ residuals / len(residuals)

    rng = np.random.default_rng(1)  # noise of variance 1, independent over sites; single trials have no other average
    loading = np.random.default_rng(1).standard_normal((2, 4)) / 2**0.5
    facts = dataset.features("facts", dataset.split_ids("train"))[:, 0]
    n = np.resize(counts, 3000)[:, None]
    one, other = (facts @ loading + rng.standard_normal((3000, 4)) / n**0.5 for _ in range(2))
    target = np.where(n > 1, share * other + (1 - share) * one, one)
    np.testing.assert_allclose(left, (one.T @ target + target.T @ one) / 2 / 3000, atol=0.12)
    own = np.mean(np.where(n > 1, 1 - share, 1) / n)
    assert np.diag(left - loading.T @ np.cov(facts.T) @ loading).mean() == pytest.approx(own, abs=0.04)


def test_without_repeats_nothing_is_deducted(plant, monkeypatch):
    solved = []
    monkeypatch.setattr(BrainTokenizer, "solve", lambda self, *given: solved.append(given))
    dataset = plant(train=20, test=2, counts=(1,))
    solve_axes(make_brain(dataset), Repeats(dataset, "a"), 1.0)
    assert solved[0][2].shape == (0, 32) and solved[0][3] == 0


# --- settings


def test_all_that_is_wrong_is_said_at_once():
    sentence = (
        r"^tokenizer objective: other_repeats must lie in \[0, 1\], got 1\.5; noise must be at least 0, got -1\.0; "
        r"consistency must be at least 0, got nan\. Correct the config"
    )
    with pytest.raises(UserError, match=sentence):
        ObjectiveConfig(other_repeats=1.5, noise=-1.0, consistency=float("nan"))


# --- training


def test_the_losses_of_a_batch_by_hand(plant):
    """Distortion, commitment, consistency, what was corrected of the latents, and the alignment."""
    dataset = plant(train=40)
    tokenizer = make_brain(dataset)
    solve_axes(tokenizer, Repeats(dataset, "a"), 0.5)
    x, target, _ = draws(Repeats(dataset, "a"), size=16)
    generator = torch.Generator().manual_seed(0)
    tokenizer.quantizer.update(tokenizer.latents(x, "a"), tokenizer.encode(x, "a"), generator)
    with torch.no_grad():
        tokenizer.coder.to_latent.bias += 0.3
        latents, codebook = tokenizer.latents(x, "a"), tokenizer.quantizer.codebook.clone()
        vectors = codebook[tokenizer.encode(x, "a")]
        decoded = tokenizer.decode(tokenizer.encode(x, "a"), "a")
        again = tokenizer.latents(decoded, "a")
        drift = latents - tokenizer.coder.solved(tokenizer.patches(x, "a"), "a")
    torch.testing.assert_close(drift, torch.full_like(drift, 0.3))
    distortion, size = (decoded - target).square().mean(), vectors.square().mean()
    expected = (
        distortion
        + 0.25 * (latents - vectors).square().mean()
        + 2.0 * (again - vectors).square().mean() / size
        + 0.3**2 / size
        + 3.0 * latents.mean()
    )
    objective = ObjectiveConfig(consistency=2.0, alignment=AlignmentConfig(weight=3.0))
    losses = brain_losses(tokenizer, "a", x, target, objective, None, torch.mean)
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(losses["mse"], distortion)
    assert torch.equal(tokenizer.quantizer.codebook, codebook)
    brain_losses(tokenizer, "a", x, target, objective, generator, torch.mean)
    assert not torch.equal(tokenizer.quantizer.codebook, codebook)


def test_brain_codes_hold_what_eight_classes_of_responses_share(study, tmp_path):
    """Distortion on held-out means falls far below their variance, for both subjects, by one codebook."""
    config = replace(FEW, steps=60, batch_size=32)
    tokenizer = fit_brain_tokenizer(make_brain(study), study, config, tmp_path, seed=0)
    for subject in study.subjects:
        assert held_out_error(tokenizer, study, subject) < 0.4, subject
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["perplexity"] > 4
    assert set(lines[0]) == {"stage", "step", "lr", "loss", "mse", "perplexity", "steps_per_sec"}
    assert {line["stage"] for line in lines} == {"brain tokenizer"}
    assert not tokenizer.training


def test_training_adds_to_what_was_solved_for(plant, tmp_path):
    """The decoder learns what the axes alone do not give back."""
    dataset = plant(train=200, rank=5)
    errors = [
        held_out_error(
            fit_brain_tokenizer(make_brain(dataset), dataset, replace(FEW, steps=n), tmp_path / str(n), 0), dataset, "a"
        )
        for n in (5, 100)
    ]
    assert errors[1] < 0.95 * errors[0] < 0.8


@pytest.mark.parametrize(("quantizer", "steps"), [
    (replace(QUANTIZER, num_codes=32), 20),
    (QuantizerConfig(num_codes=32, dim=4, decay=0.9), 60),  # begins with random directions, which die one by one
    (QuantizerConfig(kind="residual", num_codes=16, dim=3, stages=2, decay=0.9), 20),
    (QuantizerConfig(kind="fsq", num_codes=16), 20),
], ids=["euclidean", "cosine", "residual", "fsq"])  # fmt: skip
def test_no_codebook_collapses(plant, tmp_path, quantizer, steps):
    """Over five seeds more than nine tenths of the codes are used."""
    dataset = plant(train=200, rank=5)
    responses = torch.from_numpy(dataset.averages("a", "train").responses)
    for seed in range(5):
        tokenizer = make_brain(dataset, replace(BRAIN, quantizer=quantizer), seed)
        fit_brain_tokenizer(tokenizer, dataset, replace(FEW, steps=steps, batch_size=64), tmp_path / str(seed), seed)
        used = len(torch.unique(tokenizer.encode(responses, "a"))) / quantizer.num_entries
        assert used > 0.9, f"seed {seed}: {used:.0%}"


def test_a_decoded_response_keeps_its_codes_if_that_is_asked_for(plant, tmp_path):
    dataset = plant(train=200, test=120, rank=8, noise=1.0)
    test = torch.from_numpy(dataset.averages("a", "test").responses)
    config = replace(BRAIN, quantizer=QuantizerConfig(kind="fsq", num_codes=16))
    kept = {}
    for weight in (0.0, 1.0):
        tokenizer, objective = make_brain(dataset, config), ObjectiveConfig(consistency=weight)
        optim = replace(FEW, steps=100, batch_size=64)
        fit_brain_tokenizer(tokenizer, dataset, optim, tmp_path / str(weight), 0, objective)
        codes = tokenizer.encode(test, "a")
        again = tokenizer.encode(tokenizer.decode(codes, "a"), "a")
        kept[weight] = float((codes == again).float().mean())
    assert kept[1.0] > kept[0.0] + 0.03, kept


def test_subjects_take_turns(study, tmp_path):
    """After one step only the first subject's maps have moved from what they began with, after two both have."""
    before = make_brain(study)
    for steps, moved in ((1, {"s1"}), (2, {"s1", "s2"})):
        config = replace(FEW, steps=steps, weight_decay=0.0)
        after = fit_brain_tokenizer(make_brain(study), study, config, tmp_path / str(steps), seed=0)
        assert {s for s in study.subjects if not torch.equal(out_of(after, s), out_of(before, s))} == moved
        assert all(after.coder.map_of(s).turn.any() for s in study.subjects), "solved before the first step"


def out_of(tokenizer, subject):
    return tokenizer.coder.map_of(subject).out


@pytest.mark.parametrize("encoder", ["patch", "paper"])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("at", [1, 3])
def test_stopped_and_gone_on_with_is_the_same_training(
    study, tmp_path, monkeypatch, encoder, aligned, at, interrupting, read_log
):
    """Weights, codebook, alignment and log, bit for bit."""
    paper = PaperConfig(base_channels=4, multipliers=(1, 1, 1, 1), blocks=1, latent_channels=4)
    config = replace(BRAIN, encoder=encoder, paper=paper)
    objective = ObjectiveConfig(alignment=AlignmentConfig(weight=float(aligned), dim=4, image="none"))

    def run(folder):
        return fit_brain_tokenizer(make_brain(study, config), study, FEW, tmp_path / folder, 0, objective)

    whole = run("whole")
    monkeypatch.setattr(module, "fit", interrupting(module.fit, at))
    with pytest.raises(KeyboardInterrupt, match=f"saved at step {at + 1} of 5"):
        run("parts")
    monkeypatch.undo()
    assert same_weights(run("parts"), whole)
    assert read_log(tmp_path / "parts/log.jsonl") == read_log(tmp_path / "whole/log.jsonl")
    (one,), (other,) = ((tmp_path / part / "state/step-00000005").glob("*.safetensors") for part in ("parts", "whole"))
    saved, expected = load_file(one), load_file(other)
    assert saved.keys() == expected.keys()
    assert all(torch.equal(value, saved[name]) for name, value in expected.items())
    assert ("alignment" in json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])) == aligned


@pytest.mark.parametrize("left", ["nothing", "half of a state", "a damaged state"])
def test_what_has_no_state_to_go_on_from_begins_with_axes_that_are_solved(study, tmp_path, left, capsys):
    """A disk that was full at the first save leaves the folder of states without one."""
    whole = fit_brain_tokenizer(make_brain(study), study, FEW, tmp_path / "whole", 0)
    state = tmp_path / "parts" / "state"
    state.mkdir(parents=True)
    if left != "nothing":
        part = state / (".step-00000003.part" if left == "half of a state" else "step-00000003")
        part.mkdir()
        (part / "state.json").write_text("{")
    assert same_weights(fit_brain_tokenizer(make_brain(study), study, FEW, tmp_path / "parts", 0), whole)
    assert ("Starting this stage anew" in capsys.readouterr().err) == (left == "a damaged state")


def test_axes_are_not_solved_again_where_a_state_holds_them(study, tmp_path, monkeypatch):
    whole = fit_brain_tokenizer(make_brain(study), study, FEW, tmp_path, 0)
    monkeypatch.setattr(module, "solve_axes", lambda *_: pytest.fail("solved again"))
    assert same_weights(fit_brain_tokenizer(make_brain(study), study, FEW, tmp_path, 0), whole)


def test_training_reads_training_trials_alone(study, tmp_path, monkeypatch):
    rows, responses = {"s1": set(), "s2": set()}, Dataset.responses

    def spy(self, subject, chosen=None):
        rows[subject].update(chosen.tolist())
        return responses(self, subject, chosen)

    monkeypatch.setattr(Dataset, "responses", spy)
    fit_brain_tokenizer(make_brain(study), study, FEW, tmp_path, seed=0)
    for subject, read in rows.items():
        assert read == set(study.trials(subject).rows("train").tolist())


# --- a new subject


@pytest.fixture(scope="module")
def first(plant):
    return plant((("a", 32), ("b", 24)), train=200)


@pytest.fixture(scope="module")
def trained(first, tmp_path_factory):
    config = replace(FEW, steps=60, batch_size=32)
    return fit_brain_tokenizer(make_brain(first), first, config, tmp_path_factory.mktemp("trained"), 0)


def with_subjects(tokenizer, dataset):
    """The tokenizer with the dataset's subjects beside its own."""
    orders = {subject: tokenizer.sites_of(subject).order for subject in tokenizer.subjects}
    orders |= {subject: torch.from_numpy(dataset.space(subject).order.copy()) for subject in dataset.subjects}
    torch.manual_seed(5)
    more = BrainTokenizer(tokenizer.config, orders)
    more.load_state_dict(more.state_dict() | tokenizer.state_dict())
    return more


def test_a_new_subject_is_learnt_and_nothing_else_moves(plant, first, trained, tmp_path):
    """Its codes come from the codebook of the others; theirs stay as they are, and so does all that is shared."""
    second = plant((("c", 40),), train=200, seed=9)
    more = with_subjects(trained, second)
    fit_brain_tokenizer(more, second, replace(FEW, steps=60, batch_size=32), tmp_path, 1, maps_only=True)
    shared = trained.state_dict()
    assert all(torch.equal(more.state_dict()[name], value) for name, value in shared.items())
    for subject in first.subjects:
        test = torch.from_numpy(first.averages(subject, "test").responses)
        assert torch.equal(more.encode(test, subject), trained.encode(test, subject))
    assert held_out_error(more, second, "c") < 0.5, "the floor is 1"
    assert held_out_error(with_subjects(trained, second), second, "c") > 0.9, "before"
    assert not torch.equal(out_of(more, "c"), out_of(with_subjects(trained, second), "c"))


def test_an_encoder_without_weights_of_a_subject_has_nothing_to_train(study, tmp_path):
    """The convolutions of the paper know no subjects."""
    paper = PaperConfig(base_channels=4, multipliers=(1, 1, 1, 1), blocks=1, latent_channels=4)
    tokenizer = make_brain(study, replace(BRAIN, encoder="paper", paper=paper))
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    fit_brain_tokenizer(tokenizer, study, FEW, tmp_path, 0, maps_only=True)
    assert all(torch.equal(tokenizer.state_dict()[name], value) for name, value in before.items())


# --- pictures


def test_picture_codes_hold_what_is_seen(study, tmp_path):
    """Four codes of a picture tell colour and side: far below the variance of held-out pictures."""
    torch.manual_seed(0)
    pixels = torch.from_numpy(study.images(study.split_ids("train")))
    config = OptimConfig(steps=120, batch_size=16, learning_rate=5e-3, precision="float32")
    tokenizer = fit_image_tokenizer(ImageTokenizer(IMAGE), pixels, config, tmp_path, seed=0)
    test = torch.from_numpy(study.images(study.split_ids("test"))).permute(0, 3, 1, 2) / 255
    error = (tokenizer.decode(tokenizer.encode(test)) - test).square().mean()
    assert error < 0.3 * test.var(dim=0, correction=0).mean()
    assert not tokenizer.training
