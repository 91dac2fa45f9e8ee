"""What a file or folder is: one of this package, or someone else's, and then what to do with it.

Enters: any path. Leaves: its kind, a sentence, and what is known of it: origin, version, fingerprint, sizes.
Nothing large is read and nothing is unpickled:
manifests, headers of arrays, first bytes.
"""

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from brainjanus.core.card import yours_in
from brainjanus.core.errors import UserError
from brainjanus.data.dataset import listed
from brainjanus.data.datasheet import CARD

# what a manifest calls itself -> (kind, where its version stands)
FORMATS = {
    "brainjanus-dataset": ("dataset", "brainjanus.data.dataset"),
    "brainjanus-model": ("checkpoint", "brainjanus.model.checkpoint"),
    "brainjanus-brain-tokenizer": ("brain tokenizer", "brainjanus.tokenizers.folder"),
    "brainjanus-request": ("request", "brainjanus.request"),
}
# folders that lie in one that has a manifest -> what they hold
PARTS = {
    "codes": "what was encoded once for training",
    "samples": "what the model answered while it was trained",
    "spaces": "where the sites of each subject lie",
    "stages": "the trainings, one after the other",
    "subjects": "the recordings",
}
ANSWERS = ("captions.json", "rows.json", "scores.json", "scores.tsv")
MOST_JSON = 64_000_000  # bytes; a larger file is named by its first bytes alone
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")
Facts = dict[str, Any]


class Described(NamedTuple):
    """What a path is. ours: whether this package wrote it. advice: what to do with it, or ""."""

    path: Path
    kind: str
    ours: bool
    sentence: str
    facts: Facts
    advice: str = ""

    def text(self) -> str:
        """A line for each thing that is known."""
        lines = [f"{self.path}: {self.sentence}"]
        wide = max(map(len, self.facts), default=0)
        lines += [f"  {name:<{wide}}  {value}" for name, value in self.facts.items()]
        return "\n".join([*lines, *([f"  {self.advice}"] if self.advice else [])])

    def json(self) -> str:
        return json.dumps(self._asdict() | {"path": str(self.path)}, indent=1, ensure_ascii=False, default=str)


def describe(path: Path | str) -> Described:
    """Say what is at `path`. Raises UserError if nothing is there, or it cannot be read."""
    path = Path(path)
    try:
        if not path.exists():
            raise UserError(f"{path}: expected a file or a folder, got nothing there. Check the path.")
        return _folder(path) if path.is_dir() else _file(path)
    except (OSError, SafetensorError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: expected something that can be read, got '{error}'. It is damaged, cut short, or not yours to "
            "read: copy it again, or change its permissions."
        ) from error
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        EOFError,
        ArithmeticError,
        MemoryError,
        RecursionError,
        NotImplementedError,
        SyntaxError,
        TokenError,
        zlib.error,
    ) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: expected a file as it was written, got one whose contents make no sense "
            f"({type(error).__name__}: {error}). It was edited, or is damaged: copy it again."
        ) from error


# ---------------------------------------------------------------------------------------------------- folders


