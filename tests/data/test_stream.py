"""A study is streamed into the dataset that `write_dataset` makes of it, whatever stops it on the way."""

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainjanus.core.card import INVITATION, yours_in
from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data import stream as module
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials, map_tensor
from brainjanus.data.datasheet import CARD
from brainjanus.data.plan import StreamOptions, plan_study
from brainjanus.data.stored import Stored, lay_out
from brainjanus.data.stream import stream_study
from brainjanus.data.study import Found, Pictures, Recorded, Session, Study, StudyOptions
from brainjanus.data.write import write_dataset

SMALL = StreamOptions(image_size=8)


@dataclass
class Source:
    """Files of someone else: sessions in which all stimuli are shown once, in an order of their own. Counts reads."""

    num_stimuli: int = 20
    num_sites: int = 6
    num_sessions: int = 3
    zscore: str = "session"
    backwards: bool = True
    files: tuple[Path, ...] = ()
    read: list[str] = field(default_factory=list)
    stop_at: str | None = None
    error: BaseException = field(default_factory=lambda: UserError("stopped here"))

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.ids = [f"s{i:02}" for i in range(self.num_stimuli)]
        self.pixels = dict(zip(self.ids, rng.integers(0, 256, (len(self.ids), 8, 8, 3), np.uint8), strict=True))
        self.responses = [
            rng.normal(100, 3, (len(self.ids), self.num_sites)).astype(np.float32) for _ in range(self.num_sessions)
        ]
        self.shown = [[self.ids[i] for i in rng.permutation(len(self.ids))] for _ in self.responses]
        self.split = {name: "test" if i < 5 else "train" for i, name in enumerate(self.ids)}
        self.captions = {
            "coco": {name: [f"a {name}"] for name in self.ids}, "vlm": {name: [f"one {name}"] for name in self.ids}
        }  # fmt: skip
        places = rng.normal(size=(self.num_sites, 3)).astype(np.float32)
        self.space = BrainSpace("subj01", self.num_sites, coordinates_mm=places, rois={"V1": np.arange(6) < 2})

    def _reads(self, what: str) -> None:
        if what == self.stop_at:
            raise self.error
        self.read.append(what)

    def _session(self, k: int) -> np.ndarray:
        self._reads(f"session {k + 1}")
        return self.responses[k]

    def _pictures(self, ids: list[str], size: int) -> Iterator[tuple[str, np.ndarray]]:
        for name in sorted(ids, reverse=self.backwards):
            self._reads(name)
            yield name, self.pixels[name]

    def study(self, **changes: Any) -> Study:
        sessions = [
            Session(k + 1, shown, lambda k=k: self._session(k), num_bytes=self.responses[k].nbytes)
            for k, shown in enumerate(self.shown)
        ]
        study = Study(
            "fake", "planted", "fMRI", [Recorded(self.space, sessions)], Pictures(self.ids, self._pictures, 192),
            self.captions, self.split, self.zscore, [Found("betas", self.files)] if self.files else [],
        )  # fmt: skip
        return replace(study, **changes)

    def written(self, path: Path, **options: Any) -> Dataset:
        """What `write_dataset` makes of it."""
        kept = {
            name: next(n for n in self.ids if np.array_equal(self.pixels[n], self.pixels[name])) for name in self.ids
        }
        ids = [name for name in self.ids if kept[name] == name]
        shown = [kept[name] for session in self.shown for name in session]
        times: Counter[str] = Counter()
        repeat = [times.update([name]) or times[name] for name in shown]
        numbers = np.repeat(np.arange(1, self.num_sessions + 1), len(self.ids))
        trials = Trials(shown, numbers, np.ones_like(numbers), np.array(repeat), [self.split[name] for name in shown])
        said = {
            source: {name: [text for n in self.ids if kept[n] == name for text in mine[n]] for name in ids}
            for source, mine in self.captions.items()
        }
        return write_dataset(
            path, name="planted", modality="fMRI", zscore=self.zscore,
            subjects=[Subject(self.space, np.concatenate(self.responses), trials)],
            stimuli=Stimuli(
                ids, np.stack([self.pixels[name] for name in ids]), captions=said["coco"], caption_source="coco",
                further_captions={"vlm": said["vlm"]},
            ),
            **options,
        )  # fmt: skip


