"""The way out: a Dataset in the layouts of MindEye2 and of BrainJanus, so that a peer runs on the same data.

Enters: a Dataset. Leaves: a new folder, complete or not at all, which the readers of `layouts/` read back to the same
responses (in bfloat16 for BrainJanus), ids, sessions and splits. Responses are the z-scored ones.

NSD's stimuli ("nsd-00042") keep their 73k id, so that a peer finds them in its own files of pictures and captions;
others are numbered as `stimuli.tsv` says. A peer knows no val split: those trials lie where it does not look.

Read back with `prepare --from LAYOUT OUT --zscore none`, responses are those of the dataset, bit by bit (rounded to
bfloat16 for BrainJanus); z-scored per session again, where the dataset was, they differ by rounding.
"""

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from brainjanus.core.card import add_card, yours_in
from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.progress import progress
from brainjanus.data.dataset import SPLITS, Dataset, Trials, listed
from brainjanus.data.datasheet import CARD, dataset_card
from brainjanus.data.layouts.asked import NAMES, RECORDING, SUBJECT_NAMES
from brainjanus.data.layouts.mindeye2 import IMAGE, ISOLD, NUM_COLUMNS, REGIONS, RUN, SESSION, SHARED, SUBJECT, TRIAL
from brainjanus.data.layouts.nsd_ids import NUM_IMAGES, image_of
from brainjanus.data.readers.pictures import fit
from brainjanus.data.readers.tensors import as_bfloat16

PeerLayout = Literal["mindeye2", "brainjanus"]
MINDEYE2_SIZE, BRAINJANUS_SIZE = 224, 384
PART = 750  # trials that are in memory at once
_TRIAL_IN_RUN = 4
_NEIGHBOURS, _OTHERS = 15, 3  # trials before and after, and of the same image, that MindEye2 keeps beside each


class Exported(NamedTuple):
    """Where a dataset was written to, and what a peer cannot have of it, one sentence each."""

    path: Path
    notices: list[str]


class Numbered(NamedTuple):
    """The number of each stimulus in a peer's files, and how many images these have. nsd: whether they are 73k ids.

    shown: the stimuli that the exported subjects saw, whose pictures are written.
    """

    of: Mapping[str, int]
    num_images: int
    nsd: bool
    shown: frozenset[str]


def export(
    dataset: Dataset | Path | str, layout: PeerLayout, out: Path | str, subjects: Sequence[str] = ()
) -> Exported:
    """Write a dataset in a peer's layout; subjects: only these. Raises UserError as the two functions below do."""
    dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    if layout not in get_args(PeerLayout):
        raise UserError(f"layout: expected one of {listed(get_args(PeerLayout))}, got '{layout}'. Name one of these.")
    write = export_mindeye2 if layout == "mindeye2" else export_brainjanus
    return write(dataset, out, subjects)


def export_mindeye2(dataset: Dataset, out: Path | str, subjects: Sequence[str] = ()) -> Exported:
    """Write betas_all_subjXX_fp32_renorm.hdf5, coco_images_224_float16.hdf5 and wds/ as MindEye2 reads them.

    Shards are numbered by session, in their order, as its option num_sessions counts them. What NSD recorded of a
    trial and we do not (buttons, reaction times) is -1, as MindEye2 marks what is missing. Sessions and runs
    count from 1.
    Raises UserError if something is at `out`, the dataset has no pictures, or not a subject of `subjects`.
    """
    out = Path(out)
    numbered, notices = _checked(dataset, out, subjects)
    with written_beside(out) as folder:
        folder.mkdir()
        _write_names(folder, numbered)
        _write_recording(dataset, folder)
        for subject, name in _peer_names(dataset, subjects, folder, notices).items():
            _write_mindeye2_subject(dataset, subject, name, folder, numbered)
        _write_images_hdf5(dataset, folder / f"coco_images_{MINDEYE2_SIZE}_float16.hdf5", numbered)
        _add_card(dataset, folder, "mindeye2")
    return Exported(out, [*notices, *_lost(dataset, subjects, "mindeye2")])


