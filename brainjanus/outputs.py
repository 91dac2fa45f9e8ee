"""Outputs: a request enters (sources, target, options); captions, pictures or responses leave as files.

    text    OUT/captions.json            {row: caption}
    image   OUT/pictures/ROW.png
    brain   OUT/responses.safetensors    "responses" [rows, sites], z-scored; OUT/rows.json names the rows;
            OUT/responses.nii.gz         [x, y, z, rows], where the subject's space is a volume

Rows are stimulus ids of the dataset, names of picture files (their paths, where two have one name), or prompts in
order. No two rows share a name; in ROW, what is no letter, digit, '.' or '-' becomes '_'.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from brainjanus.core.errors import UserError, written_beside
from brainjanus.data.dataset import Dataset
from brainjanus.data.readers.arrays import read_array
from brainjanus.data.readers.pictures import PICTURE_SUFFIXES, decode, fit
from brainjanus.generate import GenerationConfig, generate, require
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.run import check_same_data, condition


def generate_files(
    run: Path | str,
    dataset: Dataset | Path | str,
    out: Path | str,
    *,
    source: Sequence[str],
    target: str,
    ids: Sequence[str] = (),
    images: Sequence[Path] = (),
    prompt: Sequence[str] = (),
    responses: Path | None = None,
    config: GenerationConfig | None = None,
) -> Path:
    """Generate `target` from `source` (names as in a Task) and write it to `out`.

    Sources come from stimuli `ids` of the dataset (default: the test stimuli of the first brain that takes part, or
    all test stimuli), unless pictures, prompts, or an array of responses [rows, sites] (raw, in the units of the
    betas that the dataset was prepared from) are given in their place.
    Raises UserError if sources and files do not fit, or `out` exists.
    """
    run, out = Path(run), Path(out)
    dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    if out.exists():
        raise UserError(
            f"{out}: expected a new folder for what is generated, got one that exists. Choose another --out."
        )
    checkpoint = Checkpoint.load(run)
    check_same_data(checkpoint, dataset, run)
    if len(set(source)) < len(source) or not source:
        raise UserError(
            f"--source: expected at least one source, each once, got {', '.join(source) or 'none'}. "
            "Name each source once: text, image or brain:SUBJECT."
        )
    for name in (*source, target):
        require(checkpoint, name)
    if ids and (images or prompt or responses is not None):
        raise UserError(
            f"--ids: expected stimuli of the dataset or files of your own, got {len(ids)} ids beside --images, "
            "--prompt or --responses, whose rows have no ids. Leave one of them out."
        )
    given: dict[str, object] = {}
    rows: list[str] = []
    if images:
        expect_source(source, "image", "--images")
        assert checkpoint.tokenizers.image is not None  # required above
        size = dataset.image_size or checkpoint.tokenizers.image.config.image_size
        names = [path.name for path in images]
        rows = [str(path) if names.count(path.name) > 1 else path.name for path in images]
        check_names(rows, target)
        given["image"] = read_files(images, size)
    if prompt:
        expect_source(source, "text", "--prompt")
        given["text"], rows = list(prompt), rows or [f"{row:04d}" for row in range(len(prompt))]
    if responses is not None:
        brains = [name for name in source if name.startswith("brain:")]
        if len(brains) != 1:
            raise UserError(
                f"--responses: expected exactly one brain among the sources, got {', '.join(source) or 'none'}. "
                "Name it: --source brain:SUBJECT."
            )
        given[brains[0]] = standardised(dataset, brains[0].removeprefix("brain:"), responses)
        rows = rows or [f"{row:04d}" for row in range(len(given[brains[0]]))]  # type: ignore[arg-type]
    rest = [name for name in source if name not in given]
    if given and rest:
        raise UserError(
            f"generate: expected every source from files, or every source from the dataset, got {', '.join(given)} "
            f"from files and {', '.join(rest)} from the dataset, which cannot be paired. Give files for "
            f"{', '.join(rest)}."
        )
    if rest or not given:
        subject = next((n.removeprefix("brain:") for n in (*source, target) if n.startswith("brain:")), None)
        rows = list(ids) or (
            dataset.averages(subject, "test").stimulus_ids if subject else list(dataset.split_ids("test"))
        )
        check_names(rows, target)
        given = {name: condition(checkpoint, dataset, name, rows, split_of(dataset, name, rows)) for name in rest}
    made = generate(checkpoint, {name: given[name] for name in source}, target, config)
    with written_beside(out) as beside:
        beside.mkdir()
        write(beside, made, rows, target, dataset)
    return out


def write(folder: Path, made: torch.Tensor | list[str], rows: Sequence[str], target: str, dataset: Dataset) -> None:
    if isinstance(made, list):
        captions = dict(zip(rows, made, strict=True))
        (folder / "captions.json").write_text(json.dumps(captions, indent=1, ensure_ascii=False), encoding="utf-8")
        return
    if target == "image":
        from PIL import Image

        (folder / "pictures").mkdir()
        for name, picture in zip(map(picture_name, rows), made, strict=True):
            Image.fromarray((picture * 255).round().byte().numpy()).save(folder / "pictures" / f"{name}.png")
        return
    responses = made.numpy()
    save_file({"responses": np.ascontiguousarray(responses)}, folder / "responses.safetensors")
    (folder / "rows.json").write_text(json.dumps(list(rows), indent=1), encoding="utf-8")
    space = dataset.space(target.removeprefix("brain:"))
    if space.geometry.get("type") == "volume":
        import nibabel

        volumes = [space.to_nifti(row) for row in responses]
        nibabel.save(nibabel.concat_images(volumes), folder / "responses.nii.gz")


def picture_name(row: str) -> str:
    """The name of a row's picture, without the suffix of a picture that the row may have."""
    suffix = Path(row).suffix
    return re.sub(r"[^\w.-]+", "_", row.removesuffix(suffix) if suffix.lower() in PICTURE_SUFFIXES else row)