def _folder(path: Path) -> Described:
    within = ("dataset.json", "model.json", "config.json", "log.jsonl")
    if path.name in PARTS and any((path.parent / name).is_file() for name in within):
        sentence = f"{PARTS[path.name]}, a part of {path.parent.name}."
        return Described(path, path.name, True, sentence, {"size": _size_of(path)}, f"Give {path.parent}")
    for marker, tell in (
        ("dataset.json", _dataset),
        ("model.json", _run),
        ("tune.json", _tune),
        ("ablation.json", _ablation),
        ("measured.json", _ablation),
        ("request.json", _answers),
        ("doctor.json", _doctor),
        ("tokenizer.json", _tokenizer),
        ("state.json", _state),
        ("made_by.json", _predicted),
        ("space.json", _space),
        ("scores.json", _scores),
        ("config.json", _begun),
        ("journal.json", _journal),
    ):
        if (path / marker).is_file() and (found := tell(path)) is not None:
            return found
    names = sorted(entry.name for entry in path.iterdir())
    inside = set(names)
    size = {"size": _size_of(path)}
    if (path / ".predictions/made_by.json").is_file() and (found := _predicted(path / ".predictions")) is not None:
        return found._replace(path=path)
    if not names:
        return Described(path, "empty folder", False, "an empty folder.", {}, "It may be given as --out.")
    if {"dataset", "truth"} <= inside:
        return _simulated(path)
    if {"study", "run"} <= inside:
        return Described(
            path,
            "demo",
            True,
            "what `brainjanus demo` made: a simulated study, a run, and its report.",
            {"dataset": path / "study/dataset", "run": path / "run", "report": path / "report.html", **size},
        )
    if {"trials.tsv", "responses.safetensors"} <= inside:
        return Described(
            path,
            "subject",
            True,
            f"the recording of {path.name}, a part of a dataset.",
            size,
            f"Give its dataset: {path.parent.parent}",
        )
    if parts := [name for name in names if name.startswith("part-") and name.endswith(".safetensors")]:
        return Described(
            path,
            "codes",
            True,
            f"rows that were encoded once for training, in {len(parts)} parts.",
            size,
            "They are made again if they are deleted.",
        )
    if states := sorted(path.glob("step-*/state.json")):
        newest = _state(states[-1].parent)
        return newest._replace(
            path=path, kind="states", sentence=f"{len(states)} states of a training; the newest: {newest.sentence}"
        )
    if (path / "state").is_dir() or (path / "log.jsonl").is_file():
        return _stage(path, size)
    if codes := sorted(file.stem for file in path.glob("*.safetensors") if _is_codes(file)):
        return Described(
            path,
            "brain codes",
            True,
            f"brain codes of {listed(codes)}.",
            _safetensors(path / f"{codes[0]}.safetensors").facts,
        )
    return _foreign_folder(path, names, size)


def _dataset(path: Path) -> Described:
    facts = _json(path / "dataset.json")
    version = _version(path / "dataset.json", facts)
    provenance = facts.get("provenance") or {}
    source = (
        provenance.get("source")
        or provenance.get("layout")
        or ("files of your own" if "config" in provenance else None)
        or ("a simulation" if "simulat" in str(provenance)[:2000].lower() else None)
    )
    source = ", ".join(str(one) for one in (source, provenance.get("path")) if one)
    left_out = [str(notice) for notice in provenance.get("notices") or ()]
    shown = {
        "name": facts["name"],
        "recording": facts["modality"],
        "subjects": listed(facts["subjects"]),
        "stimuli": f"{facts.get('num_stimuli', '?'):,}" if isinstance(facts.get("num_stimuli"), int) else "?",
        "pictures": f"{facts['image_size']} x {facts['image_size']}" if facts["image_size"] else "none",
        "z-scored": {"session": "per session", "all": "over all sessions", "none": "no"}.get(
            str(facts.get("zscore")), "?"
        ),
        **({"from": source} if source else {}),
        **{f"note {number}": notice for number, notice in enumerate(left_out, start=1)},
        "version": version,
        "fingerprint": facts["fingerprint"],
        "size": f"{_bytes(sum(one['bytes'] for one in facts['files'].values()))} in {len(facts['files'])} files",
        **_card(path),
    }
    missing = [
        name
        for name, one in facts["files"].items()
        if not (path / name).is_file() or (path / name).stat().st_size != one["bytes"]
    ]
    told = (
        f"a dataset, of which {len(missing)} files are missing or cut short ({listed(missing, 3)})."
        if missing
        else "a dataset."
    )
    advice = "Copy it again." if missing else f"`brainjanus doctor {path}` says whether it is sound."
    return Described(path, "dataset", True, told, shown, advice)


def _run(path: Path) -> Described:
    facts = _json(path / "model.json")
    version = _version(path / "model.json", facts)
    origin = facts["provenance"]
    shown = {
        "subjects": ", ".join(f"{name} ({sites:,} sites)" for name, sites in list(facts["num_sites"].items())[:8]),
        "trained on": f"{origin.get('dataset')} ({str(origin.get('fingerprint'))[:12]})",
        "seed": origin.get("seed"),
        "tokenizers": ", ".join(
            name for name in ("brain", "image", "text") if name == "brain" or facts[f"{name}_tokenizer"]
        ),
        "made with": f"torch {origin.get('torch')}, Python {origin.get('python')}",
        "version": version,
        "weights": _size_of(path / "model.safetensors"),
        **_stages(path),
        **_card(path),
    }
    return Described(
        path,
        "run",
        True,
        "a trained run: a model with its tokenizers.",
        shown,
        f"`brainjanus generate {path}` and `brainjanus evaluate {path}` use it.",
    )


