"""Drafts solved from data: maps between brains that never saw the same pictures, out of fold, without test stimuli."""

import numpy as np
import pytest
import torch

from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.write import write_dataset
from brainjanus.model.draft import PICTURE_SIDE, draft_of
from brainjanus.model.sequence import Block
from brainjanus.train.draft import FOLDS, Described, descriptions_of, solve_drafts, standardised, windows


def r(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Subjects a and b are linear in five facts of a stimulus; their training stimuli differ, test stimuli do not."""
    rng = np.random.default_rng(0)
    own = {s: [f"{s}{i:03}" for i in range(160)] for s in "ab"}
    test = [f"t{i:03}" for i in range(60)]
    ids = [*own["a"], *own["b"], *test]
    facts = rng.standard_normal((len(ids), 5)).astype(np.float32)
    subjects = []
    for name, sites in (("a", 40), ("b", 30)):
        shown = [ids.index(i) for i in own[name] + test]
        seen = facts[shown] @ rng.standard_normal((5, sites))
        zeros = np.zeros(len(shown), int)
        trials = Trials([ids[i] for i in shown], zeros, zeros, zeros, ["train"] * 160 + ["test"] * 60)
        responses = (seen + rng.standard_normal(seen.shape)).astype(np.float32)
        subjects.append(Subject(BrainSpace(name, sites), responses, trials))
    folder = tmp_path_factory.mktemp("planted") / "data"
    dataset = write_dataset(
        folder, name="p", modality="fMRI", subjects=subjects, stimuli=Stimuli(ids, features={"facts": facts[:, None]}),
        zscore="none",
    )  # fmt: skip
    facts_of = torch.from_numpy(dataset.features("facts", dataset.split_ids("train")))[:, 0]
    return dataset, descriptions_of([facts_of])


@pytest.fixture(scope="module")
def solved(planted):
    return solve_drafts(*planted)


def test_brains_that_never_saw_the_same_pictures_are_mapped(planted, solved):
    dataset, _ = planted
    a, b = (dataset.averages(subject, "test").responses for subject in "ab")
    carried = solved.whole.drafts.carried(torch.from_numpy(a), "a", "b")
    assert r(carried, b) > 0.8
    assert r(carried[torch.randperm(60, generator=torch.Generator().manual_seed(0))], b) < 0.3


def test_without_descriptions_only_shared_stimuli_pair_brains(planted):
    assert solve_drafts(planted[0], None).whole.drafts.pairs == ()


def test_the_test_split_has_no_part_in_it(planted, solved, tmp_path):
    dataset, descriptions = planted
    changed = []
    for subject in dataset.subjects:
        responses, trials = dataset.responses(subject), dataset.trials(subject)
        responses[trials.rows("test")] = 7 * responses[trials.rows("test")][::-1] + 3
        changed.append(Subject(dataset.space(subject), responses, trials))
    facts = dataset.features("facts", dataset.stimulus_ids)
    other = write_dataset(
        tmp_path / "data", name="p", modality="fMRI", subjects=changed,
        stimuli=Stimuli(dataset.stimulus_ids, features={"facts": facts}), zscore="none",
    )  # fmt: skip
    again = solve_drafts(other, descriptions).whole.drafts.state_dict()
    for name, value in solved.whole.drafts.state_dict().items():
        assert torch.equal(value, again[name]), name


def test_a_fold_knows_nothing_of_its_stimuli(planted, solved):
    """Changing the responses to one fold's stimuli changes every solution but that fold's."""
    dataset, descriptions = planted
    row_of = {stimulus: row for row, stimulus in enumerate(dataset.split_ids("train"))}
    assert torch.bincount(solved.fold, minlength=FOLDS).min() >= len(row_of) // FOLDS

    class Changed(Dataset):
        def averages(self, subject, split):
            found = dataset.averages(subject, split)
            mine = np.array([int(solved.fold[row_of[stimulus]]) == 1 for stimulus in found.stimulus_ids])
            return found._replace(responses=found.responses + 5 * mine[:, None].astype(np.float32))

    changed = solve_drafts(Changed(dataset.path, dataset.manifest), descriptions)
    for number in range(FOLDS):
        old, new = solved.folds[number].drafts.state_dict(), changed.folds[number].drafts.state_dict()
        same = all(old[name].shape == new[name].shape and torch.equal(old[name], new[name]) for name in old)
        assert same == (number == 1), "ranks are chosen from all, everything else out of fold"


def test_out_of_fold_rows_come_from_their_own_solution(planted, solved):
    dataset, _ = planted
    values = torch.from_numpy(dataset.averages("a", "train").responses[:9])
    row_of = {stimulus: row for row, stimulus in enumerate(dataset.split_ids("train"))}
    stimuli = torch.tensor([row_of[i] for i in dataset.averages("a", "train").stimulus_ids[:9]])
    carried = solved.at(stimuli).carried(values, "a", "b")
    for row, stimulus in enumerate(stimuli.tolist()):
        fold = solved.folds[int(solved.fold[stimulus])].drafts
        torch.testing.assert_close(carried[row : row + 1], fold.carried(values[row : row + 1], "a", "b"))


def test_expected_responses_are_those_of_an_encoding_model(planted, solved):
    dataset, _ = planted
    own = dataset.averages("a", "train").stimulus_ids
    row_of = {stimulus: row for row, stimulus in enumerate(dataset.split_ids("train"))}
    expected = solved.expected("a", torch.tensor([row_of[i] for i in own]))
    assert r(expected, dataset.averages("a", "train").responses) > 0.8


def test_pictures_are_decoded_from_responses(planted):
    """Of test stimuli, whose pictures are linear in what responses are linear in."""
    dataset, descriptions = planted
    rng = np.random.default_rng(1)
    paint = rng.standard_normal((5, 3 * PICTURE_SIDE**2)).astype(np.float32)

    def pictures(ids):
        return 0.5 + 0.1 * torch.from_numpy(dataset.features("facts", ids)[:, 0].astype(np.float32) @ paint)

    solved = solve_drafts(dataset, descriptions, pictures=pictures(dataset.split_ids("train")))
    for subject in "ab":
        averages = dataset.averages(subject, "test")
        told = solved.whole.drafts.picture(torch.from_numpy(averages.responses), subject).flatten(1)
        seen = pictures(averages.stimulus_ids)
        assert float((told - seen).square().mean()) < 0.35 * float((seen.mean(dim=0) - seen).square().mean())
        train = dataset.averages(subject, "train")
        row = {stimulus: number for number, stimulus in enumerate(dataset.split_ids("train"))}
        rows = torch.tensor([row[stimulus] for stimulus in train.stimulus_ids])
        seen, shown = pictures(train.stimulus_ids), torch.from_numpy(train.responses)
        apart = solved.at(rows).picture(shown, subject).flatten(1)
        fitted = solved.whole.drafts.picture(shown, subject).flatten(1)
        fitted, apart = (float((x - seen).square().mean()) for x in (fitted, apart))
        test = float((told - pictures(averages.stimulus_ids)).square().mean())
        assert fitted < 0.9 * apart and abs(apart - test) < 0.3 * test  # left out, they are decoded as test stimuli are
    assert solve_drafts(dataset, descriptions).whole.drafts.picture(torch.zeros(1, 40), "a") is None


def test_kinds_of_descriptions_weigh_the_same():
    generator = torch.Generator().manual_seed(0)
    wide, narrow = 100 * torch.randn(50, 20, generator=generator) + 7, torch.randn(50, 2, generator=generator)
    table = descriptions_of([wide, narrow])
    distances = torch.cdist(table, table)
    parts = [x - x.mean(dim=0) for x in (wide, narrow)]
    parts = [x / x.square().sum(dim=1).mean().sqrt() for x in parts]
    torch.testing.assert_close(distances, torch.cdist(torch.cat(parts, 1), torch.cat(parts, 1)), atol=2e-3, rtol=1e-2)
    assert descriptions_of([]) is None


@pytest.mark.parametrize("count", [3, 4, 6])
def test_a_few_stimuli_are_enough(tmp_path, count):
    rng = np.random.default_rng(0)
    ids = [*(f"s{i}" for i in range(2 * count)), "test"]
    facts = rng.standard_normal((len(ids), 1, 2)).astype(np.float32)
    subjects = []
    for name, first in (("a", 0), ("b", count)):
        zeros = np.zeros(count + 1, int)
        shown = [*ids[first : first + count], "test"]
        trials = Trials(shown, zeros, zeros, zeros, ["train"] * count + ["test"])
        subjects.append(Subject(BrainSpace(name, 7), rng.standard_normal((count + 1, 7)).astype(np.float32), trials))
    dataset = write_dataset(
        tmp_path / "few", name="few", modality="fMRI", subjects=subjects, stimuli=Stimuli(ids, features={"f": facts}),
        zscore="none",
    )  # fmt: skip
    for descriptions in (None, descriptions_of([torch.from_numpy(facts[:-1, 0])])):
        solved = solve_drafts(dataset, descriptions)
        values = torch.randn(count, 7).masked_fill(torch.arange(7) < 3, float("nan"))
        stimuli = torch.arange(count)
        assert solved.at(stimuli).complete(values, "a").isfinite().all()
        carried = solved.at(stimuli).carried(values, "a", "b")
        assert carried is None or carried.isfinite().all()


# --- what pictures and words tell


@pytest.fixture(scope="module")
def facts_of(planted):
    dataset, _ = planted
    return {s: torch.from_numpy(dataset.features("facts", dataset.split_ids(s)))[:, 0] for s in ("train", "test")}


@pytest.fixture(scope="module")
def told(planted, facts_of):
    """Pictures tell the first three facts, words the others."""
    facts = facts_of["train"]
    described = {"image": Described(facts[:, :3]), "text": Described(facts[:, 3:], varies=True)}
    return solve_drafts(*planted, described=described)


def blocks_of(facts):
    """Features by name, as the model is given them."""
    image = Block("image", vectors=facts[:, None, :3], features="seen")
    return {"image": image, "text": Block("text", vectors=facts[:, None, 3:], features="said")}


def test_pictures_and_words_tell_a_response_and_both_tell_more(planted, told, facts_of):
    dataset, _ = planted
    averages = dataset.averages("a", "test")
    row = {stimulus: number for number, stimulus in enumerate(dataset.split_ids("test"))}
    blocks = blocks_of(facts_of["test"][[row[i] for i in averages.stimulus_ids]])
    found = {
        kinds: draft_of(told.whole.drafts, {}, "a", {kind: blocks[kind] for kind in kinds.split("+")})
        for kinds in ("image", "text", "image+text")
    }
    assert all(draft.kind == kinds for kinds, draft in found.items())
    score = {kinds: r(draft.values, averages.responses) for kinds, draft in found.items()}
    assert score["image"] > 0.4 and score["text"] > 0.4
    assert score["image+text"] > 0.8
    assert draft_of(told.whole.drafts, {}, "a", {}) is None


def test_a_training_stimulus_is_told_without_its_own_response(planted, facts_of):
    """The response is changed: what is told of its stimulus stays, what is told of others does not."""
    dataset, descriptions = planted
    described = {"image": Described(facts_of["train"])}
    averages = dataset.averages("a", "train")
    changed = averages.responses.copy()
    changed[3] += 3

    class Changed(Dataset):
        def averages(self, subject, split):
            found = super().averages(subject, split)
            return found._replace(responses=changed) if (subject, split) == ("a", "train") else found

    rows = torch.tensor([dataset.split_ids("train").index(i) for i in averages.stimulus_ids])
    blocks = {"image": Block("image", vectors=facts_of["train"][rows][:, None], features="seen")}
    made, says = [], []
    for data, means in ((dataset, averages.responses), (Changed(dataset.path, dataset.manifest), changed)):
        solved = solve_drafts(data, descriptions, described=described)
        shown = solved.at(rows, lambda subject, stimuli, means=means: torch.from_numpy(means))
        made.append(shown.told(blocks, "a"))
        says.append(solved.told["image", "a"].fit.say)
    same = (says[0] - says[1]).abs().amax(dim=(0, 1)) < 3e-3  # what has a say is found with all responses
    assert same.any()
    apart = (made[0] - made[1]).abs()
    assert float(apart[3, same].max()) < 3e-3
    assert float(apart[:, same].max()) > 0.05


def test_few_stimuli_are_read_as_they_are_and_standardised(told):
    """Not where a stimulus is described in several ways, and not by many."""
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0, 0.0])
    (scale,) = standardised(x, varies=False)
    torch.testing.assert_close((x * scale).std(dim=0, correction=0), torch.tensor([1.0, 1.0, 0.0]))
    assert standardised(x, varies=True) == standardised(x.repeat(6, 1), varies=False) == []
    assert told.told["image", "a"].fit.say.shape[0] == 2
    assert told.told["text", "a"].fit.say.shape[0] == 1


def test_words_that_the_fit_did_not_read_are_left_out_nearly(planted, told, facts_of):
    """One caption of several: as if the model had been fitted without its stimulus."""
    dataset, _ = planted
    averages = dataset.averages("a", "train")
    rows = torch.tensor([dataset.split_ids("train").index(i) for i in averages.stimulus_ids])
    y, facts, left_out = torch.from_numpy(averages.responses), facts_of["train"][:, 3:], told.told["text", "a"]
    other = facts[rows[:1]] + 0.7
    made = left_out.predict(other, rows[:1], y[:1])[0]
    x, kept = facts[rows][1:], y[1:]
    a, fit = x - x.mean(0), left_out.fit
    for site in (0, 11):
        missing = a.T @ (kept[:, site] - kept[:, site].mean())
        each = [torch.linalg.solve(a.T @ a + penalty * torch.eye(2), missing) for penalty in fit.penalties[0]]
        weights = sum(say * one for say, one in zip(fit.say[0, :, site], each, strict=True))
        torch.testing.assert_close(
            made[site], ((other - x.mean(0)) @ weights)[0] + kept[:, site].mean(), atol=3e-3, rtol=2e-3
        )


def test_a_stimulus_that_nobody_saw_is_told_as_at_test(planted, told, facts_of):
    dataset, _ = planted
    unseen = torch.tensor([dataset.split_ids("train").index("b000")])
    block = {"image": blocks_of(facts_of["train"][unseen])["image"]}
    shown = told.at(unseen, lambda subject, stimuli: torch.full((1, 40), 99.0)).told(block, "a")
    torch.testing.assert_close(shown, told.whole.drafts.told(block, "a"))


def test_windows_are_places_of_the_picture():
    made = windows(7 * 7 * 3, 7, 1000)
    assert torch.equal(made[0], torch.ones(147)) and len(made) == 33
    for window in made[1:]:
        places = window.reshape(49, 3)
        assert (places == places[:, :1]).all() and places.max() > 0.9 > 0.5 > places.min()
    assert len(windows(147, 7, 100)) == len(windows(147, 0, 1000)) == 1
