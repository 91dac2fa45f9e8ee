"""Each leak is planted and caught; what is sound stays silent."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from brainjanus.core.space import BrainSpace
from brainjanus.data.audit import find_leaks, shuffled_ids
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.write import write_dataset

SESSIONS, PER_SESSION, SITES = 3, 40, 24


def make(path, change=None, *, zscore="none", num_test=8, num_val=0, sites=SITES, people=("s1",), dtype="float32"):
    """A recording of 120 trials, one in five of them test; `change(responses, session, run, split)` spoils it."""
    rng = np.random.default_rng(0)
    num = SESSIONS * PER_SESSION
    session, run = np.repeat(np.arange(SESSIONS), PER_SESSION), np.arange(num) // 10 % 4
    place = np.arange(num) % PER_SESSION * 13 % PER_SESSION  # test trials are spread over the runs
    split = np.where(place < num_test, "test", np.where(place < num_test + num_val, "val", "train"))
    ids = [f"im{i:03d}" for i in range(num)]
    pixels = rng.integers(0, 256, (num, 4, 4, 3), dtype=np.uint8)
    subjects = []
    for name in people:
        values = rng.normal(rng.normal(2, 3, sites), rng.uniform(0.5, 4, sites), (num, sites)).astype(np.float32)
        values += session[:, None]
        if change is not None:
            values = change(values, session, run, split)
        table = Trials(ids, session, run, np.zeros(num, np.int64), split.tolist())
        subjects.append(Subject(BrainSpace(name, sites), values, table))
    return write_dataset(
        path, name="t", modality="fMRI", subjects=subjects, stimuli=Stimuli(ids, pixels), zscore=zscore,
        responses_dtype=dtype,
    )  # fmt: skip


def zscored_by(*, within="session", using=("train", "test"), ddof=0, cast=np.float32):
    def change(values, session, run, split):
        groups = {"all": session * 0, "session": session, "run": session * 100 + run}[within]
        out = values.copy()
        for group in np.unique(groups):
            here = groups == group
            seen = values[here & np.isin(split, using)]
            out[here] = (values[here] - seen.mean(axis=0)) / seen.std(axis=0, ddof=ddof)
        return out.astype(cast).astype(np.float32)

    return change


def bfloat16(values):
    """Rounded to 8 bits of mantissa."""
    bits = (np.asarray(values, np.float32).view(np.uint32) + 0x8000) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def edited_trials(dataset: Dataset, subject: str, edit) -> Dataset:
    """The dataset with other trials, as if the table had been edited on disk."""
    file = dataset.path / f"subjects/{subject}/trials.tsv"
    edit(dataset.trials(subject)).save(file)
    return with_sizes(dataset)


def with_sizes(dataset: Dataset) -> Dataset:
    manifest = json.loads((dataset.path / "dataset.json").read_text())
    for name, facts in manifest["files"].items():
        facts["bytes"] = (dataset.path / name).stat().st_size
    (dataset.path / "dataset.json").write_text(json.dumps(manifest))
    return Dataset.open(dataset.path)


def only(leaks):
    assert len(leaks) == 1, leaks
    return leaks[0]


# ---------------------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize("zscore", ["none", "all", "session"])
def test_a_sound_dataset_is_silent(tmp_path, zscore):
    assert find_leaks(make(tmp_path / "d", zscore=zscore, people=("s1", "s2"))) == []


def test_a_small_recording_with_repeats_is_silent(dataset):
    assert find_leaks(dataset) == []


@pytest.mark.parametrize("within", ["all", "session", "run"])
@pytest.mark.parametrize("using", [("train",), ("train", "val")])
def test_statistics_of_training_trials_are_silent(tmp_path, within, using):
    change = zscored_by(within=within, using=using, cast=np.float16)
    assert find_leaks(make(tmp_path / "d", change, num_val=4)) == []


def test_a_large_offset_is_silent(tmp_path):
    assert find_leaks(make(tmp_path / "d", lambda values, *_: values + 30_000, zscore="session")) == []


# ---------------------------------------------------------------------------------------------------- stimuli


def test_a_test_stimulus_in_training_is_caught(tmp_path):
    def edit(trials):
        ids = list(trials.stimulus_id)
        ids[trials.rows("train")[0]] = ids[trials.rows("test")[0]]
        return trials._replace(stimulus_id=ids)

    leak = only(find_leaks(edited_trials(make(tmp_path / "d"), "s1", edit)))
    assert (leak.kind, leak.subject, leak.certain) == ("stimulus", "s1", True)
    assert leak.evidence == {"splits": ["train", "test"], "num_stimuli": 1, "stimuli": ["im000"]}
    assert leak.sentence.startswith(
        "1 stimuli of s1: expected each stimulus in one split, got them in train and in test"
    )


def test_a_test_stimulus_that_trains_another_subject_is_caught(tmp_path):
    def edit(trials):
        split = list(trials.split)
        split[trials.rows("test")[2]] = "train"
        return trials._replace(split=split)

    leaks = find_leaks(edited_trials(make(tmp_path / "d", people=("s1", "s2")), "s2", edit))
    leak = only([leak for leak in leaks if leak.kind == "stimulus"])
    assert leak.subject is None
    assert "of different subjects" in leak.sentence
    assert leak.evidence["num_stimuli"] == 1


def test_the_same_picture_under_two_ids_in_two_splits_is_caught(tmp_path):
    dataset = make(tmp_path / "d")
    trials, file = dataset.trials("s1"), dataset.path / "images.safetensors"
    train, test = trials.rows("train")[3], trials.rows("test")[1]
    arrays = {name: array.copy() for name, array in load_file(file).items()}
    arrays["pixels"][test] = arrays["pixels"][train]
    save_file(arrays, file)
    leak = only(find_leaks(with_sizes(dataset)))
    assert (leak.kind, leak.subject) == ("picture", None)
    assert leak.evidence["pairs"] == [[trials.stimulus_id[train], trials.stimulus_id[test]]]


def test_the_same_picture_twice_in_one_split_is_silent(tmp_path):
    dataset = make(tmp_path / "d")
    file, rows = dataset.path / "images.safetensors", dataset.trials("s1").rows("train")
    arrays = {name: array.copy() for name, array in load_file(file).items()}
    arrays["pixels"][rows[0]] = arrays["pixels"][rows[1]]
    save_file(arrays, file)
    assert find_leaks(with_sizes(dataset)) == []


# ---------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("cast", [np.float32, np.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("within", ["all", "session", "run"])
def test_statistics_that_saw_test_trials_are_caught(tmp_path, within, cast, ddof):
    leak = only(find_leaks(make(tmp_path / "d", zscored_by(within=within, cast=cast, ddof=ddof))))
    assert (leak.kind, leak.subject, leak.certain) == ("statistics", "s1", True)
    assert leak.evidence["within"] == {"all": "all trials"}.get(within, within)
    assert leak.evidence["deviation"]["all"] * 5 < leak.evidence["deviation"]["training"]
    assert "over training and test trials together" in leak.sentence


def test_bfloat16_is_no_hiding_place(tmp_path):
    def change(*arrays):
        return bfloat16(zscored_by()(*arrays))

    assert only(find_leaks(make(tmp_path / "d", change))).kind == "statistics"


def test_validation_trials_may_have_been_used_too(tmp_path):
    change = zscored_by(using=("train", "val", "test"))
    assert only(find_leaks(make(tmp_path / "d", change, num_val=4))).evidence["within"] == "session"


def test_a_leak_in_one_session_is_named(tmp_path):
    def change(values, session, run, split):
        leaked = zscored_by()(values, session, run, split)
        return np.where(session[:, None] == 1, leaked, zscored_by(using=("train",))(values, session, run, split))

    leak = only(find_leaks(make(tmp_path / "d", change)))
    assert leak.evidence["groups"] == [[1]]
    assert "(session 1)" in leak.sentence


def test_test_trials_that_are_zscored_by_themselves_are_caught(tmp_path):
    def change(values, session, run, split):
        own = zscored_by(using=("test",))(values, session, run, split)
        return np.where((split == "test")[:, None], own, zscored_by(using=("train",))(values, session, run, split))

    for zscore in ("none", "session"):  # z-scoring with training trials does not undo it
        leak = only(find_leaks(make(tmp_path / zscore, change, zscore=zscore)))
        assert "over the held-out trials by themselves" in leak.sentence


def test_what_zscoring_by_training_trials_undoes_is_no_leak(tmp_path):
    leaked = {within: zscored_by(within=within) for within in ("all", "session", "run")}
    for within, zscore, is_leak in (
        ("all", "all", False), ("all", "session", False), ("session", "all", True), ("session", "session", False),
        ("run", "session", True),
    ):  # fmt: skip
        found = find_leaks(make(tmp_path / f"{within}-{zscore}", leaked[within], zscore=zscore))
        assert [leak.kind for leak in found] == ["statistics"] * is_leak, (within, zscore)


def test_stored_statistics_of_other_trials_are_caught(tmp_path):
    """A session's responses were z-scored again on disk, with the test trials."""
    dataset = make(tmp_path / "d", zscore="session")
    trials, zscore = dataset.trials("s1"), dataset.zscore("s1")
    folder = dataset.path / "subjects/s1"
    values = dataset.responses("s1")
    change = zscored_by()(values, trials.session, trials.run, np.array(trials.split))
    save_file({"responses": np.ascontiguousarray(change)}, folder / "responses.safetensors")
    leak = only(find_leaks(with_sizes(dataset)))
    assert leak.kind == "statistics"
    assert "in zscore.safetensors, got those of training and test trials together" in leak.sentence
    assert leak.evidence["groups"] == [[session] for session in zscore.session]
    save_file({"responses": values + 0.1}, folder / "responses.safetensors")
    assert "got others" in only(find_leaks(with_sizes(dataset))).sentence