def _predicted(path: Path) -> Described | None:
    facts = _json(path / "made_by.json")
    if not {"run", "dataset", "seed"} <= facts.keys():
        return None
    done = sum(file.name != "made_by.json" for file in path.glob("*.json"))
    told = {"predictions": done, "dataset": facts["dataset"], "seed": facts["seed"], "size": _size_of(path)}
    advice = "The same `brainjanus evaluate` command goes on with them; they may be deleted."
    return Described(
        path, "unfinished evaluation", True, "predictions of an evaluation that is not finished.", told, advice
    )


def _begun(path: Path) -> Described | None:
    facts = _json(path / "config.json")
    if "model_type" in facts or "architectures" in facts:
        kind = facts.get("model_type") or facts["architectures"][0]
        if "multi_modality" in str(kind) or "MultiModality" in str(kind):
            advice = (
                "Janus as its authors publish it is not read: fetch it in the Hugging Face format, "
                "deepseek-community/Janus-Pro-1B or -7B."
            )
        elif "janus" in str(kind).lower():
            advice = "Give it to `--janus`."
        else:
            advice = "As a vision encoder, call it transformers:FOLDER."
        return Described(
            path, "transformers model", False, f"a model of `transformers`, {kind}.", {"size": _size_of(path)}, advice
        )
    if {"dataset", "fingerprint", "config"} <= facts.keys():
        stages = _stages(path)
        return Described(
            path,
            "unfinished run",
            True,
            "a run that is not finished.",
            {
                "dataset": f"{facts['dataset']} ({str(facts['fingerprint'])[:12]})",
                "dataset's path": facts.get("path", "?"),
                **stages,
                **_card(path),
            },
            "Give the same command again, with the same --out: it goes on where it was stopped.",
        )
    return None


def _card(path: Path) -> Facts:
    """Where the card of a dataset or a run is."""
    return {"card": path / CARD} if (path / CARD).is_file() else {}


def _journal(path: Path) -> Described | None:
    facts = _json(path / "journal.json")
    if not {"options", "study", "inputs"} <= facts.keys():
        return None
    name = path.name.removeprefix(".").removesuffix(".streaming")
    done = len(list(path.glob("pictures/*.npz"))), len(list(path.glob("subjects/*/*.npz")))
    return Described(
        path,
        "preparation",
        True,
        f"a preparation of {name} that is not finished.",
        {"files read": len(facts["inputs"]), "done": f"{done[0]} parts of pictures, {done[1]} sessions"}
        | {"size": _size_of(path)},
        f"Give the same command again, with --out {path.with_name(name)}: it goes on where it was stopped.",
    )


def _tune(path: Path) -> Described:
    facts = _json(path / "tune.json")
    cells = sorted(path.glob("cells/*/result.json"))
    done = (path / "config.json").is_file()
    return Described(
        path,
        "rate search",
        True,
        f"a search for a learning rate, {'complete' if done else 'not finished'}.",
        {"trainings": len(cells), **_origin(facts)},
        f"`brainjanus train DATASET --config {path / 'config.json'}` trains with the best."
        if done
        else "Give the same command again.",
    )


def _ablation(path: Path) -> Described:
    done = (path / "ablation.json").is_file()
    facts = _json(path / ("ablation.json" if done else "config.json"))
    return Described(
        path,
        "ablation",
        True,
        f"an ablation of the brain tokenizer, {'complete' if done else 'not finished'}.",
        {"cells": len(list(path.glob("cells/*/result.json"))), **_origin(facts)},
        f"Open {path / 'report.html'}." if done else "Give the same command again.",
    )


def _answers(path: Path) -> Described:
    facts = _json(path / "request.json")
    version = _version(path / "request.json", facts)
    asked = facts["asked"]
    given = [name for name in ("brain", "text", "image") if asked.get(name)]
    return Described(
        path,
        "predictions",
        True,
        f"what `brainjanus generate` answered: {', '.join(map(str, facts['targets']))} from "
        f"{' and '.join(given) or 'nothing'}.",
        {
            "run": asked.get("run"),
            "rows": f"{len(facts['rows']):,}",
            "model": facts["model"],
            "version": version,
            "size": _size_of(path),
        },
        f"`brainjanus generate --request {path / 'request.json'}` asks for it again; `brainjanus doctor DATASET "
        "--predictions` looks at it.",
    )