@pytest.fixture
def source() -> Source:
    return Source()


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the card, which says how the dataset was made."""
    files = (file for file in folder.rglob("*") if file.is_file() and file != folder / CARD)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def apart(work: Callable[[], Any]) -> int:
    """Do it in a process of its own; its exit code, which is that of a signal below 0."""

    def run() -> None:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


# --- the same dataset


@pytest.mark.parametrize("zscore", ["session", "all", "none"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("spoilt", [False, True])
def test_it_is_byte_for_byte_what_write_dataset_makes(source, tmp_path, zscore, dtype, spoilt):
    """spoilt: with two stimuli that show the same, and a site that is constant in training."""
    source.zscore, source.backwards = zscore, spoilt
    if spoilt:
        source.pixels["s09"] = source.pixels["s07"]
        for responses, shown in zip(source.responses, source.shown, strict=True):
            responses[[source.split[name] == "train" for name in shown], 3] = 5
    options = replace(SMALL, responses_dtype=dtype, drop_constant_sites=spoilt)
    made = stream_study(source.study(), tmp_path / "streamed", options)
    other = source.written(tmp_path / "written", responses_dtype=dtype, drop_constant_sites=spoilt)
    assert made.fingerprint == other.fingerprint
    assert made.manifest["provenance"].get("dropped_sites") == ({"subj01": 1} if spoilt else None)
    for key in ("modality", "subjects", "num_stimuli", "image_size", "zscore", "caption_sources"):
        assert made.manifest[key] == other.manifest[key], key
    files = contents(made.path)
    assert files.pop("dataset.json")
    assert (
        list(made.manifest["files"]) == list(other.manifest["files"]) and made.manifest["files"].keys() == files.keys()
    )
    assert files == {name: data for name, data in contents(other.path).items() if name != "dataset.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["streamed", "written"]


def test_responses_and_pictures_are_those_that_were_planted(source, tmp_path):
    made = stream_study(source.study(zscore="none"), tmp_path / "ds", SMALL)
    trials = made.trials("subj01")
    assert trials.stimulus_id == [name for session in source.shown for name in session]
    np.testing.assert_array_equal(made.responses("subj01"), np.concatenate(source.responses))
    assert trials.repeat.tolist() == np.repeat([1, 2, 3], 20).tolist()
    for name in source.ids:
        np.testing.assert_array_equal(made.images([name])[0], source.pixels[name])
    assert made.captions("s04") == ("a s04",) and made.captions("s04", "vlm") == ("one s04",)
    assert made.caption_sources == ("coco", "vlm")


def test_what_a_layout_reads_is_not_changed(source, tmp_path):
    before = [responses.copy() for responses in source.responses]
    stream_study(source.study(), tmp_path / "ds", SMALL)
    np.testing.assert_array_equal(source.responses, before)


def test_another_source_of_captions_may_be_the_default(source, tmp_path):
    made = stream_study(source.study(), tmp_path / "ds", replace(SMALL, caption_source="vlm"))
    assert made.captions("s04") == ("one s04",) and made.captions("s04", "coco") == ("a s04",)
    assert json.loads((made.path / "captions.json").read_text())["s04"] == ["one s04"]


def test_stimuli_without_picture_or_captions_are_told(source, tmp_path, capsys):
    del source.captions["vlm"]["s03"]
    pictures = Pictures(source.ids[1:], source._pictures)
    made = stream_study(source.study(pictures=pictures), tmp_path / "ds", SMALL)
    assert made.manifest["provenance"]["notices"] == [
        "1 stimuli have no picture (s00).", "1 stimuli have no captions from vlm."
    ]  # fmt: skip
    assert "Note: 1 stimuli have no picture (s00)." in capsys.readouterr().err
    assert map_tensor(made.pictures_file, "stimulus").tolist() == list(range(1, 20))
    np.testing.assert_array_equal(made.images(["s01"])[0], source.pixels["s01"])


def test_without_pictures_and_captions(source, tmp_path):
    made = stream_study(source.study(pictures=None, captions={}), tmp_path / "ds", SMALL)
    assert made.image_size is None and made.caption_sources == () and made.captions("s00") == ()


def test_without_a_split_stimuli_are_drawn(source, tmp_path):
    source.pixels["s09"] = source.pixels["s07"]
    made = stream_study(source.study(split=None), tmp_path / "a", replace(SMALL, test_fraction=0.3, val_fraction=0.1))
    sizes = {split: len(made.split_ids(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 11, "val": 2, "test": 6} and "s09" not in made.stimulus_ids
    again = stream_study(source.study(split=None), tmp_path / "b", replace(SMALL, test_fraction=0.3, seed=1))
    assert again.split_ids("test") != made.split_ids("test")


def test_training_stimuli_may_be_put_into_val_where_the_layout_has_none(source, tmp_path):
    made = stream_study(source.study(), tmp_path / "ds", replace(SMALL, val_fraction=0.2))
    assert made.split_ids("test") == tuple(source.ids[:5])
    assert len(made.split_ids("val")) == 3


def test_pictures_with_one_checksum_are_compared_by_pixel(tmp_path):
    pixels = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(3, axis=3)
    pixels[4] = pixels[1]
    lay_out(tmp_path / "x", {"pixels": ("uint8", pixels.shape)})
    file = Stored(tmp_path / "x", "pixels")
    file.write(0, pixels)
    row_of = {name: row for row, name in enumerate("abcde")}
    kept = module._merged("abcdef", row_of, dict.fromkeys(range(5), 7), file)
    assert kept == {"a": "a", "b": "b", "c": "c", "d": "d", "e": "b", "f": "f"}


# --- what is refused


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"subjects": []}, {}, "fake: expected at least one subject, got none"),
        ({"split": {}}, {}, "stimulus 's00': expected a split among train, val, test from fake, got None"),
        ({}, {"test_fraction": 0.1}, "test_fraction: expected none, because fake says itself what is held out"),
        ({}, {"caption_source": "git"}, "caption_source: expected one of coco, vlm, got 'git'"),
        ({"captions": {"x": {"z": ["a"]}}}, {}, "captions 'x': expected names of stimuli .* got none that exists"),
        ({"captions": {"x": {"s01": [" "]}}}, {}, "captions of 's01': expected at least one caption, none empty"),
        ({"captions": {"../x": {}}}, {}, "source of captions '../x': expected a name of letters"),
        ({"pictures": Pictures(["z"], lambda ids, size: iter(()))}, {}, "pictures: expected some of the stimuli that"),
        ({"pictures": Pictures(["s01"], lambda ids, size: iter(()))}, {}, r"pictures: expected 1, got none of 1 of"),
        ({"found": [Found("betas", (), ("a.nii", "b.nii"))]}, {}, "fake: expected betas, got a.nii, b.nii missing"),
    ],
)  # fmt: skip
def test_an_unsound_study_is_refused(source, tmp_path, change, options, message):
    with pytest.raises(UserError, match=message):
        stream_study(source.study(**change), tmp_path / "ds", replace(SMALL, **options))
    assert not (tmp_path / "ds").exists() and not source.read, "before anything is read"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.responses[1].__setitem__((3, 2), np.nan), "finite numbers, got nan at trial 23, site 2"),
        (lambda s: s.responses[1].__setitem__((slice(None), 2), 7), r"session 2: .* got 1 constant ones of 6"),
        (lambda s: s.responses.__setitem__(2, s.responses[2][:-1]), r"session 3: expected \[20, 6\] .*, got \[19, 6\]"),
        (lambda s: s.split.update(dict.fromkeys(s.ids, "test")), "trials in train and in test, got none in train"),
    ],
)  # fmt: skip
def test_unsound_data_are_refused(source, tmp_path, spoil, message):
    spoil(source)
    with pytest.raises(UserError, match=message):
        stream_study(source.study(), tmp_path / "ds", SMALL)
    assert not (tmp_path / "ds").exists()


def test_a_session_twice_and_options_that_leave_no_training_are_refused(source, tmp_path):
    who = source.study().subjects[0]
    twice = source.study(subjects=[replace(who, sessions=[who.sessions[0]] * 2)])
    with pytest.raises(UserError, match=r"sessions of subj01: expected at least one, and each number once, got 1, 1"):
        stream_study(twice, tmp_path / "ds", SMALL)
    with pytest.raises(UserError, match=r"image_size 0; test_fraction 0.9 and val_fraction 0.2 leave no training"):
        StreamOptions(image_size=0, test_fraction=0.9, val_fraction=0.2)


def test_a_dataset_is_replaced_only_when_asked(source, tmp_path):
    first = stream_study(source.study(), tmp_path / "ds", SMALL)
    with pytest.raises(UserError, match=r"already holds a dataset\. Give --overwrite"):
        stream_study(source.study(), tmp_path / "ds", SMALL)
    source.responses[0] += 1
    card = first.path / CARD
    card.write_text(card.read_text().replace(INVITATION, "Consent form 7."))
    other = stream_study(source.study(zscore="none"), tmp_path / "ds", SMALL, overwrite=True)
    assert other.fingerprint != first.fingerprint
    assert other.fingerprint in card.read_text() and yours_in(card).text == "Consent form 7."
    assert [path.name for path in tmp_path.iterdir()] == ["ds"]


def test_two_at_once_are_refused(source, tmp_path):
    refused = []

    def read() -> np.ndarray:
        with pytest.raises(
            UserError, match="expected a dataset that nobody is preparing, got one that another process"
        ):
            stream_study(source.study(), tmp_path / "ds", SMALL)
        refused.append(True)
        return source.responses[0]

    who = source.study().subjects[0]
    busy = replace(who, sessions=[replace(who.sessions[0], read=read)])
    stream_study(source.study(subjects=[busy]), tmp_path / "ds", SMALL)
    assert refused == [True]


def test_too_little_room_is_told_before_anything_is_read(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"expected 0\.00 GB of room, got 0\.00 GB"):
        stream_study(source.study(), tmp_path / "ds", SMALL)
    assert not source.read


def test_a_picture_of_two_splits_is_held_out(source, tmp_path, capsys):
    """s00 is test, s08 train: they are one stimulus, which nothing is trained on."""
    source.pixels["s00"] = source.pixels["s08"]
    made = stream_study(source.study(), tmp_path / "ds", SMALL)
    assert "s00" in made.split_ids("test") and "s08" not in made.stimulus_ids
    told = "1 stimuli show the same picture as one of another split, for example 's08' (train) and 's00' (test)"
    assert told in capsys.readouterr().err and any(told in notice for notice in made.manifest["provenance"]["notices"])
    trials = made.trials("subj01")
    assert sum(name == "s00" for name in trials.stimulus_id) == 6
    rows = np.flatnonzero((trials.session == 1) & (np.array(trials.split) == "train"))
    np.testing.assert_allclose(made.responses("subj01")[rows].mean(axis=0), 0, atol=1e-5)


def test_sessions_are_read_side_by_side_where_that_is_of_use(source, tmp_path):
    """Each waits for the other."""
    both = threading.Barrier(2, timeout=20)
    source.responses, source.shown = source.responses[:2], source.shown[:2]
    expected = contents(stream_study(source.study(), tmp_path / "expected", SMALL).path)
    source._reads = lambda what: what.startswith("session") and both.wait()
    study = source.study()
    study = replace(study, subjects=[replace(study.subjects[0], num_readers=2)])
    assert contents(stream_study(study, tmp_path / "ds", SMALL).path) == expected


def test_a_name_that_is_too_long_is_refused(source, tmp_path):
    with pytest.raises(UserError, match="expected a place that can be written to, got 'File name too long'"):
        stream_study(source.study(), tmp_path / ("d" * 300), SMALL)
    assert not list(tmp_path.iterdir())


# --- stopped and gone on


def test_it_goes_on_where_it_was_stopped(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PICTURES_A_RECORD", 4)
    whole = stream_study(source.study(), tmp_path / "whole", SMALL)
    source.read.clear()
    for stop, expected in (
        ("s07", source.ids[:7:-1]), ("session 3", [*source.ids[7::-1], "session 1", "session 2"]), (None, ["session 3"])
    ):  # fmt: skip
        source.stop_at = stop
        if stop is None:
            made = stream_study(source.study(), tmp_path / "ds", SMALL)
        else:
            with pytest.raises(UserError, match="stopped here"):
                stream_study(source.study(), tmp_path / "ds", SMALL)
        assert source.read == expected
        source.read.clear()
    assert contents(made.path) == contents(whole.path)


def test_what_a_later_step_decides_starts_nothing_over(source, tmp_path):
    source.responses[1][:, 2] = 7
    with pytest.raises(UserError, match="--drop-constant-sites"):
        stream_study(source.study(), tmp_path / "ds", SMALL)
    assert len(list((tmp_path / ".ds.streaming/subjects").rglob("*.npz"))) == 1, "it is refused when it is seen"
    source.read.clear()
    made = stream_study(source.study(), tmp_path / "ds", replace(SMALL, drop_constant_sites=True, name="other"))
    assert source.read == ["session 2", "session 3"] and made.name == "other" and made.responses("subj01").shape[1] == 5


def test_what_was_finished_for_other_captions_does_not_stay(source, tmp_path, monkeypatch):
    def stop(*arguments: Any) -> None:
        raise UserError("stopped here")

    real = module._check_inputs
    monkeypatch.setattr(module, "_check_inputs", stop)
    with pytest.raises(UserError, match="stopped here"):
        stream_study(source.study(), tmp_path / "ds", SMALL)
    monkeypatch.setattr(module, "_check_inputs", real)
    source.read.clear()
    made = stream_study(source.study(captions={"coco": source.captions["coco"]}), tmp_path / "ds", SMALL)
    assert not source.read and made.caption_sources == ("coco",)
    assert not (made.path / "captions").exists() and contents(made.path).keys() - {"dataset.json"} == set(
        made.manifest["files"]
    )


@pytest.mark.parametrize("change", ["file", "image_size", "order", "keys"])
def test_it_starts_over_when_what_it_is_made_from_has_changed(source, tmp_path, capsys, change):
    file = tmp_path / "betas.bin"
    file.write_bytes(b"1")
    source.files, source.stop_at = (file,), "session 3"
    with pytest.raises(UserError, match="stopped here"):
        stream_study(source.study(), tmp_path / "ds", SMALL)
    source.stop_at, options, asked = None, SMALL, StudyOptions()
    source.read.clear()
    if change == "keys":  # of two tensors in one file
        asked = StudyOptions(keys=("voxels=other",))
    elif change == "file":
        file.write_bytes(b"12")
    elif change == "order":
        source.shown[0].reverse()
    else:
        options = replace(SMALL, image_size=4)
        source.pixels = {name: picture[:4, :4] for name, picture in source.pixels.items()}
    stream_study(source.study(asked=asked), tmp_path / "ds", options)
    assert len(source.read) == 23
    told = {"file": str(file), "order": "study", "keys": "study", "image_size": "options"}[change]
    assert f"Note: {told} changed since it was stopped: it starts over." in capsys.readouterr().err


def test_a_file_that_changes_while_it_is_read_is_refused(source, tmp_path):
    file = tmp_path / "betas.bin"
    file.write_bytes(b"1")
    source.files = (file,)
    source._reads = lambda what: file.write_bytes(b"123")
    with pytest.raises(UserError, match=r"betas\.bin: expected a file that stays as it is while it is read"):
        stream_study(source.study(), tmp_path / "ds", SMALL)
    assert not (tmp_path / "ds").exists()


def test_rows_that_the_disk_lost_are_made_again_or_refused_at_the_end(source, tmp_path, monkeypatch):
    whole = stream_study(source.study(), tmp_path / "whole", SMALL)
    source.stop_at = "session 3"
    with pytest.raises(UserError, match="stopped here"):
        stream_study(source.study(), tmp_path / "ds", SMALL)
    home = tmp_path / ".ds.streaming"
    for file in ("subjects/subj01/responses.safetensors", "pictures/images.safetensors"):
        data = bytearray((home / file).read_bytes())
        data[400] ^= 1
        (home / file).write_bytes(data)
    source.stop_at = None
    source.read.clear()
    made = stream_study(source.study(), tmp_path / "ds", SMALL)
    assert source.read == ["s00", "session 1", "session 3"]
    assert contents(made.path) == contents(whole.path)

    def lose(file: Any, advance: Any) -> str:
        file = replace(file, segments=list(file.segments))  # when all of it is written
        with open(file.path, "r+b") as lost:  # in place: never shorter, for whoever else reads it
            lost.seek(-1, 2)
            last = lost.read(1)[0]
            lost.seek(-1, 2)
            lost.write(bytes([last ^ 1]))
        return verified(file, advance)

    verified = module.verified
    monkeypatch.setattr(module, "verified", lose)
    with pytest.raises(UserError, match=r"expected rows \d+ to \d+ as they were written, got others"):
        stream_study(source.study(), tmp_path / "lost", SMALL)
    assert not (tmp_path / "lost").exists()


@pytest.mark.parametrize("kind", ["plain", "second round"])
@pytest.mark.parametrize("part", range(3))
def test_killed_at_any_moment_it_ends_the_same(tmp_path, monkeypatch, kind, part):
    """SIGKILL in a real process at each of its writes (half of it done) and renames; a part: every third of them."""
    monkeypatch.setattr(module, "PICTURES_A_RECORD", 3)
    source = Source(num_stimuli=7, num_sessions=2, zscore="all" if kind == "second round" else "session")
    source.pixels["s06"] = source.pixels["s05"] if kind == "second round" else source.pixels["s06"]
    whole = contents(stream_study(source.study(), tmp_path / "whole", SMALL).path)
    out, moment = tmp_path / "ds", part - 2
    while True:
        moment += 3

        def killed(moment: int = moment) -> None:
            count = 0
            write, rename = os.pwrite, os.replace

            def now() -> bool:
                nonlocal count
                count += 1
                return count == moment

            def pwrite(descriptor: int, data: Any, offset: int) -> int:
                if now():
                    write(descriptor, data[: len(data) // 2], offset)
                    os.kill(os.getpid(), signal.SIGKILL)
                return write(descriptor, data, offset)

            def replaced(*arguments: Any) -> None:
                if now():
                    os.kill(os.getpid(), signal.SIGKILL)
                rename(*arguments)

            os.pwrite, os.replace = pwrite, replaced
            stream_study(source.study(), out, SMALL)

        code = apart(killed)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if out.exists():
            assert contents(out) == whole
        else:
            assert contents(stream_study(source.study(), out, SMALL).path) == whole
        shutil.rmtree(out)
        shutil.rmtree(tmp_path / ".ds.streaming", ignore_errors=True)
    assert moment > 20
    assert contents(out) == whole


def test_killed_again_and_again_it_comes_to_its_end(tmp_path):
    """Each time at the second rename, which is that of one more record."""
    source = Source(num_stimuli=7, num_sessions=4)
    whole = contents(stream_study(source.study(), tmp_path / "whole", SMALL).path)
    starts = 0
    while not (tmp_path / "ds").exists():
        starts += 1
        assert starts < 20

        def killed() -> None:
            rename, records = os.replace, 0

            def replaced(old: Any, new: Any) -> None:
                nonlocal records
                rename(old, new)
                records += str(new).endswith(".npz")
                if records == 1:
                    os.kill(os.getpid(), signal.SIGKILL)

            os.replace = replaced
            stream_study(source.study(), tmp_path / "ds", SMALL)

        apart(killed)
    assert starts == 6, "one for the pictures, one for each session, and one that ends"
    assert contents(tmp_path / "ds") == whole


def test_all_files_are_on_the_disk_before_the_dataset_appears(source, tmp_path, monkeypatch):
    """A power cut after the rename must not find one of them half written."""
    synced: set[int] = set()
    fsync, rename, out = os.fsync, os.replace, tmp_path / "ds"

    def replaced(old: Any, new: Any) -> None:
        if Path(new) == out:
            assert {file.stat().st_ino for file in Path(old).rglob("*") if file.is_file()} <= synced
            synced.clear()
        rename(old, new)

    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.add(os.fstat(descriptor).st_ino), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", replaced)
    stream_study(source.study(), out, SMALL)
    assert out.exists() and not synced


def test_a_dataset_to_be_replaced_is_never_lost(source, tmp_path):
    """Killed between the two renames: the old one comes back."""
    old = stream_study(source.study(), tmp_path / "ds", SMALL).fingerprint
    source.responses[0][0] += 1

    def killed() -> None:
        rename = os.replace

        def replaced(before: Any, after: Any) -> None:
            rename(before, after)
            if Path(after).name == "replaced":
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = replaced
        stream_study(source.study(), tmp_path / "ds", SMALL, overwrite=True)

    assert apart(killed) == -signal.SIGKILL
    assert not (tmp_path / "ds").exists()
    with pytest.raises(UserError, match="already holds a dataset"):
        stream_study(source.study(), tmp_path / "ds", SMALL)
    assert Dataset.open(tmp_path / "ds").fingerprint == old
    assert stream_study(source.study(), tmp_path / "ds", SMALL, overwrite=True).fingerprint != old
    assert [path.name for path in tmp_path.iterdir()] == ["ds"]


def test_an_interrupt_says_what_is_kept(source, tmp_path):
    source.stop_at, source.error = "session 2", KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt, match=r"what was finished is kept in .*\.ds\.streaming"):
        stream_study(source.study(), tmp_path / "ds", SMALL)


# --- memory


def high_water_mark() -> int:
    """Peak of this process's memory since it was last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells the peak of a process anew")
