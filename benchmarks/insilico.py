"""Experiments on a trained model against what is known of the cortex: planted selectivity and receptive fields of the
simulated one, published regions of object2vec (real fMRI).

The simulated part reads the demo's run, which is made where it is not there yet. Of object2vec the first published fold
is trained on; its prompts are words of the dataset, which has no word for a face but "figurine".
python benchmarks/insilico.py --out benchmarks/results/insilico.json [--simulated] [--object2vec] [--quick] [--seed 1]
"""

import argparse
from pathlib import Path

import object2vec
from records import Claim, arguments, write
from science import draft_alone, simulated

from brainjanus import Run, localize, retinotopy

MADE_FOR = {  # sentence -> the regions of the simulated cortex that answer most to it
    "a face": ("FFA", "OFA"),
    "a face with white hair": ("FFA", "OFA"),  # as captions say it
    "a house": ("PPA", "OPA", "RSC"),
    "a person": ("EBA",),
    "a sign": ("VWFA",),
}
AREAS = ("V1", "V2", "V3")
LEAST_AUC, MOST_P, LEAST_R = 0.85, 0.01, 0.8
TOP = {  # words of object2vec's stimuli -> regions one of which is expected to come first
    ("figurine",): ("FFA", "OFA"),
    ("house", "building", "mountain", "road", "cliff"): ("PPA", "OPA", "RSC"),
}
SELECTIVE = ("FFA", "OFA", "EBA", "PPA", "OPA", "RSC")  # for one category, where LOC and PFS answer to any object


def of_simulated(args: argparse.Namespace) -> list[Claim]:
    """Bars are the model's; the same of its linear draft alone stands beside each. The floor of an AUC is .5."""
    run = Run.open(simulated(args) / "run")
    return asked(run, args.seed, "", True) + asked(draft_alone(run), args.seed, ", linear draft alone", False)


def asked(run: Run, seed: int, who: str, judged: bool) -> list[Claim]:
    """What experiments find, against the truth. judged: whether bars are for it."""

    def claim(name: str, value: float, bar: float | None = None, *, at_most: bool = False) -> Claim:
        return Claim(f"{name}{who}", value, "", bar=bar if judged else None, at_most=at_most)

    claims = []
    for sentence, regions in MADE_FOR.items():
        for subject, facts in localize(run, [sentence], seed=seed).results["subjects"].items():
            title = f"'{sentence}', {subject}"
            for region in (name for name in regions if name in facts["regions"]):
                claims.append(claim(f"{title}, {region} AUC", facts["regions"][region]["auc"], LEAST_AUC))
            for against in (name for name in ("truth", "measured") if facts[name] is not None):
                claims.append(claim(f"{title}, r with {against}", facts[against]["r"]))
                claims.append(claim(f"{title}, spin p of {against}", facts[against]["p"], MOST_P, at_most=True))
    for subject, facts in retinotopy(run, seed=seed).results["subjects"].items():
        for area, kind in ((area, kind) for area in AREAS for kind in ("all", "determined")):
            sites, bar = facts["truth"][area][kind], LEAST_R if kind == "all" else None
            if sites is not None:
                title = f"{subject} {area}, {kind} sites"
                claims.append(claim(f"{title}, polar angle r", sites["angle_r"], bar))
                claims.append(claim(f"{title}, eccentricity r", sites["eccentricity_r"], bar))
    return claims


def of_object2vec(args: argparse.Namespace) -> list[Claim]:
    dataset, run = object2vec.trained(args, 1)
    claims = []
    for words, wanted in TOP.items():
        for facts in localize(run, list(words), dataset=dataset.path, seed=args.seed).results["subjects"].values():
            single = [name for name in facts["regions"] if "+" not in name]
            some = [name for name in single if name in SELECTIVE]
            print(f"{', '.join(words)}: {', '.join(single)}", flush=True)
            title = f"object2vec, {words[0]}, place of {' or '.join(wanted)}"
            for among, names, bar in (("all", single, 1), ("those for one category", some, None)):
                place = 1 + min(names.index(name) for name in wanted if name in names)
                claims.append(Claim(f"{title} among {among}", place, f"of {len(names)}", bar=bar, at_most=True))
    return claims


def main() -> None:
    parts = {"simulated": of_simulated, "object2vec": of_object2vec}
    args = arguments(__doc__, flags={part: f"the part of {part} alone" for part in parts})
    claims = []
    for part in [part for part in parts if getattr(args, part)] or parts:
        claims += parts[part](args)
    write(claims, Path(args.out))


if __name__ == "__main__":
    main()