def _doctor(path: Path) -> Described:
    facts = _json(path / "doctor.json")
    lights = ", ".join(f"{count} {light}" for light, count in facts["lights"].items() if count)
    return Described(
        path,
        "doctor's report",
        True,
        f"what `brainjanus doctor` found: {lights}.",
        {"dataset": f"{facts['dataset']} ({str(facts['fingerprint'])[:12]})"},
        f"Open {path / 'doctor.html'}.",
    )


def _tokenizer(path: Path) -> Described | None:
    facts = _json(path / "tokenizer.json")
    if "format" not in facts:
        kind = "a text tokenizer of the `tokenizers` library" + (
            ", a part of a run." if path.name == "tokenizers" else "."
        )
        words = len((facts.get("model") or {}).get("vocab") or {})
        ours = (path / "brain.safetensors").is_file()
        return Described(
            path,
            "tokenizers of a run" if ours else "text tokenizer",
            ours,
            kind,
            {"tokens": f"{words:,}", "size": _size_of(path)},
            f"Give its run: {path.parent}" if ours else "",
        )
    version = _version(path / "tokenizer.json", facts)
    origin = facts["provenance"]
    return Described(
        path,
        "brain tokenizer",
        True,
        "a trained brain tokenizer.",
        {
            "subjects": ", ".join(f"{name} ({sites:,} sites)" for name, sites in list(facts["num_sites"].items())[:8]),
            "trained on": listed(f"{name} ({print_[:12]})" for name, print_ in origin.get("datasets", {}).items()),
            "seed": origin.get("seed"),
            "made with": f"torch {origin.get('torch')}",
            "version": version,
            "fingerprint": facts["fingerprint"],
            "size": _size_of(path / "tokenizer.safetensors"),
        },
        f"`brainjanus tokenize {path} DATASET --out CODES` uses it.",
    )


def _state(path: Path) -> Described:
    facts = _json(path / "state.json")
    total = (facts.get("config") or {}).get("steps")
    return Described(
        path,
        "state",
        True,
        f"the state of a training at step {facts['step']:,}" + (f" of {total:,}." if isinstance(total, int) else "."),
        {"files": len(facts.get("files") or ()), "size": _size_of(path)},
        "A run goes on from it by itself: give its command again.",
    )


def _space(path: Path) -> Described:
    facts = _json(path / "space.json")
    geometry = facts.get("geometry", {}).get("type", "none")
    shown = {"sites": f"{facts['num_sites']:,} {facts['kind']}", "regions": listed(facts["rois"]), "geometry": geometry}
    if (path / "trials.tsv").is_file():
        return Described(
            path,
            "subject",
            True,
            f"the recording of {facts['subject']}, a part of a dataset.",
            shown | {"size": _size_of(path)},
            f"Give its dataset: {path.parent.parent}",
        )
    return Described(path, "space", True, f"where the sites of {facts['subject']} lie.", shown)


def _scores(path: Path) -> Described | None:
    return _of_json(path / "scores.json")._replace(path=path)


def _simulated(path: Path) -> Described:
    known = describe(path / "dataset")
    return Described(
        path,
        "simulated study",
        True,
        "a simulated study: a dataset, and the truth that it was made from.",
        {"dataset": path / "dataset", **known.facts},
        known.advice,
    )


def _stage(path: Path, size: Facts) -> Described:
    log = path / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    last = json.loads(lines[-1]) if lines else {}
    shown = {
        "lines of log": len(lines),
        **({"step": last.get("step"), "loss": last.get("loss")} if last else {}),
        **size,
    }
    return Described(
        path,
        "stage",
        True,
        f"the training of {path.name}, a stage of a run.",
        shown,
        f"Give its run: {path.parent.parent}",
    )


