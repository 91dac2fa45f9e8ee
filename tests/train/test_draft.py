"""Drafts solved from data: maps between brains that never saw the same pictures, out of fold, without test stimuli."""

import numpy as np
import pytest
import torch

from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.write import write_dataset
from brainjanus.train.draft import FOLDS, descriptions_of, solve_drafts


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