def export_brainjanus(dataset: Dataset, out: Path | str, subjects: Sequence[str] = ()) -> Exported:
    """Write voxel/, image/ and captions/ as BrainJanus released them; the tensors are called voxels, ids and images.

    Beside its files (train, train_avg, test_avg) single trials of test and val are written, with their sessions and
    runs, since an average cannot be taken apart.
    Raises UserError if something is at `out`, the dataset has no pictures, or not a subject of `subjects`.
    """
    out = Path(out)
    numbered, notices = _checked(dataset, out, subjects)
    with written_beside(out) as folder:
        for part in ("voxel", "image", "captions"):
            (folder / part).mkdir(parents=True)
        _write_names(folder, numbered)
        _write_recording(dataset, folder)
        for subject, name in _peer_names(dataset, subjects, folder, notices).items():
            for split in SPLITS:
                _write_bfloat16(dataset, subject, split, folder / "voxel" / f"{name}_{split}", numbered)
        _write_images_tensor(dataset, folder / f"image/nsd_stimuli_{BRAINJANUS_SIZE}_uint8.safetensors", numbered)
        texts = {}
        for stimulus in dataset.stimulus_ids:
            if stimulus in numbered.shown and (captions := dataset.captions(stimulus)):
                texts[str(numbered.of[stimulus]) if numbered.nsd else stimulus] = list(captions)
        if texts:
            (folder / "captions/captions.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
        _add_card(dataset, folder, "brainjanus")
    return Exported(out, [*notices, *_lost(dataset, subjects, "brainjanus")])


def _checked(dataset: Dataset, out: Path, subjects: Sequence[str]) -> tuple[Numbered, list[str]]:
    """How stimuli are numbered, and what is lost. Raises UserError for a place that is taken, or an unknown subject."""
    if strangers := [subject for subject in subjects if subject not in dataset.subjects]:
        raise UserError(
            f"--subjects: expected subjects of {dataset.path} ({listed(dataset.subjects)}), got '{strangers[0]}'. "
            "Correct it, or leave it out to export all."
        )
    if out.exists() or out.is_symlink():
        raise UserError(
            f"{out}: expected a new folder, got something there. It is left as it is: choose another --out."
        )
    if dataset.image_size is None:
        raise UserError(
            f"{dataset.path}: expected a dataset with pictures, got one without: peers train on them. "
            "Prepare it again with pictures."
        )
    nsd = all(re.fullmatch(r"nsd-\d{5}", name) for name in dataset.stimulus_ids)
    of = {name: image_of(name) if nsd else row for row, name in enumerate(dataset.stimulus_ids)}
    shown = {name for who in subjects or dataset.subjects for name in dataset.trials(who).stimulus_id}
    without = [name for name in dataset.stimulus_ids if name in shown and not _has_picture(dataset, name)]
    if without:
        raise UserError(
            f"{dataset.path}: expected a picture of each stimulus, got none of {len(without)} ({listed(without, 3)}). "
            "A peer would be shown a black one: prepare the dataset with all pictures."
        )
    how = dataset.manifest.get("zscore", "none")
    notices = [
        "Responses are z-scored with training trials only; the peer's own numbers may rest on betas that were z-scored "
        "with test trials too."
        if how != "none"
        else "Responses are as the dataset has them, not z-scored, which a peer expects them to be."
    ]
    if how != "session":
        notices.append("To read them back as they are, give --zscore none: `prepare` z-scores each session otherwise.")
    several = sum(len(dataset.picture_rows(name)) > 1 for name in shown)
    if several:
        notices.append(f"{several} stimuli have several pictures; peers know one each, and have the first.")
    if dataset.split_ids("val"):
        notices.append(
            "Trials of val are in files of their own, which the peer does not read: it does not train on them."
        )
    return Numbered(of, NUM_IMAGES if nsd else len(of), nsd, frozenset(shown)), notices


def _add_card(dataset: Dataset, folder: Path, layout: str) -> None:
    """The dataset's card, with what the user wrote into it: terms go with the files."""
    add_card(folder / CARD, lambda: dataset_card(dataset, layout), yours_in(dataset.path / CARD))


def _write_recording(dataset: Dataset, folder: Path) -> None:
    """What is recorded, which no file of a peer says."""
    facts = {"name": dataset.name, "modality": dataset.modality}
    (folder / RECORDING).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")


def _lost(dataset: Dataset, subjects: Sequence[str], layout: str) -> list[str]:
    """What the dataset has and the peer's layout has no place for."""
    spaces = [dataset.space(who) for who in subjects or dataset.subjects]
    lost = {
        "captions": layout == "mindeye2" and any(dataset.captions(name) for name in dataset.stimulus_ids),
        "ROIs": layout == "brainjanus" and any(space.rois for space in spaces),
        "coordinates": any(space.coordinates_mm is not None for space in spaces),
        "features": bool(dataset.feature_names),
    }
    notices = []
    if named := [what for what, there in lost.items() if there]:
        notices.append(f"The layout has no place for {listed(named)}: they stay behind.")
    if any(space.kind == "sensors" for space in spaces):
        notices.append("A peer takes each sensor at each time for a voxel: which is which is not written.")
    return notices


def _has_picture(dataset: Dataset, stimulus: str) -> bool:
    try:
        return bool(dataset.picture_rows(stimulus))
    except UserError:
        return False


def _write_names(folder: Path, numbered: Numbered) -> None:
    if not numbered.nsd:
        lines = ["number\tstimulus_id", *(f"{number}\t{name}" for name, number in numbered.of.items())]
        (folder / NAMES).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _peer_names(dataset: Dataset, subjects: Sequence[str], folder: Path, notices: list[str]) -> dict[str, str]:
    """What each subject is called in files that know only subj01 and so on; `subjects.tsv` has other names."""
    names = {subject: f"subj{number:02}" for number, subject in enumerate(dataset.subjects, start=1)}
    if all(re.fullmatch(r"subj\d\d", subject) for subject in names):
        names = {subject: subject for subject in names}
    else:
        lines = ["name\tsubject", *(f"{name}\t{subject}" for subject, name in names.items())]
        (folder / SUBJECT_NAMES).write_text("\n".join(lines) + "\n", encoding="utf-8")
        notices.append("Subjects are called subj01, subj02, ..., as peers expect; subjects.tsv says who is who.")
    return {subject: name for subject, name in names.items() if not subjects or subject in subjects}


def _write_mindeye2_subject(dataset: Dataset, subject: str, name: str, folder: Path, numbered: Numbered) -> None:
    import h5py

    trials = dataset.trials(subject)
    order = np.argsort(trials.session, kind="stable")
    num_sites = dataset.space(subject).num_sites
    with h5py.File(folder / f"betas_all_{name}_fp32_renorm.hdf5", "w") as file:
        betas = file.create_dataset("betas", (len(order), num_sites), np.float32)
        with progress(f"writing {name}", len(order)) as advance:
            for first in range(0, len(order), PART):
                betas[first : first + PART] = dataset.responses(subject, order[first : first + PART])
                advance(min(first + PART, len(order)), None)
    _write_regions(dataset, subject, name, folder / REGIONS)
    behav = behaviour(trials, order, int(name[4:]), numbered.of)
    split = np.array(trials.split)[order]
    session = behav[:, SESSION]
    others = _same_image(behav)
    shards = [
        (f"train/{number}.tar", (split == "train") & (session == one)) for number, one in enumerate(np.unique(session))
    ]
    shards += [(f"{place}/0.tar", split == part) for part, place in (("val", "val"), ("test", "new_test"))]
    count = {"train": 0, "val": 0, "new_test": 0}
    for place, chosen in shards:
        rows = np.flatnonzero(chosen).tolist()
        if not rows and place.startswith("val"):
            continue
        kind = place.split("/")[0]
        _write_shard(folder / "wds" / name / place, behav, rows, others, count[kind])
        count[kind] += len(rows)


def _write_regions(dataset: Dataset, subject: str, name: str, path: Path) -> None:
    """The subject's ROIs as MindEye2 has them, if it has some, beside those of others."""
    import h5py

    space = dataset.space(subject)
    if not space.rois:
        return
    with h5py.File(path, "a") as file:
        group = file.create_group(name)
        group["nsd_general"] = np.ones(space.num_sites, bool)
        for roi, inside in space.rois.items():
            group[roi.replace("/", "_")] = np.asarray(inside, bool)


def behaviour(
    trials: Trials, order: Int[np.ndarray, "t"], subject_number: int, number_of: Mapping[str, int]
) -> Float[np.ndarray, "t 17"]:
    """MindEye2's 17 columns for the trials in this order; what we do not know is -1."""
    behav = np.full((len(order), NUM_COLUMNS), -1.0)
    behav[:, IMAGE] = [number_of[trials.stimulus_id[row]] for row in order]
    behav[:, SUBJECT] = subject_number
    behav[:, SESSION] = _from_one(trials.session)[order]
    behav[:, RUN] = _from_one(trials.run)[order]
    behav[:, TRIAL] = np.arange(len(order))
    behav[:, ISOLD] = _from_one(trials.repeat)[order] > 1
    behav[:, SHARED] = [trials.split[row] == "test" for row in order]
    count: dict[tuple[int, int], int] = {}
    for row, run in enumerate(zip(trials.session[order].tolist(), trials.run[order].tolist(), strict=True)):
        count[run] = count.get(run, 0) + 1
        behav[row, _TRIAL_IN_RUN] = count[run]
    return behav


def _from_one(numbers: Int[np.ndarray, "t"]) -> Int[np.ndarray, "t"]:
    """Numbers that count from 0 (or below), counted from 1."""
    return numbers + max(0, 1 - int(numbers.min(initial=1)))


def _same_image(behav: Float[np.ndarray, "t 17"]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for row, image in enumerate(behav[:, IMAGE].astype(int).tolist()):
        rows.setdefault(image, []).append(row)
    return rows


def _write_shard(
    path: Path, behav: Float[np.ndarray, "t 17"], rows: Sequence[int], others: Mapping[int, Sequence[int]], first: int
) -> None:
    """One sample for each row: its own columns, those of the trials around it in its session, and of its repeats."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, row in enumerate(rows, start=first):
            before = range(row - 1, row - 1 - _NEIGHBOURS, -1)
            after = range(row + 1, row + 1 + _NEIGHBOURS)
            again = [other for other in others[int(behav[row, IMAGE])] if other != row][:_OTHERS]
            for name, matrix in (
                ("behav", behav[row : row + 1]),
                ("past_behav", _around(behav, row, before, _NEIGHBOURS)),
                ("future_behav", _around(behav, row, after, _NEIGHBOURS)),
                ("olds_behav", _around(behav, None, again, _OTHERS)),
            ):
                data = io.BytesIO()
                np.lib.format.write_array(data, matrix, version=(1, 0))
                member = tarfile.TarInfo(f"sample{number:09}.{name}.npy")
                member.size = data.tell()
                data.seek(0)
                archive.addfile(member, data)


def _around(
    behav: Float[np.ndarray, "t 17"], row: int | None, others: Iterable[int], length: int
) -> Float[np.ndarray, "n 17"]:
    """The columns of other trials, of the session of `row` if it is given, as many rows as there could be; -1: none."""
    matrix = np.full((length, NUM_COLUMNS), -1.0)
    for at, other in enumerate(others):
        same = row is None or (0 <= other < len(behav) and behav[other, SESSION] == behav[row, SESSION])
        if same:
            matrix[at] = behav[other]
    return matrix


def _pictures(dataset: Dataset, numbered: Numbered, size: int) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    """The first picture of each stimulus that was shown, by its number, growing."""
    there = sorted(numbered.shown, key=lambda name: numbered.of[name])
    with progress("writing pictures", len(there)) as advance:
        for done, name in enumerate(there, start=1):
            yield numbered.of[name], fit(Image.fromarray(dataset.images([name])[0]), size)
            advance(done, None)


def _write_images_hdf5(dataset: Dataset, path: Path, numbered: Numbered) -> None:
    """A file of all images, in which those that are not in the dataset take no room."""
    import h5py

    size = MINDEYE2_SIZE
    with h5py.File(path, "w") as file:
        shape = (numbered.num_images, 3, size, size)
        images = file.create_dataset("images", shape, np.float16, chunks=(1, 3, size, size))
        for number, picture in _pictures(dataset, numbered, size):
            images[number] = (picture.transpose(2, 0, 1) / np.float32(255)).astype(np.float16)


def _write_bfloat16(dataset: Dataset, subject: str, split: str, stem: Path, numbered: Numbered) -> None:
    """The single trials of a split, and their means by stimulus; of val no means, since no peer knows it."""
    trials = dataset.trials(subject)
    rows = trials.rows(split)
    if not len(rows):
        return
    num_sites = dataset.space(subject).num_sites

    def single() -> Iterator[bytes]:
        for first in range(0, len(rows), PART):
            yield as_bfloat16(dataset.responses(subject, rows[first : first + PART])).tobytes()

    ids = np.array([numbered.of[trials.stimulus_id[row]] for row in rows], np.int64)
    columns = {"ids": ids, "run": trials.run[rows], "session": trials.session[rows]}
    _write_voxels(stem.with_name(f"{stem.name}_bf16.safetensors"), (len(rows), num_sites), single, columns)
    if split == "val":
        return
    names = sorted(trials.stimuli(split), key=lambda name: numbered.of[name])

    def means() -> Iterator[bytes]:
        for first in range(0, len(names), PART // 3):
            some = names[first : first + PART // 3]
            found = dataset.averages(subject, split, among=some)
            row_of = {name: row for row, name in enumerate(found.stimulus_ids)}
            yield as_bfloat16(found.responses[[row_of[name] for name in some]]).tobytes()

    ids = np.array([numbered.of[name] for name in names], np.int64)
    _write_voxels(stem.with_name(f"{stem.name}_avg_bf16.safetensors"), (len(names), num_sites), means, {"ids": ids})


def _write_voxels(
    path: Path,
    shape: tuple[int, int],
    parts: Callable[[], Iterator[bytes]],
    columns: Mapping[str, Int[np.ndarray, "t"]],
) -> None:
    """A safetensors file of bfloat16 voxels and integer columns, one part in memory at a time."""
    header, end = {}, 0
    for name, column in columns.items():
        header[name] = {"dtype": "I64", "shape": [len(column)], "data_offsets": [end, end + 8 * len(column)]}
        end += 8 * len(column)
    size = 2 * shape[0] * shape[1]
    header["voxels"] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
    with open(path, "wb") as file:
        _write_header(file, header)
        for column in columns.values():
            file.write(np.ascontiguousarray(column, "<i8").tobytes())
        for part in parts():
            file.write(part)


def _write_header(file: io.BufferedWriter, header: Mapping[str, object]) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)


def _write_images_tensor(dataset: Dataset, path: Path, numbered: Numbered) -> None:
    """uint8 [images, 3, 384, 384], up to the last image that is there; others are holes, which read as black."""
    size = BRAINJANUS_SIZE
    count = max(numbered.of[name] for name in numbered.shown) + 1
    one = 3 * size * size
    header = {"images": {"dtype": "U8", "shape": [count, 3, size, size], "data_offsets": [0, count * one]}}
    with open(path, "wb") as file:
        _write_header(file, header)
        start = file.tell()
        file.truncate(start + count * one)
        for number, picture in _pictures(dataset, numbered, size):
            file.seek(start + number * one)
            file.write(np.ascontiguousarray(picture.transpose(2, 0, 1)).tobytes())