def _foreign_folder(path: Path, names: list[str], size: Facts) -> Described:
    inside = set(names)
    suffixes = [Path(name).suffix.lower() for name in names]

    def told(kind: str, sentence: str, advice: str) -> Described:
        return Described(path, kind, False, sentence, {"entries": f"{len(names):,}", **size}, advice)

    layout = "`brainjanus prepare --help` says how it is read."
    if {"nsddata", "nsddata_betas", "nsddata_stimuli"} & inside:
        return told("NSD", "it seems to be the Natural Scenes Dataset as it is released.", layout)
    if "dataset_description.json" in inside:
        return told("BIDS", "it seems to be a BIDS dataset.", layout)
    if "wds" in inside or any(name.startswith("betas_all_subj") for name in names):
        return told("MindEye2", "it seems to be MindEye2's data.", layout)
    if any(name.startswith("webdataset_avg") for name in names):
        return told("MindEye1", "it seems to be MindEye1's data.", layout)
    if {".git", "pyproject.toml", "setup.py"} & inside:
        return told("code", "it seems to be source code.", "")
    pictures = sum(suffix in PICTURES for suffix in suffixes)
    if pictures > len(names) / 2:
        return told(
            "pictures",
            f"{pictures:,} pictures.",
            "Give it to `brainjanus prepare --pictures`, or as predictions to `score`.",
        )
    ours = [
        entry
        for entry in sorted(path.iterdir())
        if entry.is_dir()
        and any((entry / mark).is_file() for mark in ("dataset.json", "model.json", "scores.json", "tokenizer.json"))
    ]
    if ours:
        return told(
            "folder",
            f"a folder that holds {listed([entry.name for entry in ours], 5)}.",
            f"Give one of them, such as {ours[0]}.",
        )
    kinds = sorted({suffix for suffix in suffixes if suffix})
    return told(
        "folder",
        f"a folder of files that this package did not write ({listed(kinds, 6)}).",
        "`brainjanus prepare` makes a dataset of recordings, pictures and captions.",
    )


# ---------------------------------------------------------------------------------------------------- files


def _file(path: Path) -> Described:
    suffix = path.suffix.lower()
    if path.stat().st_size == 0:
        return Described(path, "empty file", False, "an empty file.", {}, "Was it cut short? Copy it again.")
    if path.name in (
        "dataset.json",
        "model.json",
        "tune.json",
        "request.json",
        "doctor.json",
        "journal.json",
        "state.json",
        "space.json",
        "tokenizer.json",
        "ablation.json",
    ):
        found = _folder(path.parent)
        return found._replace(path=path, sentence=f"the manifest of {path.parent.name or 'a folder'}, {found.sentence}")
    if path.name in ANSWERS and (path.parent / "request.json").is_file():
        found = _answers(path.parent)
        return found._replace(path=path, sentence=f"{path.stem} among {found.sentence}")
    if suffix == ".json":
        return _of_json(path)
    if suffix == ".safetensors":
        return _safetensors(path)
    if suffix in (".npy", ".npz"):
        return _numpy(path)
    size = {"size": _size_of(path)}
    if suffix in PICKLES:
        return Described(
            path,
            "pickle",
            False,
            "it seems to hold pickled Python objects, which are never read here.",
            size,
            "Open it where you trust it, and save its arrays as safetensors or npy.",
        )
    tellers: Mapping[str, Callable[[Path], Described]] = {
        ".md": _markdown,
        ".jsonl": _log,
        ".html": _html,
        ".tsv": _table,
        ".csv": _table,
        ".toml": _toml,
        ".zip": _archive,
    }
    if suffix in tellers:
        return tellers[suffix](path)
    named = {
        ".nii": "a NIfTI image",
        ".gz": "a compressed file",
        ".mgz": "a FreeSurfer volume",
        ".gii": "a GIfTI surface",
        ".mat": "a MATLAB file",
        ".h5": "an HDF5 file",
        ".hdf5": "an HDF5 file",
        ".tar": "a tar archive",
    }
    named |= dict.fromkeys(PICTURES, "a picture")
    if path.name.endswith(".nii.gz"):
        suffix = ".nii"
    told = named.get(suffix, "a file that this package does not know")
    advice = {
        ".nii": "Betas and masks are read by `brainjanus prepare`; predicted responses by `brainjanus score`.",
        ".mat": "Name an array in it as FILE:KEY to `brainjanus prepare`.",
        ".h5": "Name an array in it as FILE:KEY to `brainjanus prepare`.",
        ".hdf5": "Name an array in it as FILE:KEY to `brainjanus prepare`.",
        ".tar": "Pictures in it are read by `brainjanus prepare --pictures`.",
    }.get(suffix, "")
    return Described(
        path, named.get(suffix, "unknown").removeprefix("a ").removeprefix("an "), False, f"{told}.", size, advice
    )


