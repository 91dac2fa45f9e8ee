"""Training: as fast as the machine, as the published way, as the disk; each claim a script of its own, all from here.

training_rate.py        FLOP/s of a step as a share of the machine's own matrix products; what Muon costs
training_published.py   samples a second on stored codes against encoding inside the step, as published
training_data.py        batches from a store of 27,000 x 15,724 responses: speed, cold and warm, and memory
python benchmarks/training.py --out benchmarks/results/training.json [--quick] [--rate | --published | --data]
"""

import training_data
import training_published
import training_rate
from records import arguments, write

SECTIONS = {"rate": training_rate, "published": training_published, "data": training_data}


def main() -> None:
    options = arguments(__doc__, flags={name: f"{name} alone, or with others named" for name in SECTIONS})
    named = [section for name, section in SECTIONS.items() if getattr(options, name)] or list(SECTIONS.values())
    claims = [claim for section in named for claim in section.claims(options)]
    write(claims, options.out)


if __name__ == "__main__":
    main()