def test_what_cannot_be_told_is_said(tmp_path):
    """One test trial among 2,000, in numbers with one decimal."""
    rng = np.random.default_rng(0)
    split = ["train"] * 1999 + ["test"]
    values = rng.standard_normal((2000, 6))
    seen = values[:-1]
    values = np.round((values - seen.mean(axis=0)) / seen.std(axis=0), 1)
    zeros = np.zeros(2000, np.int64)
    ids = [f"i{i}" for i in range(2000)]
    subject = Subject(BrainSpace("s1", 6), values, Trials(ids, zeros, zeros, zeros, split))
    dataset = write_dataset(
        tmp_path / "d", name="t", modality="m", subjects=[subject], stimuli=Stimuli(ids), zscore="none"
    )
    leak = only(find_leaks(dataset))
    assert (leak.kind, leak.certain) == ("unclear statistics", False)
    assert "It cannot be told" in leak.sentence


def test_few_sites_need_exact_numbers(tmp_path):
    assert only(find_leaks(make(tmp_path / "a", zscored_by(), sites=2))).kind == "statistics"
    assert find_leaks(make(tmp_path / "b", zscored_by(cast=np.float16), sites=2)) == []


def test_random_data_near_zero_and_one_is_silent(tmp_path):
    rng = np.random.default_rng(5)
    for number in range(8):
        dataset = make(tmp_path / str(number), lambda values, *_: rng.standard_normal(values.shape).astype(np.float32))
        assert find_leaks(dataset) == []


