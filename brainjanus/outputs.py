"""Outputs: a request enters, its answer is computed; captions, pictures, responses or a ranking leave as files.

    OUT/request.json            what was asked, what it was taken for, what answered it: enough to ask it again
    text    captions.json       {row: caption}; {row: [caption, ...]} of several samples
    image   pictures/ROW.png    ROW-00.png, ROW-01.png, ... of several samples, and all of them in samples.png
    brain   responses.safetensors   "responses" [rows, sites], z-scored, as its metadata say; "standard_error" of a mean
                                over samples; "samples" [rows, samples, sites] of several; the same as .npy if asked for
            rows.json           the rows' names
            responses.nii.gz    [x, y, z, rows] where the subject's space is a volume; of several samples also
                                samples-00.nii.gz, samples-01.nii.gz, ...
            responses_hemi-L.func.gii, ..._hemi-R...    one array a row where it is a surface; samples as above
            responses.png       the first rows and samples, drawn on the cortex
    ranking scores.tsv, scores.json     log p of each candidate, and its share among them

Of several targets, each has a folder of its own. Rows are stimulus ids, trials, names of picture files, or numbers. No
two rows share a name; in ROW, what is no letter, digit, '.' or '-' becomes '_'.
"""

import csv
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.numpy import save_file
from torch import Tensor

from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.processes import is_first, own_device
from brainjanus.core.space import BrainSpace
from brainjanus.data.readers.pictures import PICTURE_SUFFIXES
from brainjanus.evaluate.cortex import draw_maps
from brainjanus.generate import Generated, estimate, score_candidates
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.request import (
    ZSCORED,
    Format,
    Repeated,
    Request,
    Resolved,
    Target,
    check_repeated,
    model_fingerprint,
    resolve,
    save_request,
)

MOST_SHOWN = 20  # rows told on the terminal
MOST_DRAWN = 6  # rows drawn on the cortex
MOST_ON_SHEET = 24  # rows of a sheet of pictures
TILE = 128  # pixels a side of a picture on it
NILEARN = "it needs nilearn, which brings the surface; pip install 'brainjanus[cortex]'"
MAPS: dict[str, Format] = {"volume": "nifti", "surface": "gifti"}


class Ranked(NamedTuple):
    """One candidate for one row: log p(candidate | conditions) in nats; posterior: its share among all candidates."""

    row: str
    candidate: str
    log_p: float
    posterior: float


class Answer(NamedTuple):
    """What was written. told: lines for the terminal. ranking: of candidates, likeliest first; none without them.
    remarks: what was left to a default, or left out."""

    folder: Path
    told: list[str]
    ranking: list[Ranked]
    remarks: list[str]


def generate_files(request: Request, out: Path | None = None, *, repeated: Repeated | None = None) -> Answer:
    """Answer a request and write the answer into `out`, a new folder (default: generated/..., named by the request).

    repeated: the file that the request is taken from: the answer has to be the same.
    Raises UserError for what does not fit; nothing is written then.
    """
    if out is not None and os.path.exists(out):
        raise UserError(
            f"{out}: expected a new folder for what is generated, got one that exists. Choose another --out."
        )
    checkpoint = loaded(request)
    resolved = resolve(request, checkpoint)
    for target in resolved.targets:
        check_names(resolved.rows, target.name)
        check_formats(request.formats, target, checkpoint)
    model = model_fingerprint(request.run)
    if repeated is not None:
        check_repeated(repeated, resolved, model)
    out = free_folder(request) if out is None else out
    ranking: list[Ranked] = []
    made: dict[Target, Generated] = {}
    if resolved.candidates is not None:
        ranking = rank(checkpoint, resolved)
    else:
        made = answers(checkpoint, request, resolved)
    if not is_first():
        return Answer(out, [], [], [])
    remarks = list(resolved.remarks)
    with written_beside(out) as beside:
        beside.mkdir()
        if ranking:
            write_ranking(beside, ranking)
        for target, generated in made.items():
            folder = beside / folder_of(target, made)
            folder.mkdir(exist_ok=True)
            if target.name == "text":
                write_captions(folder, generated, resolved.rows)
            elif target.name == "image":
                write_pictures(folder, generated, resolved.rows)
            else:
                space = checkpoint.spaces[target.name.removeprefix("brain:")]
                remarks += write_brain(folder, generated, resolved.rows, space, request)
        save_request(beside / "request.json", request, resolved, model, versions())
    told = [
        line
        for target, generated in made.items()
        for line in shown(target, generated, resolved.rows, out / folder_of(target, made))
    ]
    return Answer(out, told, ranking, remarks)