def check_names(rows: Sequence[str], target: str) -> None:
    """Raises UserError for two rows that would be written under one name (case is no difference on some disks)."""
    first: dict[str, str] = {}
    for row in rows:
        name = picture_name(row).casefold() if target == "image" else row
        if name in first:
            raise UserError(
                f"generate: expected rows whose outputs have names of their own, got '{first[name]}' and '{row}', "
                "which would overwrite each other. Give each only once, rename the files, or generate them one by one."
            )
        first[name] = row


def expect_source(source: Sequence[str], name: str, option: str) -> None:
    if name not in source:
        raise UserError(
            f"{option}: expected '{name}' among the sources, got {', '.join(source) or 'none'}. Add --source {name}."
        )


def split_of(dataset: Dataset, name: str, ids: Sequence[str]) -> str:
    """The split in which a subject saw these stimuli; 'test' for other sources. Raises UserError if it is not one."""
    if not name.startswith("brain:") or not ids:
        return "test"
    trials = dataset.trials(name.removeprefix("brain:"))
    splits = dict(zip(trials.stimulus_id, trials.split, strict=True))
    first = {splits[stimulus]: stimulus for stimulus in reversed(ids) if stimulus in splits}
    if len(first) > 1:
        raise UserError(
            f"--ids: expected all --ids from one split, got {', '.join(f'{first[s]} ({s})' for s in sorted(first))}. "
            "Generate for one split after the other."
        )
    return next(iter(first), "test")


def standardised(dataset: Dataset, subject: str, path: Path) -> np.ndarray:
    """Raw responses [rows, sites] in the units of the z-scored dataset.

    As in `prepare`, they are divided by the subject's scale first; sites that it dropped may be there or not.
    Statistics are those of the training trials; where each session has its own, their mean over sessions.
    """
    return raw_to_zscored(dataset, subject, np.asarray(read_array(str(path))), path)


def raw_to_zscored(dataset: Dataset, subject: str, raw: np.ndarray, path: Path | str) -> np.ndarray:
    """As `standardised`, of responses that were read already; `path` names them in the sentence of an error."""
    space = dataset.space(subject)
    dropped = dataset.manifest["provenance"].get("dropped_sites", {}).get(subject, 0)
    numbers = raw.ndim == 2 and raw.dtype.kind in "fiu"
    columns_known = space.geometry.get("type") == "none" and space.index is not None
    if numbers and dropped and columns_known and raw.shape[1] == space.num_sites + dropped:
        raw = raw[:, space.index]
    if not numbers or raw.shape[1] != space.num_sites:
        raise UserError(
            f"{path}: expected numbers [rows, {space.num_sites} sites of {subject}], got {raw.dtype} "
            f"{list(raw.shape)}. "
            + (
                f"{dropped} constant sites were dropped when the dataset was prepared: leave them out here too."
                if dropped
                else "Were they made with another mask, or are rows and columns exchanged?"
            )
        )
    raw = (raw / np.float32(scale_of(dataset, subject))).astype(np.float32)
    statistics = dataset.zscore(subject)
    return (raw - statistics.mean.mean(axis=0)) / statistics.std.mean(axis=0)


def scale_of(dataset: Dataset, subject: str) -> float:
    """What `prepare` divided a subject's responses by; 1 for a dataset that it did not make."""
    config = dataset.manifest["provenance"].get("config")
    if not isinstance(config, dict):
        return 1.0
    files = [who for who in (*(config.get("subjects") or ()), config) if isinstance(who, dict)]
    return next((float(who["scale"]) for who in files if who.get("subject") == subject and "scale" in who), 1.0)


def read_files(paths: Sequence[Path], size: int) -> np.ndarray:
    """Picture files as uint8 [n, size, size, 3], prepared as the dataset's pictures were."""
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: expected a picture file, got none at this path. Correct the path.")
    return np.stack([fit(decode(str(path), path.read_bytes()), size) for path in paths])