@pytest.mark.parametrize("zscore", ["session", "all"])
def test_memory_holds_a_few_sessions_whatever_the_size(tmp_path, monkeypatch, zscore):
    """160 MB of responses in 40 sessions of 4 MB."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 << 20)
    num_sites, names = 10_000, [f"s{i:04}" for i in range(1000)]

    def read(k: int) -> np.ndarray:
        return np.random.default_rng(k).standard_normal((100, num_sites), np.float32)

    sessions = [Session(k, names[k % 10 * 100 :][:100], lambda k=k: read(k)) for k in range(40)]
    split = {name: "test" if int(name[1:]) % 10 == 0 else "train" for name in names}
    who = Recorded(BrainSpace("subj01", num_sites), sessions)
    study = Study("fake", "large", "fMRI", [who], split=split, zscore=zscore)

    def measured() -> None:
        Path("/proc/self/clear_refs").write_text("5")
        before = high_water_mark()
        stream_study(study, tmp_path / "ds", SMALL)
        (tmp_path / "peak").write_text(str(high_water_mark() - before))

    assert apart(measured) == 0
    assert int((tmp_path / "peak").read_text()) < 60e6
    assert Dataset.open(tmp_path / "ds").responses_file("subj01").stat().st_size > 160e6


# --- plan


def test_a_plan_says_what_there_is_and_what_it_takes(source, tmp_path):
    file = tmp_path / "betas.bin"
    file.write_bytes(bytes(1000))
    found = [Found("betas", (file,), ("session 4",)), Found("captions", (), ("captions.json",), required=False)]
    options = replace(SMALL, responses_dtype="float16")
    told = plan_study(source.study(found=found, notices=["something was left out."]), tmp_path / "ds", options)
    made = stream_study(source.study(found=found), tmp_path / "ds", options)
    sizes = {name: facts["bytes"] for name, facts in made.manifest["files"].items()}
    assert told.files.keys() | {"subjects/subj01/space.json"} == sizes.keys()
    for name, size in told.files.items():
        assert 0.5 * size < sizes[name] < 1.5 * size + 500, name
    assert told.read == 3 * 20 * 6 * 4 + 20 * 192 and told.scratch == 3 * 20 * 6 * 4 and told.seconds > 0
    for line in (
        "found    betas: 1 files, 1 kB", "missing  betas: session 4 (1; it goes without)",
        "missing  captions: captions.json (1; it goes without)", "writes   images.safetensors: 4 kB",
        "note     something was left out.",
    ):  # fmt: skip
        assert line in told.text.splitlines()


def test_a_plan_judges_how_long_it_takes_by_what_it_reads(source, tmp_path):
    slow = 0.05
    source._reads = lambda what: time.sleep(slow)
    told = plan_study(source.study(), tmp_path / "ds", SMALL)
    assert told.seconds > slow * 23, "3 sessions and 20 pictures"
    untimed = plan_study(source.study(), tmp_path / "ds", SMALL, timed=False)
    assert untimed.seconds is None and "takes" not in untimed.text


def test_a_plan_leaves_nothing_and_says_where_room_is_lacking(source, tmp_path, monkeypatch):
    told = plan_study(source.study(), tmp_path / "new" / "ds", SMALL)
    assert not list(tmp_path.iterdir()) and "TOO LITTLE" not in told.text
    assert "TOO LITTLE" in told._replace(free=10).text