def folder_of(target: Target, made: Mapping[Target, Generated]) -> str:
    """Where a target stands in the folder of the answer: at its top if it is alone."""
    return "" if len(made) == 1 else re.sub(r"\W+", "_", target.name)


def loaded(request: Request) -> Checkpoint:
    """The model that is asked, laid out for generation. Raises UserError for a device that is not there."""
    check_device(request.device)
    checkpoint = Checkpoint.load(request.run, device=own_device(request.device))
    return checkpoint.prepare(request.precision, request.acceleration)


def check_device(name: str) -> None:
    if not is_usable(name):
        raise UserError(
            f"--device: expected cpu, or cuda where there is a GPU that torch can use ({torch.cuda.device_count()} "
            f"here, counted from cuda:0), got '{name}'. Leave --device out, or install torch for this GPU."
        )


def is_usable(name: str) -> bool:
    """Whether a device is there, and of a kind that requests are answered on."""
    try:
        device = torch.device(name)
    except RuntimeError:
        return False
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    return device.type == "cpu" and not device.index


def free_folder(request: Request) -> Path:
    """A name for an answer that nothing has yet, such as generated/text-to-brain_subj01-2."""
    given = [name for name in ("image", "brain", "text") if getattr(request, name)] or ["nothing"]
    name = re.sub(r"[^\w-]+", "_", f"{'-'.join(given)}-to-{'-'.join(request.to)}")
    names = (Path("generated") / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(path for path in names if not path.exists())


def answers(checkpoint: Checkpoint, request: Request, resolved: Resolved) -> dict[Target, Generated]:
    """What is generated for each target. Ctrl-C says how far it came."""
    made: dict[Target, Generated] = {}
    for target in resolved.targets:
        config = request.config
        if target.name == "text":  # there is no mean of words: several samples are several captions
            config = replace(config, estimate="sample")
        try:
            generated = estimate(checkpoint, resolved.conditions, target.name, config)
        except KeyboardInterrupt as interrupt:
            done = f"{len(made)} of {len(resolved.targets)} targets done"
            raise KeyboardInterrupt(f"while generating {target.asked}, {done}") from interrupt
        if num_samples(generated) < 2:
            generated = generated._replace(samples=None)
        made[target] = generated
        if target.rest:
            assert resolved.given_sites is not None
            given = torch.from_numpy(resolved.given_sites)
            hidden = [x.cpu().masked_fill(given, torch.nan) if isinstance(x, Tensor) else None for x in generated]
            assert hidden[0] is not None
            made[target] = Generated(hidden[0], *hidden[1:])
    return made


def num_samples(generated: Generated) -> int:
    """How many samples of each row there are."""
    if isinstance(generated.samples, Tensor):
        return generated.samples.shape[1]
    return len(generated.samples[0]) if generated.samples else 0


def versions() -> dict[str, str]:
    return {"brainjanus": version("brainjanus"), "torch": torch.__version__, "python": platform.python_version()}


# ---------------------------------------------------------------------------------------------- the forms of an answer


def write_captions(folder: Path, generated: Generated, rows: Sequence[str]) -> None:
    captions = generated.values if generated.samples is None else generated.samples
    text = json.dumps(dict(zip(rows, captions, strict=True)), indent=1, ensure_ascii=False)
    (folder / "captions.json").write_text(text, encoding="utf-8")


def write_pictures(folder: Path, generated: Generated, rows: Sequence[str]) -> None:
    from PIL import Image

    (folder / "pictures").mkdir()
    samples = pixels(generated)
    pictures = samples.reshape(-1, *samples.shape[2:])
    for path, picture in zip(picture_paths(folder, generated, rows), pictures, strict=True):
        Image.fromarray(picture).save(path)
    if generated.samples is not None:
        draw_sheet(samples, rows).save(folder / "samples.png")


def picture_paths(folder: Path, generated: Generated, rows: Sequence[str]) -> list[Path]:
    """Where each picture goes: row by row, and sample by sample."""
    names = map(picture_name, rows)
    if generated.samples is None:
        return [folder / "pictures" / f"{name}.png" for name in names]
    samples = range(pixels(generated).shape[1])
    return [folder / "pictures" / f"{name}-{sample:02d}.png" for name in names for sample in samples]


# S samples
def pixels(generated: Generated) -> UInt8[np.ndarray, "b s h w 3"]:
    pictures = generated.samples if isinstance(generated.samples, Tensor) else generated.values
    assert isinstance(pictures, Tensor)
    pictures = pictures if pictures.dim() == 5 else pictures[:, None]
    return (pictures * 255).round().byte().cpu().numpy()


def draw_sheet(samples: UInt8[np.ndarray, "b s h w 3"], rows: Sequence[str]) -> Any:
    """One line of pictures for each row, all its samples side by side, under its name."""
    from PIL import Image, ImageDraw

    samples = samples[:MOST_ON_SHEET]
    gap, title = 6, 18
    across, down = samples.shape[1], samples.shape[0]
    sheet = Image.new("RGB", (gap + across * (TILE + gap), down * (TILE + gap + title) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for row in range(down):
        top = gap + row * (TILE + gap + title)
        draw.text((gap, top), rows[row], fill="black")
        for sample in range(across):
            tile = Image.fromarray(samples[row, sample]).resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (gap + sample * (TILE + gap), top + title))
    return sheet


def write_brain(
    folder: Path, generated: Generated, rows: Sequence[str], space: BrainSpace, request: Request
) -> list[str]:
    """Responses in all forms that are asked for; returns what could not be drawn, and why."""
    found = zip(("responses", "standard_error", "samples"), generated, strict=True)
    arrays = {name: x.float().contiguous().cpu().numpy() for name, x in found if isinstance(x, Tensor)}
    (folder / "rows.json").write_text(json.dumps(list(rows), indent=1), encoding="utf-8")
    kind = str(space.geometry.get("type"))
    wanted = request.formats or ("safetensors", "png", *([MAPS[kind]] if kind in MAPS else []))
    if "safetensors" in wanted:
        save_file(arrays, folder / "responses.safetensors", metadata=ZSCORED)
    if "npy" in wanted:
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)
    samples = arrays.pop("samples", None)
    several = {} if samples is None else {f"samples-{s:02d}": samples[:, s] for s in range(samples.shape[1])}
    for name, values in (arrays | several).items():
        if "nifti" in wanted:
            save_nifti(folder / f"{name}.nii.gz", values, space)
        if "gifti" in wanted:
            save_gifti(folder, name, values, space, rows)
    if "png" not in wanted:
        return []
    if not can_draw(space):
        return [f"responses.png was not drawn: {NILEARN}"]
    if samples is None:
        maps = dict(zip(rows, arrays["responses"], strict=True))
    else:
        maps = {f"{row}, {s}": map_ for row, of in zip(rows, samples, strict=True) for s, map_ in enumerate(of)}
    maps = dict(list(maps.items())[:MOST_DRAWN])
    kinds = {"mean": "expected", "sample": "plausible"}
    try:
        drawn = draw_maps(space, maps, label=f"{kinds[request.config.estimate]} response (z)")
    except Exception as error:  # the answer is there, and is worth more than a picture of it
        return [f"responses.png was not drawn: {type(error).__name__} ({error})"]
    (folder / "responses.png").write_bytes(drawn)
    return []


def can_draw(space: BrainSpace) -> bool:
    return space.geometry.get("type") != "surface" or find_spec("nilearn") is not None


def save_nifti(path: Path, values: Float[np.ndarray, "n v"], space: BrainSpace) -> None:
    import nibabel

    nibabel.save(nibabel.concat_images([space.to_nifti(row) for row in values]), path)


def save_gifti(
    folder: Path, name: str, values: Float[np.ndarray, "n v"], space: BrainSpace, rows: Sequence[str]
) -> None:
    """One file for each hemisphere, one array [vertices] for each row; NaN where nothing is predicted."""
    import nibabel
    from nibabel.gifti import GiftiDataArray, GiftiImage, GiftiMetaData

    hemispheres = [space.to_surface(row) for row in values]
    for side, letter, structure in (("left", "L", "CortexLeft"), ("right", "R", "CortexRight")):
        about = {"AnatomicalStructurePrimary": structure, "Template": str(space.geometry.get("template", ""))}
        arrays = [
            GiftiDataArray(maps[side], "NIFTI_INTENT_NONE", "NIFTI_TYPE_FLOAT32", meta=GiftiMetaData(Name=row))
            for maps, row in zip(hemispheres, rows, strict=True)
        ]
        nibabel.save(GiftiImage(meta=GiftiMetaData(about), darrays=arrays), folder / f"{name}_hemi-{letter}.func.gii")


def check_formats(formats: Sequence[Format], target: Target, checkpoint: Checkpoint) -> None:
    """Raises UserError for a form that a subject's space does not have, or that cannot be made here."""
    if not target.name.startswith("brain:"):
        return
    space = checkpoint.spaces[target.name.removeprefix("brain:")]
    kind = str(space.geometry.get("type"))
    possible = ["safetensors", "npy", "png", *([MAPS[kind]] if kind in MAPS else [])]
    if wrong := [form for form in formats if form not in possible]:
        raise UserError(
            f"--format {wrong[0]}: expected a form that the brain of {space.subject} has ({', '.join(possible)}), got "
            f"{space.kind} with a space of type '{kind}'. Choose from these."
        )
    if "png" in formats and not can_draw(space):
        raise UserError(f"--format png: expected a brain that can be drawn, got {space.subject}'s surface: {NILEARN}.")


def shown(target: Target, generated: Generated, rows: Sequence[str], folder: Path) -> list[str]:
    """A few lines that tell a person what was generated."""
    if target.name == "text":
        groups = [[caption] for caption in generated.values] if generated.samples is None else generated.samples
        told = [f"{row}: {caption}" for row, group in zip(rows, groups, strict=True) for caption in group]
    elif target.name == "image":
        told = [str(path) for path in picture_paths(folder, generated, rows)]
        told = told if generated.samples is None else [str(folder / "samples.png"), *told]
    else:
        values = generated.values
        assert isinstance(values, Tensor)
        asked = target.name if not target.rest else f"{target.name} but the given sites"
        return [f"{asked}: {values.shape[0]} x {int(torch.isfinite(values[0]).sum())} sites, z-scored, in {folder}"]
    more = [f"... and {len(told) - MOST_SHOWN} more"] if len(told) > MOST_SHOWN else []
    return told[:MOST_SHOWN] + more


# ----------------------------------------------------------------------------------------------------------- rankings


def rank(checkpoint: Checkpoint, resolved: Resolved) -> list[Ranked]:
    """Every candidate under every row's conditions, row by row, likeliest first."""
    given, target = resolved.candidates, resolved.targets[0]
    assert given is not None
    labels = candidate_names(given.values, given.names)
    log_p = score_candidates(checkpoint, resolved.conditions, target.name, given.values).double().cpu()
    posterior = log_p.softmax(dim=1)
    ranking = []
    for row, name in enumerate(resolved.rows):
        for place in log_p[row].argsort(descending=True, stable=True).tolist():
            ranking.append(Ranked(name, labels[place], float(log_p[row, place]), float(posterior[row, place])))
    return ranking


def candidate_names(values: list[str] | np.ndarray, names: Sequence[str | None]) -> list[str]:
    """Sentences are called by their words, others by their names or numbers."""
    if isinstance(values, list):
        return [words if name is None else f"{name}: {words}" for words, name in zip(values, names, strict=True)]
    return [name or f"{row:04d}" for row, name in enumerate(names)]


def write_ranking(folder: Path, ranking: Sequence[Ranked]) -> None:
    with open(folder / "scores.tsv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(Ranked._fields)
        table.writerows(ranking)
    by_row: dict[str, list[dict[str, Any]]] = {}
    for one in ranking:
        by_row.setdefault(one.row, []).append(dict(list(one._asdict().items())[1:]))
    (folder / "scores.json").write_text(json.dumps(by_row, indent=1, ensure_ascii=False), encoding="utf-8")


# -------------------------------------------------------------------------------------------------------------- names


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