def _of_json(path: Path) -> Described:
    size: Facts = {"size": _size_of(path)}
    if path.stat().st_size > MOST_JSON:
        return Described(path, "json", False, "a JSON file, too large to look into.", size)
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(content, list):
        first = content[0] if content else None
        if isinstance(first, dict) and {"metric", "value"} <= first.keys():
            if "direction" in first:
                directions = list(dict.fromkeys(str(row.get("direction")) for row in content))
                shown = {
                    "directions": listed(directions),
                    "subjects": listed(dict.fromkeys(str(row.get("subject")) for row in content)),
                    "dataset": str(first.get("dataset")),
                    "stimuli": first.get("n"),
                    "seed": first.get("seed"),
                }
                return Described(
                    path,
                    "scores",
                    True,
                    f"{len(content):,} scores.",
                    shown | size,
                    "`brainjanus compare` puts them beside others.",
                )
            return Described(
                path, "scores of a tokenizer", True, f"{len(content):,} scores of a brain tokenizer.", size
            )
        if all(isinstance(one, str) for one in content):
            return Described(
                path,
                "ids",
                False,
                f"a list of {len(content):,} names, such as {listed(content, 3)}.",
                size,
                "As --ids it names the rows of an array.",
            )
        return Described(path, "json", False, f"a JSON list of {len(content):,}.", size)
    if not isinstance(content, dict):
        return Described(path, "json", False, f"JSON that holds a {type(content).__name__}.", size)
    if str(content.get("format")) in FORMATS:
        kind = FORMATS[content["format"]][0]
        return Described(
            path,
            kind,
            True,
            f"the manifest of a {kind}.",
            {"version": _version(path, content)} | size,
            "Give the folder that it lies in.",
        )
    if {"dataset", "fingerprint", "config"} <= content.keys():
        return Described(
            path,
            "settings",
            True,
            "the settings of a run.",
            {"dataset": f"{content['dataset']} ({str(content['fingerprint'])[:12]})"} | size,
            "`brainjanus train DATASET --config` takes it.",
        )
    if {"omni", "training", "brain_tokenizer"} <= content.keys():
        return Described(
            path, "settings", True, "settings to train with.", size, "`brainjanus train DATASET --config` takes it."
        )
    values = list(content.values())
    if {"images", "annotations"} <= content.keys():
        return Described(
            path,
            "COCO captions",
            False,
            f"COCO annotations of {len(content['images']):,} pictures.",
            size,
            "Join them by cocoId: `brainjanus prepare --help`.",
        )
    if values and all(
        isinstance(v, str) or (isinstance(v, list) and v and all(isinstance(s, str) for s in v)) for v in values
    ):
        several = any(isinstance(v, list) and len(v) > 1 for v in values)
        return Described(
            path,
            "captions",
            False,
            f"captions of {len(content):,} stimuli{', several each' if several else ''}.",
            {"ids like": listed(content, 3)} | size,
            "`brainjanus prepare --captions`, or `brainjanus score brain-to-text`, take it.",
        )
    return Described(path, "json", False, f"JSON with {listed(content, 6)}.", size)


