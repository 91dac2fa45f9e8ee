"""Whether `brainjanus doctor` finds what is wrong, and nothing else: planted defects, sound data, real recordings.

The twenty defects and the small recording are those of tests/planted.py. On the real recordings (macaque V4, spike
counts; object2vec, fMRI) trials as they are have to fit, and trials whose ids were moved by one have to be found. Of
MobileNet's pictures nothing is used: pictures are told apart by the built-in wavelets. Pictures are those of COCO and
object2vec: changed copies have to be found, and pairs of different ones must not be.
python benchmarks/doctor.py --out benchmarks/results/doctor.json [--quick]
"""

import argparse
import importlib.util
import io
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from records import REAL_DATA, Claim, arguments, write
from scipy.io import loadmat

from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.doctor import survey
from brainjanus.data.lookalikes import lookalikes, small
from brainjanus.data.readers.arrays import read_array
from brainjanus.data.write import digest_of, write_dataset
from brainjanus.doctor import Features, check_order, diagnose

SEEDS, QUICK_SEEDS = 20, 2
PICTURES = {"coco": ("coco_small/images_256.zip", 1), "object2vec": ("object2vec/stimuli_224.zip", 3)}


def planted():
    spec = importlib.util.spec_from_file_location("planted", Path(__file__).parents[1] / "tests" / "planted.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted"] = module
    spec.loader.exec_module(module)
    return module


def alarms(findings):
    return [one for one in findings if one.light in ("red", "yellow")]


def of_planted(seeds: int, folder: Path) -> list[Claim]:
    """Defects found by their name, and alarms on sound data, over seeds."""
    cases = planted()
    claims, silent, seconds = [], 0, []
    for seed in range(seeds):
        start = time.perf_counter()
        false = alarms(diagnose(cases.clean(seed).write(folder / f"clean-{seed}")))
        seconds.append(time.perf_counter() - start)
        silent += not false
        for one in false:
            print(f"seed {seed}: {one.light} {one.check}: {one.sentence}")
    claims.append(Claim("sound data without an alarm, share of seeds", silent / seeds, "", bar=1.0))
    claims.append(Claim("one small recording, seconds", float(np.median(seconds)), "s"))
    for name, (plant, check, kind, evidence) in cases.DEFECTS.items():
        found = others = 0
        for seed in range(seeds):
            study = cases.clean(seed)
            plant(study)
            told = alarms(diagnose(study.write(folder / f"{name}-{seed}".replace(" ", "-"))))
            hit = [one for one in told if (one.check, one.kind) == (check, kind)]
            found += bool(hit) and all(hit[0].evidence[key] == value for key, value in evidence.items())
            unlisted = {one.kind for one in told} - {kind} - cases.BESIDES.get(name, set())
            others += bool(unlisted)
            if not hit or unlisted:
                print(f"{name}, seed {seed}: {[one.kind for one in told]}")
        claims.append(Claim(f"found and named: {name}", found / seeds, "", bar=1.0))
        claims.append(Claim(f"other alarms beside it: {name}", others / seeds, "", bar=0.0, at_most=True))
    return claims


def moved(path: Path, name: str, stimuli: Stimuli, responses: np.ndarray, ids: list[str], test: set[str]) -> Dataset:
    """A dataset in which trial i shows ids[i]."""
    zeros = np.zeros(len(ids), np.int64)
    trials = Trials(ids, zeros + 1, zeros + 1, zeros, ["test" if one in test else "train" for one in ids])
    subject = Subject(BrainSpace("one", responses.shape[1], "neurons"), responses.astype(np.float32), trials)
    return write_dataset(path, name=name, modality="recording", subjects=[subject], stimuli=stimuli, zscore="all")


