"""A new subject into a trained model: what it answers, what stays as it was, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import brainjanus as bj
from brainjanus import adapting
from brainjanus.cards import leave_cards
from brainjanus.cli import main
from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.write import write_dataset
from brainjanus.evaluate.baselines import linear_baseline
from brainjanus.evaluate.brain import voxel_r
from brainjanus.generate import GenerationConfig, generate, score_candidates
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.omni import OmniConfig
from brainjanus.recipes import RunConfig
from brainjanus.run import Run, check_same_data, dataset_of, predict, subjects_of, train
from brainjanus.tokenizers.brain import BrainTokenizerConfig
from brainjanus.tokenizers.image import ImageTokenizerConfig
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.tokenizers.text import TextTokenizerConfig
from brainjanus.train.omni import OmniTrainingConfig, default_tasks
from brainjanus.train.optim import OptimConfig

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (230, 230, 230)}
NUM_TRAIN, NUM_TEST = 72, 24
IDS = [f"s{i:03}" for i in range(NUM_TRAIN + NUM_TEST)]
WHAT, WHERE = np.arange(len(IDS)) % 4, np.arange(len(IDS)) // 4 % 2


def optim(steps: int, rate: float) -> OptimConfig:
    return OptimConfig(steps=steps, batch_size=24, learning_rate=rate, precision="float32", save_every=1000)


QUANTIZER = QuantizerConfig(similarity="euclidean", num_codes=16, dim=3, decay=0.9)
TINY = RunConfig(
    brain_tokenizer=BrainTokenizerConfig(patch_size=8, patch=PatchConfig(32, 1, 2), quantizer=QUANTIZER),
    brain_training=optim(40, 5e-3),
    image_tokenizer=ImageTokenizerConfig(16, 2, width=16, blocks=1, quantizer=replace(QUANTIZER, dim=8)),
    image_training=optim(40, 5e-3),
    text_tokenizer=TextTokenizerConfig(num_codes=270),
    omni=OmniConfig(DecoderConfig(48, 96, 2, 4, 4)),
    training=OmniTrainingConfig(optim(140, 1e-2), tasks={**default_tasks(), "brain->text": 2.0}),
)


def subject(
    name: str, sites: int, first: int, *, coordinates: bool = True, noise: float = 0.8, spoil: int = 0
) -> Subject:
    """Sites answer to colours and sides, alike where they lie together. spoil: training stimuli, from the last, whose
    responses are others."""
    rng = np.random.default_rng(sites)
    places = rng.uniform(-40, 40, (sites, 3)).astype(np.float32)
    waves = np.random.default_rng(99).normal(0, 1 / 18, (6, 3))
    tuning = np.cos(places @ waves.T + np.arange(6) + 2.0 * (places[:, :1] >= 0))
    facts = np.concatenate([np.eye(4)[WHAT], np.eye(2)[WHERE]], axis=1)
    learnt = np.arange(first, first + 48)
    shown = np.concatenate([learnt, np.arange(NUM_TRAIN, len(IDS)), learnt[:8]])
    responses = facts[shown] @ tuning.T + noise * rng.standard_normal((len(shown), sites))
    if spoil:
        responses[np.isin(shown, learnt[-spoil:])] += 100
    split = ["train" if i < NUM_TRAIN else "test" for i in shown]
    zeros = np.zeros(len(shown), np.int64)
    trials = Trials([IDS[i] for i in shown], zeros, zeros, (np.arange(len(shown)) >= len(shown) - 8).astype(int), split)
    space = BrainSpace(name, sites, coordinates_mm=places if coordinates else None)
    return Subject(space, responses.astype(np.float32), trials)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    pixels = np.full((len(IDS), 16, 16, 3), 90)
    for i in range(len(IDS)):
        pixels[i, :, slice(0, 8) if WHERE[i] == 0 else slice(8, 16)] = list(COLOURS.values())[WHAT[i]]
    pixels = (pixels + rng.integers(-20, 20, pixels.shape)).astype(np.uint8)
    said = {s: [f"{list(COLOURS)[c]} {('left', 'right')[w]}"] for s, c, w in zip(IDS, WHAT, WHERE, strict=True)}
    return Stimuli(IDS, pixels, captions=said)


@pytest.fixture(scope="module")
def written(pictures, tmp_path_factory):
    """A function that writes a dataset of some subjects."""
    folder = tmp_path_factory.mktemp("datasets")

    def write(name: str, *subjects: Subject, stimuli: Stimuli = pictures, zscore: str = "all"):
        return write_dataset(
            folder / name, name=name, modality="fMRI", subjects=subjects, stimuli=stimuli, zscore=zscore
        )

    return write


@pytest.fixture(scope="module")
def run(written, tmp_path_factory):
    """A model that learnt of two subjects."""
    out = tmp_path_factory.mktemp("known") / "run"
    train(written("known", subject("a", 200, 0), subject("b", 160, 24)), out, TINY)
    return out


@pytest.fixture(scope="module")
def new(written):
    return written("new", subject("c", 180, 12))


@pytest.fixture(scope="module")
def adapted(run, new, tmp_path_factory):
    return bj.adapt(run, new, tmp_path_factory.mktemp("adapted") / "run", stimuli=12)


def test_the_cards_tell_both_datasets(adapted, run, new):
    card, known, added = (adapted.path / name for name in ("README.md", "dataset_card.md", "dataset_card_c.md"))
    assert known.read_text() == (run / "dataset_card.md").read_text()
    assert added.read_text() == (new.path / "README.md").read_text()
    leave_cards(adapted.path, Dataset.open(dataset_of(run)))  # as an evaluation of the known subjects does
    assert known.read_text() == (run / "dataset_card.md").read_text() != added.read_text()
    data = card.read_text().partition("## What it was trained on")[2].partition("\n## ")[0]
    assert "| dataset | known |" in data and "c was added with 12 stimuli" in data
    assert "It knows 3 subjects (a, b, c)" in card.read_text()


def voxels(made: Run, data, direction: str) -> float:
    found = predict(made.checkpoint, data, direction, "c", GenerationConfig())
    return float(voxel_r(data.averages("c", "test").responses, found.values).mean())


# --- what it answers


def test_few_stimuli_beat_ridge_from_scratch(adapted, new, written):
    """Ridge on the same stimuli: with 12 of them, and what was measured of no other."""
    used = json.loads((adapted.path / "adapt.json").read_text())
    assert used["stimuli"] == 12 and used["subject"] == "c"
    rng = np.random.default_rng(0)
    every = new.trials("c").stimuli("train")
    kept = {every[row] for row in rng.permutation(len(every))[:12]}
    whole = subject("c", 180, 12)
    rows = [
        i
        for i, (s, split) in enumerate(zip(*whole.trials[:1], whole.trials.split, strict=True))
        if split == "test" or s in kept
    ]
    few = Trials(
        *([column[i] for i in rows] if isinstance(column, list) else column[rows] for column in whole.trials[:5])
    )
    data = written("few", replace(whole, responses=whole.responses[rows], trials=few))
    ids = data.averages("c", "test").stimulus_ids
    for direction, least in (("image->brain", 1.2), ("text->brain", 0.95)):
        ridge = linear_baseline(data, "c", direction, ids)
        assert voxels(adapted, new, direction) > least * voxel_r(data.averages("c", "test").responses, ridge).mean()


def test_no_stimuli_are_told_by_anatomy(run, new, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(adapting, "warn_of_grids", lambda own, known: compared.append((own.subject, *known)))
    made = bj.adapt(run, new, tmp_path / "out", "c", stimuli=0)
    assert compared == [("c", "a", "b")]
    assert voxels(made, new, "image->brain") > 0.25
    assert voxels(made, new, "text->brain") > 0.25
    shown, options = new.averages("c", "test"), [f"{one} {side}" for one in COLOURS for side in ("left", "right")]
    table = score_candidates(made.checkpoint, {"brain:c": shown.responses}, "text", options)
    best = table.argmax(dim=1).tolist()
    said = [options[i].split()[0] == new.captions(s)[0].split()[0] for i, s in zip(best, shown[0], strict=True)]
    assert np.mean(said) > 0.75  # of 24; chance is .25


def test_every_direction_is_answered(adapted, new):
    """Pictures and captions that its response tells of; other brains from its, and its from theirs; parts filled in."""
    checkpoint, averages = adapted.checkpoint, new.averages("c", "test")
    response = torch.from_numpy(averages.responses)
    said = generate(checkpoint, {"brain:c": response}, "text", GenerationConfig(temperature=0.0))
    assert np.mean([one == new.captions(s)[0] for one, s in zip(said, averages.stimulus_ids, strict=True)]) > 0.5
    pictures = generate(checkpoint, {"brain:c": response}, "image").numpy()
    shown = new.images(averages.stimulus_ids) / 255
    agree = np.corrcoef(pictures.reshape(len(shown), -1), shown.reshape(len(shown), -1))[: len(shown), len(shown) :]
    assert np.diag(agree).mean() > agree[~np.eye(len(agree), dtype=bool)].mean() + 0.1
    other = generate(checkpoint, {"brain:c": response}, "brain:a")
    back = generate(checkpoint, {"brain:a": other}, "brain:c")
    assert other.shape == (24, 200) and voxel_r(averages.responses, back.numpy()).mean() > 0.3
    with_both = generate(
        checkpoint,
        {"image": shown.astype(np.float32), "text": [c for s in averages[0] for c in new.captions(s)]},
        "brain:c",
    )
    assert voxel_r(averages.responses, with_both.numpy()).mean() > 0.3


def test_a_part_of_its_response_is_completed(adapted, new):
    response = torch.from_numpy(new.averages("c", "test").responses)
    part = response.clone()
    part[:, ::2] = float("nan")
    whole = generate(adapted.checkpoint, {"part:c": part}, "brain:c")
    assert torch.equal(whole[:, 1::2], response[:, 1::2]) and whole.isfinite().all()
    assert voxel_r(response[:, ::2].numpy(), whole[:, ::2].numpy()).mean() > 0.2
    shown = new.images(new.averages("c", "test").stimulus_ids)
    told = generate(adapted.checkpoint, {"part:c": part, "image": shown}, "brain:c")
    assert torch.equal(told[:, 1::2], response[:, 1::2]) and not torch.equal(told, whole)
    assert voxel_r(response[:, ::2].numpy(), told[:, ::2].numpy()).mean() > 0.2
    said = generate(adapted.checkpoint, {"part:c": part}, "text", GenerationConfig(temperature=0.0))
    assert len(said) == len(part)


def test_samples_scatter_around_what_is_expected(adapted, new):
    shown = {"image": new.images(new.averages("c", "test").stimulus_ids[:4])}
    config = GenerationConfig(estimate="sample", num_samples=8)
    plain = adapted.estimate(shown, "brain:c", config).samples
    noisy = adapted.estimate(shown, "brain:c", replace(config, trial_noise=True)).samples
    assert plain.shape == (4, 8, 180) and torch.equal(plain, adapted.estimate(shown, "brain:c", config).samples)
    assert noisy.std(dim=1).mean() > 1.3 * plain.std(dim=1).mean() > 0
    far = replace(config, num_samples=1, trial_noise=True, seed=2**62)
    assert adapted.generate(shown, "brain:c", far).isfinite().all()
    both = shown | {"brain:c": new.averages("c", "test").responses[:4]}
    kept = [adapted.estimate(both, "brain:a", replace(config, trial_noise=noise)).samples for noise in (False, True)]
    assert kept[1].std(dim=1).mean() > 1.1 * kept[0].std(dim=1).mean() > 0  # of a known subject's trials, too


def test_what_is_not_drawn_is_refused_as_a_sample(adapted, run, new, tmp_path):
    """Linear maps tell one expectation; and nothing was measured of how the trials of a zero-shot subject scatter."""
    response = torch.from_numpy(new.averages("c", "test").responses[:3])
    part = response.clone()
    part[:, ::2] = float("nan")
    image, known = new.images(IDS[:3]), torch.zeros(3, 200)
    sample, mean = GenerationConfig("sample", 3), GenerationConfig("mean", 3)
    asked = [({"brain:c": response}, "brain:a"), ({"brain:a": known}, "brain:c"), ({"part:c": part}, "brain:c"),
             ({"part:c": part}, "brain:a"), ({"image": image, "part:c": part}, "brain:c"),
             ({"image": image, "brain:a": known}, "brain:c")]  # fmt: skip
    for conditions, target in asked:
        assert adapted.estimate(conditions, target).samples is None
        for config, options in (
            (sample, "--estimate sample, --samples"),
            (replace(sample, num_samples=0, trial_noise=True), "--estimate sample, --trial-noise"),
            (mean, "--samples"),
        ):
            with pytest.raises(UserError, match=f"expectation that linear maps .*, got {options}. Leave"):
                adapted.estimate(conditions, target, config)
    with pytest.raises(UserError, match=r"expectation that linear maps .*, got --samples\. Leave"):
        adapted.estimate({"image": image}, "brain:c", mean)
    assert adapted.estimate({"image": image, "brain:c": response}, "brain:a", mean).standard_error.shape == (3, 200)
    zero = bj.adapt(run, new, tmp_path / "zero", "c", stimuli=0)
    with pytest.raises(UserError, match="image->brain:c: expected a subject of whom trials were measured"):
        zero.estimate({"image": image}, "brain:c", replace(sample, trial_noise=True))


def test_samples_are_drawn_by_one_speaker(adapted, new, monkeypatch):
    """All known subjects have a say in a mean alone."""
    relays, response = adapted.checkpoint.relays, new.averages("c", "test").responses[:2]
    spoken = []
    monkeypatch.setattr(
        relays, "spoken", lambda given, who: spoken.append(who) or type(relays).spoken(relays, given, who)
    )
    for target, config, speakers in (
        ("text", GenerationConfig(), 1), ("image", GenerationConfig("sample", 2), 1), ("image", GenerationConfig(), 2),
    ):  # fmt: skip
        spoken.clear()
        adapted.estimate({"brain:c": response}, target, config)
        assert len(spoken) == speakers


@pytest.mark.parametrize(
    ("given", "target", "message"),
    [
        ({"brain:a": 5, "part:c": 3}, "brain:c", "expected as many rows of everything, got brain:a 5, part:c 3"),
        ({"text": 1, "brain:c": 3}, "brain:a", "expected as many rows of everything, got text 1, brain:c 3"),
        ({"brain:c": 3, "part:c": 3}, "brain:c", "expected a target that is not among the conditions, got 'brain:c'"),
        ({"brain:c": 3}, "brain:c", "expected a target that is not among the conditions, got 'brain:c'"),
        ({"brain:c": 3}, "brain", "expected the subject of a brain"),
        ({"brain:c": 3, "part:c": 3}, "text", "expected a response of c whole or in part, got both"),
    ],
)
def test_a_request_is_checked_as_those_of_known_subjects(adapted, given, target, message):
    sites = {"brain:a": 200, "brain:c": 180, "part:c": 180}
    rows = {name: "red left" if name == "text" else np.ones((n, sites[name]), "f4") for name, n in given.items()}
    with pytest.raises(UserError, match=message):
        adapted.generate(rows, target)


# --- what stays as it was


@pytest.mark.parametrize(
    ("given", "target"),
    [("image", "brain:a"), ("text", "brain:b"), ("brain:a", "text"), ("brain:b", "image"), ("brain:a", "brain:b")],
)
def test_what_it_answered_for_others_stays_to_the_bit(run, adapted, given, target, new):
    before = Run.open(run)
    ids = new.averages("c", "test").stimulus_ids[:6]
    rng = np.random.default_rng(0)
    rows = {
        "image": new.images(ids),
        "text": [new.captions(s)[0] for s in ids],
        "brain:a": rng.standard_normal((6, 200)).astype(np.float32),
        "brain:b": rng.standard_normal((6, 160)).astype(np.float32),
    }[given]
    one, other = (made.generate({given: rows}, target) for made in (before, adapted))
    assert one == other if isinstance(one, list) else torch.equal(one, other)


def test_a_second_new_subject_leaves_the_first_as_it_was(adapted, written, new, tmp_path):
    more = written("more", subject("d", 150, 0))
    both = bj.adapt(adapted.path, more, tmp_path / "both")
    assert both.checkpoint.tokenizers.brain.subjects == ("a", "b", "c", "d")
    shown = {"image": new.images(new.averages("c", "test").stimulus_ids[:5])}
    assert torch.equal(both.generate(shown, "brain:c"), adapted.generate(shown, "brain:c"))
    assert list(both.checkpoint.relays.relay("d").known) != [] and "c" not in both.checkpoint.relays.relay("d").known
    crossed = both.generate({"brain:c": new.averages("c", "test").responses[:5]}, "brain:d")
    assert crossed.shape == (5, 150) and crossed.std() > 0.05


def test_responses_to_other_stimuli_are_not_read(run, written, tmp_path):
    """Those of training stimuli that were not asked for, as well as of the test split."""
    every = subject("c", 180, 12)
    ids = sorted(every.trials.stimuli("train"))
    used = {ids[row] for row in np.random.default_rng(0).permutation(len(ids))[:25]}
    spoilt = every.responses.copy()
    spoilt[[row for row, name in enumerate(every.trials.stimulus_id) if name not in used]] += 50
    made = [
        bj.adapt(run, written(name, replace(every, responses=responses), zscore="none"), tmp_path / name, stimuli=25)
        for name, responses in (("clean", every.responses), ("spoilt", spoilt))
    ]
    clean, other = (
        one.checkpoint.relays.state_dict() | one.checkpoint.drafts.state_dict()
        | one.checkpoint.tokenizers.brain.state_dict()
        for one in made
    )  # fmt: skip
    assert all(torch.equal(clean[name], other[name]) for name in clean)


def test_it_is_a_run_as_any_other(run, adapted, new):
    """Loaded again it answers the same; its scores are of the new subject alone."""
    again = Run.open(adapted.path)
    shown = {"brain:c": new.averages("c", "test").responses[:4]}
    assert torch.equal(again.generate(shown, "image"), adapted.generate(shown, "image"))
    assert subjects_of(again.checkpoint, new) == ["c"]
    known = bj.Dataset.open(json.loads((run / "config.json").read_text())["path"])
    assert subjects_of(again.checkpoint, known) == ["a", "b"]
    check_same_data(again.checkpoint, new, adapted.path)
    with pytest.raises(UserError, match="expected the dataset it was trained on"):
        check_same_data(Checkpoint.load(run), new, run)
    assert main(["info", str(adapted.path)]) == 0


# --- what is refused


def test_volumes_on_several_grids_are_told_of_where_coordinates_alone_count(capsys):
    affine = np.diag([2.0, 2, 2, 1])

    def volume(name, shape, affine=affine):
        return BrainSpace(
            name, 2, geometry={"type": "volume", "shape": shape, "affine": affine.tolist()}, index=np.arange(2)
        )

    def told(**known):
        adapting.warn_of_grids(volume("c", [4, 5, 6]), known)
        return capsys.readouterr().err

    assert not told(a=volume("a", (4, 5, 6)), b=BrainSpace("b", 2))
    for other in (volume("b", [4, 5, 7]), volume("b", [4, 5, 6], affine * 1.25)):
        assert "the volume of c is on another grid than that of b." in told(a=volume("a", [4, 5, 6]), b=other)


def test_mistakes_are_answered_in_a_sentence(run, new, adapted, written, pictures, tmp_path):
    known = bj.Dataset.open(json.loads((run / "config.json").read_text())["path"])

    def refused(message: str, *arguments, **more) -> None:
        with pytest.raises(UserError, match=message):
            bj.adapt(*arguments, **more)
        assert not (tmp_path / "out").exists()

    out = tmp_path / "out"
    refused("expected a subject that it does not know .*, got 'a'", run, known, out, "a")
    refused("expected --subject to name one of a, b .*, got none, of which 0 are new", run, known, out)
    refused("got z. Name one", run, new, out, "z")
    for count in (1, 49, -1):
        refused(f"from 3 to the 48 training stimuli of c, got {count}", run, new, out, stimuli=count)
    nowhere = written("nowhere", subject("e", 60, 0, coordinates=False))
    refused("--stimuli 0: expected coordinates of all sites of e", run, nowhere, out, stimuli=0)
    unseen = written("unseen", subject("e", 60, 0), stimuli=Stimuli(IDS, features={"x": np.zeros((96, 1, 4), "f4")}))
    refused("expected pictures or captions", run, unseen, out)
    small = written("small", subject("e", 60, 0), stimuli=replace(pictures, pixels=pictures.pixels[:, ::2, ::2].copy()))
    refused("expected pictures of 16 pixels a side", run, small, out)
    with pytest.raises(UserError, match="expected a new or an empty folder"):
        bj.adapt(run, new, adapted.path)
    refused("--seed: expected 0 or more, got -1", run, new, out, seed=-1)
    partly = Stimuli(IDS, features={"x": np.zeros((96, 1, 4), "f4")}, captions={s: ["red left"] for s in IDS[:20]})
    refused(
        "expected .* captions of all 48 .*, got captions of 20",
        run,
        written("partly", subject("e", 60, 0), stimuli=partly),
        out,
    )
    responses = new.averages("c", "test").responses[:2]
    with pytest.raises(UserError, match="a whole response of an adapted subject as a condition"):
        adapted.score({"image": new.images(IDS[:2])}, "brain:c", responses)


def test_pictures_that_the_run_was_trained_on_are_told(run, adapted, new, written, pictures, capsys, tmp_path):
    bj.adapt(run, new, tmp_path / "one", stimuli=5)
    assert "test stimuli" not in capsys.readouterr().err
    turned = subject("e", 60, 0)
    split = ["test" if name < "s010" else "train" for name in turned.trials.stimulus_id]
    leaking = written("leaking", replace(turned, trials=turned.trials._replace(split=split)))
    bj.adapt(run, leaking, tmp_path / "two", stimuli=5)
    told = "10 of 10 test stimuli of e ('s000' first) are pictures that"
    assert told in capsys.readouterr().err
    bj.adapt(adapted.path, leaking, tmp_path / "three", stimuli=5)  # its own dataset shows none of these
    assert told in capsys.readouterr().err
    twice = bj.adapt(adapted.path, written("between", subject("d", 60, 24)), tmp_path / "four", stimuli=5)
    bj.adapt(twice.path, leaking, tmp_path / "five", stimuli=5)
    assert told in capsys.readouterr().err


def test_the_command(run, new, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["adapt", str(run), str(new.path), "--subject", "c", "--stimuli", "5", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip().endswith(str(out))
    assert Checkpoint.load(out).tokenizers.brain.subjects == ("a", "b", "c")
    assert main(["adapt", str(run), str(new.path), "--out", str(out)]) == 2
    assert "Choose another --out" in capsys.readouterr().err
