"""The card of a dataset says what the dataset is, and nothing that it must not; the fingerprint knows nothing of it."""

import json

import numpy as np
import pytest
import yaml

from brainjanus.core.card import INVITATION, yours_in
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.datasheet import CARD, NSD, PERSONAL, SIMULATED, dataset_card
from brainjanus.data.write import write_dataset

RESPONSES = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)


def written(path, name="mine", ids=None, *, modality="fMRI", provenance=None, overwrite=False) -> Dataset:
    """Twelve trials of one subject, ten of them in training, each stimulus once, without coordinates."""
    ids = ids or [f"secret-{i}" for i in range(12)]
    once = np.ones(12, np.int64)
    trials = Trials(ids, np.arange(12) // 6, once, once, ["train"] * 10 + ["test"] * 2)
    pixels = np.random.default_rng(0).integers(0, 255, (12, 4, 4, 3)).astype(np.uint8)
    return write_dataset(
        path, name=name, modality=modality, subjects=[Subject(BrainSpace("p1", 5), RESPONSES, trials)],
        stimuli=Stimuli(ids, pixels), zscore="all", provenance=provenance, overwrite=overwrite,
    )  # fmt: skip


def section(text: str, heading: str) -> str:
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0].strip()


def test_its_facts_are_those_of_the_dataset(study):
    text = (study.path / CARD).read_text()
    holds = section(text, "What it holds")
    assert "| recording | fMRI (simulated) |" in holds
    assert f"| stimuli | {len(study.stimulus_ids)} |" in holds
    assert study.fingerprint in holds and "16 x 16 pixels" in holds
    subjects = section(text, "Subjects").splitlines()[2:4]
    for line, who in zip(subjects, study.subjects, strict=True):
        trials, space = study.trials(who), study.space(who)
        ceiling = np.median(space.noise_ceiling(1))
        split = [len(trials.rows(name)) for name in ("train", "val", "test")]
        shown = [who, f"{space.num_sites} voxels", *map(str, split), "1", "in mm", "V1", f"{ceiling:.2f}"]
        assert [cell.strip() for cell in line.strip("| ").split("|")] == shown
    assert "| train | 64 | 1 to 2 |\n| test | 16 | 2 |" in section(text, "Stimuli and splits")
    assert "over all sessions, with training trials only" in section(text, "What was done to the responses")
    assert section(text, "Privacy") == SIMULATED


def test_its_front_matter(study):
    facts = yaml.safe_load((study.path / CARD).read_text().split("---\n")[1])
    assert facts["pretty_name"] == "study"
    assert facts["size_categories"] == ["n<1K"]
    assert {"fmri", "simulated", "neuroscience"} <= set(facts["tags"])
    assert "license" not in facts


def test_limits_follow_from_what_is_missing(tmp_path):
    made = written(tmp_path / "data", modality="spike counts")
    limits = section((made.path / CARD).read_text(), "Limits")
    for told in (
        "not fMRI", "1 subject:", "Where sites lie is not known (p1)", "Nothing was shown twice to p1",
        "2 test stimuli", "no captions",
    ):  # fmt: skip
        assert told in limits
    assert "no pictures" not in limits
    assert PERSONAL in (made.path / CARD).read_text()


def test_neither_stimuli_nor_paths_are_told(tmp_path):
    made = written(tmp_path / "data", provenance={"path": str(tmp_path), "layout": "arrays", "notices": ["secret-3"]})
    text = (made.path / CARD).read_text()
    assert "secret-" not in text and str(tmp_path) not in text
    assert "in the layout arrays" in text and "(notices: 1)" in text


def test_the_fingerprint_and_the_checks_know_nothing_of_it(tmp_path):
    made = written(tmp_path / "data")
    (made.path / CARD).write_text("anything")
    Dataset.open(made.path).verify()
    assert CARD not in made.manifest["files"]
    assert written(tmp_path / "again").fingerprint == made.fingerprint


@pytest.mark.parametrize("own", [None, "# My own words\n"])
def test_a_dataset_that_is_replaced_keeps_its_notes(tmp_path, own):
    card = written(tmp_path / "data").path / CARD
    card.write_text(own or card.read_text().replace(INVITATION, "Consent form 7."))
    written(tmp_path / "data", "renamed", overwrite=True)
    assert "# renamed" in card.read_text()
    assert yours_in(card).text == (own or "Consent form 7.").strip()


def test_a_card_that_cannot_be_written_costs_no_dataset(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("brainjanus.data.write.dataset_card", lambda _: 1 / 0)
    made = written(tmp_path / "data")
    assert not (made.path / CARD).exists()
    made.verify()
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_terms_are_those_of_the_stimuli_and_not_of_the_layout_alone(tmp_path):
    ids = [f"nsd-{i:05}" for i in range(12)]
    text = (written(tmp_path / "nsd", ids=ids).path / CARD).read_text()
    assert yaml.safe_load(text.split("---\n")[1])["license_name"] == "nsd-terms"
    assert section(text, "Licence") == NSD.terms
    assert "10.1038/s41593-021-00962-x" in section(text, "How to cite")
    own = (written(tmp_path / "own", provenance={"layout": "mindeye2"}).path / CARD).read_text()
    assert "nsd-terms" not in own and section(own, "Licence").startswith("None is set")
    things = (written(tmp_path / "things", provenance={"layout": "things-meg"}).path / CARD).read_text()
    assert "eLife" in section(things, "How to cite")


@pytest.mark.parametrize("damage", ["", "{", '{"fingerprint": "another"}', "[]"])
def test_checks_are_those_of_the_doctor(tmp_path, damage):
    made = written(tmp_path / "data")
    findings = [
        {"light": "red", "kind": "shifted | ids", "check": "order"},
        {"light": "green", "kind": "", "check": "x"},
    ]
    report = {"fingerprint": made.fingerprint, "lights": {"red": 1, "green": 1, "grey": 0}, "findings": findings}
    (tmp_path / "data-doctor").mkdir()
    (tmp_path / "data-doctor/doctor.json").write_text(damage or json.dumps(report))
    checks = section(dataset_card(made).text(), "Checks")
    if damage:
        assert "has not looked at it" in checks
    else:
        assert checks == "`brainjanus doctor` found: 1 red, 1 green.\n\n- red: shifted \\| ids"