def of_recordings(folder: Path, quick: bool) -> list[Claim]:
    """Real recordings as they are, and with ids moved by one, reversed and permuted."""
    claims = []
    rng = np.random.default_rng(0)
    for name, pixels, picture_of, responses in recordings(quick):
        first: dict[bytes, int] = {}  # a picture that was shown twice is one stimulus
        shown = (
            [first.setdefault(digest_of(one), row) for row, one in enumerate(pixels)] if picture_of is None else None
        )
        kept = np.arange(len(responses)) if shown is None else np.unique(shown)
        named = {int(row): f"{row:04}" for row in kept}
        ids = [named[int(row)] for row in (kept if shown is None else shown)]
        stimuli = Stimuli(list(named.values()), pixels if shown is None else pixels[kept], picture_of)
        test = set(rng.permutation(sorted(set(ids)))[: len(ids) // 5].tolist())
        orders = {
            "": np.arange(len(ids)),
            "ids shifted": np.roll(np.arange(len(ids)), 1),
            "ids reversed": np.arange(len(ids))[::-1],
            "ids permuted": rng.permutation(len(ids)),
        }
        for kind, order in orders.items():
            dataset = moved(folder / f"{name}-{kind}", name, stimuli, responses, [ids[i] for i in order], test)
            (one,) = check_order(dataset, survey(dataset, "one"), Features(dataset))
            claims.append(Claim(f"{name}: {kind or 'as recorded'}", float(one.kind == kind), "", bar=1.0))
            if not kind:
                claims.append(Claim(f"{name}: fit, SD above shuffled", one.evidence["z"], "SD"))
    return claims


def recordings(quick: bool):
    v4 = REAL_DATA / "v4_cowley"
    for session in ("210325",) if quick else ("190923", "190925", "190928", "210224", "210322", "210325"):
        pixels = pictures_of(v4 / f"images_{session}.zip")
        responses = np.load(v4 / f"responses_{session}.npy").T
        yield f"V4 {session}", pixels, None, responses
    stack = REAL_DATA / "object2vec"
    conds = loadmat(stack / "roistack.mat", simplify_cells=True)["roistack"]["conds"]
    betas = np.asarray(read_array(f"{stack / 'roistack.mat'}:roistack.betas"))
    categories = [str(one) for one in conds]
    with zipfile.ZipFile(stack / "stimuli_224.zip") as archive:
        files = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".png")))
        pixels = np.stack([opened(archive, name, 96) for name in files])
    yield "object2vec", pixels, np.array([categories.index(name.split("/")[-2]) for name in files]), betas


def pictures_of(path: Path, every: int = 1, most: int = 10_000, size: int = 64) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith((".jpg", ".png"))]
        names = sorted(names, key=lambda name: name.split("/")[-1])[::every][:most]
        return np.stack([opened(archive, name, size) for name in names])


def opened(archive: zipfile.ZipFile, name: str, size: int) -> np.ndarray:
    picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return np.asarray(picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BOX))


def of_pictures(quick: bool) -> list[Claim]:
    """Copies that are found, by how they were changed; different photographs that are taken for one."""
    rng = np.random.default_rng(0)

    def crop(picture: Image.Image, least: float) -> Image.Image:
        side = picture.width
        kept = int(side * rng.uniform(least, least + 0.05))
        x, y = rng.integers(0, side - kept + 1, 2).tolist()
        return picture.crop((x, y, x + kept, y + kept))

    def encode(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=30)
        return Image.open(file).convert("RGB")

    changes = {
        "resized to a third": lambda picture: picture.resize((64, 64)),
        "JPEG of quality 30": encode,
        "cropped to 95-100 %": lambda picture: crop(picture, 0.95),
        "cropped to 90-95 %": lambda picture: crop(picture, 0.90),
        "cropped to 85-90 %": lambda picture: crop(picture, 0.85),
        "mirrored": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "mirrored, cropped, JPEG": lambda p: encode(crop(p.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 0.92)),
    }
    claims = []
    for name, (file, every) in PICTURES.items():
        pictures = pictures_of(REAL_DATA / file, every, 60 if quick else 280, size=192)
        first = np.stack([small(picture) for picture in pictures])
        half = len(first) // 2
        false = len(lookalikes(first[:half], first[half:]))
        claims.append(Claim(f"{name}: different pictures taken for one", false, "pairs", bar=0, at_most=True))
        few = pictures[: 20 if quick else 80]
        for change, apply in changes.items():
            second = np.stack([small(np.asarray(apply(Image.fromarray(one)).resize((192, 192)))) for one in few])
            found = {pair.second for pair in lookalikes(first, second) if pair.first == pair.second}
            claims.append(Claim(f"{name}: found, {change}", len(found) / len(few), "", bar=0.75))
    return claims


def claims(options: argparse.Namespace) -> list[Claim]:
    """Planted defects and sound data; real recordings and pictures where they are. options.quick: fewer seeds."""
    with tempfile.TemporaryDirectory() as folder:
        found = of_planted(QUICK_SEEDS if options.quick else SEEDS, Path(folder))
        if REAL_DATA.is_dir():
            found += of_recordings(Path(folder), options.quick) + of_pictures(options.quick)
    named = [one.value for one in found if one.name.startswith("found and named")]
    every = Claim("planted defects named in every seed", float(sum(one == 1 for one in named)), "", bar=len(named))
    return [every, *found]


if __name__ == "__main__":
    options = arguments(__doc__)
    write(claims(options), options.out)
