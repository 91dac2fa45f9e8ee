"""Twenty planted defects, each found and called by its name; sound data stay silent; predictions, page and command.

    nan  constant site  constant in a session  duplicated trials  stimulus in both splits  identical picture
    near-duplicate  flipped copy  z-scored with test  double z-scored  one session unscaled  ids shifted by one
    ids permuted  ids reversed  one session shifted  session drift  captions permuted  captions shifted
    missing session  repeats that are copies

They are planted by `planted.py`, which `benchmarks/doctor.py` uses, too, over more seeds.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import brainjanus as bj
from brainjanus.cli import main
from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.doctor import diagnose, doctor

_spec = importlib.util.spec_from_file_location("planted", Path(__file__).with_name("planted.py"))
planted = importlib.util.module_from_spec(_spec)
sys.modules["planted"] = planted
_spec.loader.exec_module(planted)


def alarms(findings):
    return [one for one in findings if one.light in ("red", "yellow")]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return planted.clean(0).write(tmp_path_factory.mktemp("sound") / "data")


@pytest.mark.parametrize("name", planted.DEFECTS)
def test_a_planted_defect_is_found_and_named(name, tmp_path):
    plant, check, kind, evidence = planted.DEFECTS[name]
    study = planted.clean(0)
    plant(study)
    found = alarms(diagnose(study.write(tmp_path / "data")))
    told = [one for one in found if (one.check, one.kind) == (check, kind)]
    assert len(told) == 1, found
    assert {key: told[0].evidence[key] for key in evidence} == evidence
    assert told[0].sentence.endswith(".")
    assert told[0].remedy
    besides = {one.kind for one in found} - {kind}
    assert besides <= planted.BESIDES.get(name, set()), found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sound_data_are_silent(seed, tmp_path):
    found = diagnose(planted.clean(seed).write(tmp_path / "data"), checksums=True)
    assert alarms(found) == []
    assert sum(one.light == "green" for one in found) >= 14


def test_the_tables_of_defects_has_twenty(project_root):
    assert len(planted.DEFECTS) == 20


@pytest.mark.parametrize("seed", [0, 7])
def test_a_row_that_is_missing_within_a_session_is_found(seed, tmp_path):
    """Where its later stretches tell: of small sessions like these, not in every recording."""
    study = planted.clean(seed)
    planted.part_of_a_session_shifted(study)
    (found,) = [one for one in alarms(diagnose(study.write(tmp_path / "data"))) if one.check == "stimulus order"]
    assert (found.kind, found.evidence["session"], found.evidence["shift"]) == ("part of a session shifted", 2, -1)


# ---------------------------------------------------------------------------------------------------- files


def test_a_changed_file_is_found_by_its_checksum(tmp_path):
    dataset = planted.clean(0).write(tmp_path / "data")
    file = dataset.path / "subjects/s1/zscore.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = [one for one in diagnose(dataset.path, checksums=True) if one.check == "files"]
    assert [(one.light, one.kind) for one in found] == [("red", "changed files")]
    assert found[0].evidence["files"] == ["subjects/s1/zscore.safetensors"]


def test_a_missing_file_is_a_finding_not_an_error(tmp_path):
    dataset = planted.clean(0).write(tmp_path / "data")
    (dataset.path / "captions.json").unlink()
    (only,) = diagnose(dataset.path)
    assert (only.light, only.kind, only.evidence["files"]) == ("red", "damaged files", ["captions.json"])


def test_tables_that_do_not_fit_are_told(tmp_path):
    dataset = planted.clean(0).write(tmp_path / "data")
    trials = dataset.trials("s1")
    short = trials._replace(
        stimulus_id=trials.stimulus_id[1:], split=trials.split[1:], session=trials.session[1:], run=trials.run[1:],
        repeat=trials.repeat[1:],
    )  # fmt: skip
    short.save(dataset.path / "subjects/s1/trials.tsv")
    planted.as_written(dataset.path)
    (red,) = [one for one in diagnose(dataset.path) if one.light == "red"]
    assert red.kind == "shapes"
    assert "responses are [192, 60] for 191 trials and 60 sites" in red.sentence


# ---------------------------------------------------------------------------------------------------- predictions


@pytest.fixture(scope="module")
def predicted(sound):
    """Noisy copies of the measured averages: good predictions, in the order of ids."""
    ids, responses, _ = sound.averages("s1", "test")
    return ids, (0.6 * responses + 0.2 * np.random.default_rng(0).standard_normal(responses.shape)).astype(np.float32)


def told_of(sound, tmp_path, ids, values):
    np.savez(tmp_path / "predicted.npz", responses=values, ids=np.array(ids))
    return {
        one.check: one for one in diagnose(sound, tmp_path / "predicted.npz") if one.check.startswith("predictions")
    }


def test_good_predictions_are_green(sound, predicted, tmp_path):
    found = told_of(sound, tmp_path, *predicted)
    assert [one.light for one in found.values()] == ["green"] * 3


def test_shifted_predictions_are_named(sound, predicted, tmp_path):
    ids, values = predicted
    one = told_of(sound, tmp_path, ids, np.roll(values, 2, axis=0))["predictions: order"]
    assert (one.light, one.kind, abs(one.evidence["shift"])) == ("red", "predictions shifted", 2)


def test_raw_betas_are_named_and_their_order_is_still_looked_at(sound, predicted, tmp_path):
    ids, values = predicted
    units = sound.units("s1")
    found = told_of(sound, tmp_path, ids, (values * units.std * 300 + units.mean * 300).astype(np.float32))
    assert (found["predictions: units"].light, found["predictions: units"].kind) == ("red", "another scale")
    found = told_of(sound, tmp_path, ids, (values * units.std + 9 * units.std + units.mean).astype(np.float32))
    assert found["predictions: units"].light == "red"
    assert found["predictions: order"].light == "green"


def test_foreign_and_missing_ids_are_told(sound, predicted, tmp_path):
    ids, values = predicted
    one = told_of(sound, tmp_path, [str(row) for row in range(len(ids))], values)["predictions: ids"]
    assert (one.light, one.kind, one.evidence["num_foreign"]) == ("red", "foreign ids", len(ids))
    one = told_of(sound, tmp_path, ids[2:], values[2:])["predictions: ids"]
    assert (one.light, one.kind, one.evidence["missing"]) == ("yellow", "missing ids", ids[:2])


def test_captions_and_pictures_are_looked_at(sound, tmp_path):
    ids = sound.split_ids("test")
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({name: sound.captions(name)[0] for name in ids}))
    found = {one.check: one for one in diagnose(sound, file) if one.check.startswith("predictions")}
    assert {one.light for one in found.values()} == {"green"}
    file.write_text(json.dumps({name: sound.captions(ids[row - 1])[0] for row, name in enumerate(ids)}))
    found = {one.check: one for one in diagnose(sound, file) if one.check.startswith("predictions")}
    assert found["predictions: order"].kind == "predictions shifted"
    np.savez(tmp_path / "seen.npz", pictures=sound.images(ids)[::-1], ids=np.array(ids))
    found = {one.check: one for one in diagnose(sound, tmp_path / "seen.npz") if one.check.startswith("predictions")}
    assert found["predictions: order"].kind == "predictions reversed"


def test_predictions_with_another_mask_are_refused(sound, predicted, tmp_path):
    ids, values = predicted
    with pytest.raises(UserError, match=r"expected responses of as many sites as a subject has \(s1 60\), got 59"):
        told_of(sound, tmp_path, ids, values[:, 1:])


# ---------------------------------------------------------------------------------------------------- page, command


def test_the_page_and_the_json_hold_every_finding(sound, tmp_path):
    found = doctor(sound.path, tmp_path / "out")
    page = (tmp_path / "out/doctor.html").read_text()
    facts = json.loads((tmp_path / "out/doctor.json").read_text())
    assert [one["check"] for one in facts["findings"]] == [one.check for one in found.findings]
    assert facts["lights"]["red"] == 0
    assert facts["fingerprint"] == sound.fingerprint
    assert page.count('<article class="finding') == len(found.findings)
    assert "http" not in page.replace("http://www.w3.org", "")
    assert 'aria-label="fit by shift"' in page
    assert 'aria-label="sessions by sessions"' in page


def test_look_alike_pictures_are_shown(tmp_path):
    study = planted.clean(0)
    planted.flipped(study)
    doctor(study.write(tmp_path / "data").path, tmp_path / "out")
    page = (tmp_path / "out/doctor.html").read_text()
    assert page.count('<figure class="pair"><img') == 1


def test_the_command_says_by_its_status_what_is_red(sound, tmp_path, capsys):
    assert main(["doctor", str(sound.path), "--out", str(tmp_path / "out")]) == 0
    assert "stimulus order" in capsys.readouterr().out
    study = planted.clean(0)
    planted.reversed_(study)
    study.write(tmp_path / "bad")
    with pytest.raises(SystemExit) as ended:
        main(["doctor", str(tmp_path / "bad"), "--json"])
    assert ended.value.code == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["findings"][0]["kind"] == "ids reversed"
    assert (tmp_path / "bad-doctor/doctor.html").is_file()
    assert main(["doctor", str(tmp_path / "nothing")]) == 2
    assert "expected a dataset folder" in capsys.readouterr().err


def test_what_is_no_dataset_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name, what in {"notes.txt": "a file that this package does not know", "empty": "an empty folder"}.items():
        with pytest.raises(UserError, match=f"{name}: expected a dataset folder, got {what}. Is the path right"):
            diagnose(tmp_path / name)


def test_sessions_of_another_scale_hide_neither_order_nor_raise_what_follows(tmp_path):
    study = planted.clean(4)
    planted.one_session_unscaled(study)
    found = {one.check: one for one in diagnose(study.write(tmp_path / "data"))}
    assert found["scale"].light == "red"
    assert [found[check].light for check in ("session drift", "noise ceilings")] == ["grey", "grey"]
    assert found["stimulus order"].light == "green"


def test_it_is_a_call_of_the_package(sound):
    assert bj.diagnose(Dataset.open(sound.path))[0].light in ("green", "grey")
