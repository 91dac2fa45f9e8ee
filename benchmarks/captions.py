"""Conformance: published rows of caption scores, from the published files, through the command line.

python benchmarks/captions.py --out benchmarks/results/captions.json [--quick]

References and captions are BrainHub's (Xia et al. 2024). Each figure's bar is .001. `--quick` leaves METEOR out.
"""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

from records import REAL_DATA, Claim, arguments, write

NAMES = ("bleu1", "bleu2", "bleu3", "bleu4", "meteor", "rouge_l", "cider")
ROWS = {  # published or computed elsewhere, in percent
    "UMBRAE": (59.44, 40.48, 27.66, 19.03, 19.45, 43.71, 61.06),
    "OneLLM": (47.04, 26.97, 15.49, 9.51, 13.55, 35.05, 22.99),
    "UMBRAE shuffled": (36.61, 15.78, 6.84, 3.27, 8.40, 27.48, 4.57),
    "a constant caption": (51.35, 26.99, 10.85, 5.69, 9.33, 34.00, 7.10),
    "human, first against the rest": (64.22, 44.33, 29.47, 19.65, 24.64, 47.90, 95.35),
}
CONSTANT = "A person on a surfboard in the water."
BAR = 0.001


def main() -> None:
    args = arguments(__doc__)
    folder = REAL_DATA / "brainhub" / "captions"
    references = json.loads((folder / "fmri_cococap.json").read_text())
    decoded = {
        name: json.loads((folder / system / "sub01_decoded_caption.json").read_text())
        for name, system in (("UMBRAE", "umbrae-v-1-4"), ("OneLLM", "onellm"))
    }
    shuffled = list(decoded["UMBRAE"].values())
    random.seed(0)
    random.shuffle(shuffled)
    decoded["UMBRAE shuffled"] = dict(zip(decoded["UMBRAE"], shuffled, strict=True))
    decoded["a constant caption"] = dict.fromkeys(references, CONSTANT)
    decoded["human, first against the rest"] = {key: captions[0] for key, captions in references.items()}
    rest = {key: captions[1:] for key, captions in references.items()}

    work = args.work / "captions"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    claims = []
    for name, captions in decoded.items():
        against = rest if name.startswith("human") else references
        found = scored(work / name.replace(" ", "_").replace(",", ""), captions, against)
        for metric, percent in zip(NAMES, ROWS[name], strict=True):
            if metric == "meteor" and (args.quick or metric not in found):
                continue
            off = abs(found[metric] - percent / 100)
            claims.append(Claim(f"{name}: {metric}", found[metric], "", "row", percent / 100))
            claims.append(Claim(f"{name}: {metric}, off by", off, "", bar=BAR, at_most=True))
    write(claims, args.out)


def scored(folder: Path, captions: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    """What `brainjanus score` writes for these captions."""
    folder.mkdir()
    (folder / "predictions.json").write_text(json.dumps(captions))
    (folder / "references.json").write_text(json.dumps(references))
    command = [
        sys.executable,
        "-m",
        "brainjanus",
        "score",
        "brain-to-text",
        "--permutations",
        "10",
        "--resamples",
        "10",
    ]
    command += ["--predictions", folder / "predictions.json", "--references", folder / "references.json"]
    subprocess.run([*command, "--out", folder / "scores"], check=True, stdout=subprocess.DEVNULL)
    return {record["metric"]: record["value"] for record in json.loads((folder / "scores" / "scores.json").read_text())}


if __name__ == "__main__":
    main()