# ---------------------------------------------------------------------------------------------------- responses


@pytest.mark.parametrize("zscore", ["none", "session", "all"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_trial_copied_into_the_test_split_is_caught(tmp_path, zscore, dtype):
    def change(values, session, run, split):
        test, train = np.flatnonzero(split == "test"), np.flatnonzero(split == "train")
        values[test[-1]] = values[train[0]]  # in another session
        return values

    leak = only(find_leaks(make(tmp_path / "d", change, zscore=zscore, dtype=dtype)))
    assert (leak.kind, leak.subject) == ("response", "s1")
    trials = Dataset.open(tmp_path / "d").trials("s1")
    assert leak.evidence["trials"] == [[int(trials.rows("train")[0]), int(trials.rows("test")[-1])]]


def test_copies_within_training_and_empty_trials_are_silent(tmp_path):
    def change(values, session, run, split):
        train = np.flatnonzero(split == "train")
        values[train[5]] = values[train[6]]
        values[[train[7], np.flatnonzero(split == "test")[0]]] = 0
        return values

    assert find_leaks(make(tmp_path / "d", change)) == []


def test_few_neurons_count_alike_by_chance(tmp_path):
    rng = np.random.default_rng(0)

    def change(values, *_):
        return rng.poisson(1.0, values.shape).astype(np.float32)

    dataset = make(tmp_path / "d", change, sites=4)
    trials, values = dataset.trials("s1"), dataset.responses("s1")
    train = {tuple(row) for row in values[trials.rows("train")].tolist()}
    assert any(tuple(row) in train for row in values[trials.rows("test")].tolist())
    assert find_leaks(dataset) == []


# ---------------------------------------------------------------------------------------------------- order


def correlations(rng, num, noise, sites=40):
    """Pattern r of noisy predictions: entry [i, j] of prediction j with the measurement of stimulus i."""
    true = rng.standard_normal((num, sites))
    predicted = true + noise * rng.standard_normal((num, sites))
    return np.corrcoef(true, predicted)[:num, num:]


def names(num):
    return [str(i + 1) for i in range(num)]


@pytest.mark.parametrize("num", [10, 33, 200])
def test_good_predictions_are_silent(num):
    rng = np.random.default_rng(0)
    for noise in (0, 1, 3):
        assert shuffled_ids(correlations(rng, num, noise), names(num)) is None


@pytest.mark.parametrize("num", [10, 33, 200])
@pytest.mark.parametrize("shift", [1, -1, 3])
def test_a_shift_is_named(num, shift):
    scores = correlations(np.random.default_rng(0), num, 1)
    found = shuffled_ids(np.roll(scores, shift, axis=0), names(num))
    assert (found.kind, found.evidence["shift"]) == ("shift", shift)
    places = {1: "1 place later", -1: "1 place earlier", 3: "3 places later"}[shift]
    assert f"predictions fit the stimulus {places}, going on at the other end" in found.sentence
    assert found.evidence["score"] == pytest.approx(np.trace(scores) / num)


def test_a_shift_that_does_not_go_on_at_the_other_end_is_named():
    scores = correlations(np.random.default_rng(0), 63, 1)
    found = shuffled_ids(scores[3:, :60], names(60))  # prediction j was made for stimulus j - 3
    assert (found.kind, found.evidence["shift"]) == ("shift", -3)
    assert "3 places earlier." in found.sentence


@pytest.mark.parametrize("num", [10, 33, 200])
def test_reversed_halves_and_permuted_predictions_are_named(num):
    rng = np.random.default_rng(0)
    scores = correlations(rng, num, 0.5)
    assert shuffled_ids(scores[::-1], names(num)).kind == "reversed"
    assert shuffled_ids(np.roll(scores, num // 2, axis=1), names(num)).kind == "halves"
    order = rng.permutation(num)
    found = shuffled_ids(scores[:, order], names(num))
    assert found.kind == "permuted"
    made_for = dict(found.evidence["predictions"])
    assert all(made_for[names(num)[j]] == names(num)[order[j]] for j in range(num) if names(num)[j] in made_for)


@pytest.mark.parametrize("made", ["text", "numbers"])
def test_text_taken_for_numbers_is_named(made):
    """Predictions in one order of ids, handed out in the other; rows and columns are in a third."""
    rng = np.random.default_rng(0)
    ids = [str(i) for i in rng.permutation(60) + 1]
    text, numbers = sorted(ids), sorted(ids, key=int)
    order, labels = (text, numbers) if made == "text" else (numbers, text)
    meant = {label: true for true, label in zip(order, labels, strict=True)}  # the id a prediction has: its true one
    scores = correlations(rng, 60, 1)[:, [ids.index(meant[label]) for label in ids]]
    found = shuffled_ids(scores, ids)
    assert found.kind == "order"
    first = "sorted as text ('10' before '2')" if made == "text" else "sorted as numbers ('2' before '10')"
    assert f"that the ids name when {first}, while they were handed out sorted as" in found.sentence


@pytest.mark.parametrize(("num", "draws"), [(10, 150), (25, 60), (100, 10), (1000, 1)])
def test_noise_is_silent(num, draws):
    rng = np.random.default_rng(num)
    makers = {
        "independent": lambda: rng.standard_normal((num, num)),
        "outliers": lambda: rng.standard_cauchy((num, num)),
        "top 1": lambda: (rng.random((num, num)) < 1 / num).astype(float),
        "few sites": lambda: np.corrcoef(rng.standard_normal((2 * num, 4)))[:num, num:],
        "slow": lambda: np.corrcoef(rng.standard_normal((2 * num, 30)).cumsum(axis=0))[:num, num:],
        "a bias": lambda: rng.standard_normal((num, num)) + 3 * rng.standard_normal((num, 1)),
    }
    found = {
        name: sum(shuffled_ids(draw(), names(num)) is not None for _ in range(draws)) for name, draw in makers.items()
    }
    assert all(count <= 0.01 * draws for count in found.values()), found


def test_degenerate_scores_are_silent():
    rng = np.random.default_rng(0)
    assert shuffled_ids(np.ones((20, 20)), names(20)) is None
    assert shuffled_ids(np.full((20, 20), np.nan), names(20)) is None
    assert shuffled_ids(np.roll(np.eye(9), 1, axis=0), names(9)) is None  # too few to tell
    column = np.repeat(rng.standard_normal((1, 20)), 20, axis=0)  # what a prediction earns anywhere
    assert shuffled_ids(column, names(20)) is None


def test_missing_scores_do_not_hide_a_shift():
    scores = np.roll(correlations(np.random.default_rng(0), 40, 1), 1, axis=0)
    scores[::7, ::5] = np.nan
    assert shuffled_ids(scores, names(40)).kind == "shift"


def test_identification_that_is_shifted_is_found():
    assert shuffled_ids(np.roll(np.eye(50), 1, axis=0), names(50)).kind == "shift"