def _safetensors(path: Path) -> Described:
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
        dtypes = {name: str(file.get_slice(name).get_dtype()) for name in list(shapes)[:64]}
    names = set(shapes)
    shown: Facts = {name: f"{dtypes.get(name, '')} {list(shape)}" for name, shape in list(shapes.items())[:6]}
    shown |= {"arrays": len(shapes)} if len(shapes) > 6 else {}
    shown |= {"size": _size_of(path)}

    def ours(kind: str, sentence: str, advice: str = "") -> Described:
        return Described(path, kind, True, sentence, shown, advice)

    if metadata.get("format") == "brainjanus-lora":
        facts = json.loads(metadata["lora"])
        return Described(
            path,
            "LoRA",
            True,
            f"LoRA matrices of rank {facts['rank']} (alpha {facts['alpha']}).",
            {"projections": listed(facts["modules"]), "matrices": len(shapes), "size": _size_of(path)},
            "They belong to the model that they were trained on: `load_lora` adds them to it.",
        )
    if names == {"session", "mean", "std"}:
        return ours(
            "z-scoring statistics",
            f"what responses were z-scored with: {shapes['mean'][0]} groups of {shapes['mean'][1]:,} sites.",
            "A part of a dataset.",
        )
    if {"mean", "std", "dropped"} == names:
        return ours(
            "units",
            f"the way from raw betas to z-scored responses, of {shapes['mean'][0]:,} sites.",
            "A part of a run.",
        )
    if {"order", "index"} <= names:
        return ours("space", f"where {shapes['order'][0]:,} sites lie.", "A part of a dataset, or of a run.")
    if {"codes", "decoded"} <= names and "tokenizer" in metadata:
        shown["tokenizer"] = metadata["tokenizer"]
        return ours(
            "brain codes",
            f"brain codes of {shapes['codes'][0]:,} stimuli, {shapes['codes'][1]:,} each.",
            f"{path.with_suffix('.json').name} names the stimuli.",
        )
    if "stimulus_ids" in metadata and "responses" in names:
        return ours("truth", "the truth of a simulated subject.", "No dataset reads it.")
    if "responses" in names:
        kind = (
            "predictions"
            if metadata.get("units") == "zscored" or names & {"standard_error", "samples"}
            else "responses"
        )
        shape = shapes["responses"]
        return ours(
            kind,
            f"{'predicted ' if kind == 'predictions' else ''}responses, {shape[0]:,} rows of {shape[1]:,} sites.",
            "`brainjanus doctor DATASET --predictions` looks at them."
            if kind == "predictions"
            else "A part of a dataset.",
        )
    if names == {"pixels", "stimulus"}:
        return ours("pictures", f"{shapes['pixels'][0]:,} pictures of a dataset.", "A part of a dataset.")
    if names == {"features"}:
        return ours("features", f"features of {shapes['features'][0]:,} stimuli.", "A part of a dataset.")
    if names == {"rows"}:
        return ours(
            "codes",
            f"{shapes['rows'][0]:,} rows that were encoded once for training.",
            "They are made again if they are deleted.",
        )
    if path.name in ("model.safetensors", "drafts.safetensors") and (path.parent / "model.json").is_file():
        return ours("weights", f"weights of the run {path.parent.name}.", f"Give the run: {path.parent}")
    if path.name in ("brain.safetensors", "image.safetensors", "vision.safetensors", "tokenizer.safetensors"):
        return ours(
            "weights",
            f"weights of the {path.stem} tokenizer.".replace("tokenizer tokenizer", "brain tokenizer"),
            "Give the folder of its run or tokenizer.",
        )
    if path.name == "best.safetensors" and (path.parent / "log.jsonl").is_file():
        return ours("weights", f"weights of {path.parent.name} at its best validation.", "A part of a training.")
    if path.name.startswith("shard-") and (path.parent / "state.json").is_file():
        return ours("state", "a shard of the state of a training.", f"Give the state: {path.parent}")
    if metadata.get("format") in ("pt", "tf", "np", "flax"):
        return Described(
            path,
            "weights",
            False,
            f"weights of someone's model, {len(shapes)} arrays.",
            shown,
            "Give the folder of the model.",
        )
    vectors = {shape for shape in shapes.values() if len(shape) == 1}
    if len(shapes) > 1 and len(vectors) == 1 and all(len(shape) == 1 for shape in shapes.values()):
        return Described(
            path,
            "responses",
            False,
            f"one vector of {next(iter(vectors))[0]:,} numbers for each of {len(shapes):,} names.",
            {"size": _size_of(path)},
            "As predicted responses, `brainjanus score to-brain` reads it.",
        )
    return Described(
        path,
        "arrays",
        False,
        f"{len(shapes)} arrays that this package did not write.",
        shown,
        "Name one as FILE:KEY to `brainjanus prepare`.",
    )


def _is_codes(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return {"codes", "decoded"} <= set(file.keys())
    except (OSError, SafetensorError):
        return False


def _numpy(path: Path) -> Described:
    import numpy as np

    size = {"size": _size_of(path)}
    advice = "Give it to `brainjanus prepare` (responses, features), or as predictions to `brainjanus score`."
    if path.suffix.lower() == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return Described(path, "array", False, f"an array {list(array.shape)}, {array.dtype}.", size, advice)
    with np.load(path, allow_pickle=False) as arrays:
        return Described(
            path, "arrays", False, f"arrays called {listed(arrays.files, 6)}.", size, f"{advice} Name one as FILE:KEY."
        )


def _log(path: Path) -> Described:
    lines = path.read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    if "step" not in last:
        return Described(path, "json lines", False, f"{len(lines):,} lines of JSON.", {"size": _size_of(path)})
    shown = {"stage": last.get("stage"), "step": last["step"], "loss": last.get("loss"), "size": _size_of(path)}
    return Described(path, "training log", True, f"the log of a training, {len(lines):,} lines.", shown)


def _html(path: Path) -> Described:
    head = path.read_bytes()[:4000].decode("utf-8", "replace")
    title = head.partition("<title>")[2].partition("</title>")[0]
    ours = "--ink:" in head and "--ceiling:" in head
    return Described(
        path,
        "report" if ours else "page",
        ours,
        f"a {'report' if ours else 'page'}, '{title}'.",
        {"size": _size_of(path)},
        "Open it in a browser.",
    )


def _markdown(path: Path) -> Described:
    size = {"size": _size_of(path)}
    if yours_in(path) is None:
        return Described(path, "text", False, "a text in Markdown.", size)
    text = path.read_text(encoding="utf-8").partition("\n---\n")[2]  # behind the front matter
    title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), "")
    told = "`brainjanus card` writes it anew; what you write under Notes, and at the end of its front matter, stays."
    return Described(path, "card", True, f"a card, '{title}'.", size, told)


def _table(path: Path) -> Described:
    with open(path, encoding="utf-8-sig") as file:
        columns = file.readline().rstrip("\n").split("\t" if path.suffix.lower() == ".tsv" else ",")
        rows = sum(1 for _ in file)
    size = {"columns": listed(columns, 10), "size": _size_of(path)}
    if {"stimulus_id", "session", "split"} <= set(columns):
        return Described(
            path, "trials", True, f"a table of {rows:,} trials.", size, "Which stimulus each response belongs to."
        )
    if {"stimulus_id", "num_pictures"} <= set(columns):
        return Described(path, "stimuli", True, f"the {rows:,} stimuli of a dataset.", size)
    if {"onset", "duration"} <= set(columns):
        return Described(
            path,
            "events",
            False,
            f"BIDS events, {rows:,} of them.",
            size,
            "`brainjanus prepare --help` says how trials are named.",
        )
    return Described(
        path,
        "table",
        False,
        f"a table of {rows:,} rows.",
        size,
        "Trials need the columns stimulus_id, and session, run, split if they are known.",
    )


def _toml(path: Path) -> Described:
    import tomllib

    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return Described(
        path,
        "settings",
        False,
        f"settings in TOML: {listed(content, 8)}.",
        {"size": _size_of(path)},
        "`brainjanus prepare --config`, or `train --config`, take it.",
    )


def _archive(path: Path) -> Described:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    pictures = sum(Path(name).suffix.lower() in PICTURES for name in names)
    advice = "`brainjanus prepare --pictures` reads it as it is." if pictures else ""
    return Described(
        path,
        "archive",
        False,
        f"an archive of {len(names):,} files, {pictures:,} of them pictures.",
        {"size": _size_of(path)},
        advice,
    )


# ---------------------------------------------------------------------------------------------------- helpers


def _json(path: Path) -> Facts:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise TypeError(f"a {type(content).__name__} where names and values should be")
    return content


def _version(path: Path, facts: Facts) -> str:
    """The version of a manifest, and whether this brainjanus reads it. Raises UserError for one of another program."""
    if facts.get("format") not in FORMATS:
        raise UserError(
            f"{path}: expected a format of this package ({listed(FORMATS)}), got {facts.get('format')!r}. It was "
            "written by another program: look there for what it is."
        )
    known = import_module(FORMATS[facts["format"]][1]).VERSION
    found = facts.get("version")
    return (
        f"{found}"
        if found == known
        else f"{found}, which this brainjanus does not read (it reads {known}): use the one that wrote it"
    )


def _origin(facts: Facts) -> Facts:
    return {"dataset": f"{facts.get('dataset', '?')} ({str(facts.get('fingerprint', '?'))[:12]})"}


def _stages(path: Path) -> Facts:
    logs = sorted(path.glob("stages/*/log.jsonl"))
    told = []
    for log in logs:
        lines = log.read_text(encoding="utf-8").splitlines()
        told.append(f"{log.parent.name} (step {json.loads(lines[-1]).get('step')})" if lines else log.parent.name)
    return {"stages": ", ".join(told)} if told else {}


def _size_of(path: Path) -> str:
    if path.is_dir():
        sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
        return f"{_bytes(sum(sizes))} in {len(sizes):,} files"
    return _bytes(path.stat().st_size) if path.exists() else "missing"


def _bytes(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"
