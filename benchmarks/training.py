"""Training: as fast as the machine, as the published way, as the disk; each claim a script of its own, all from here.

training_rate.py        FLOP/s of a step as a share of the machine's own matrix products; what Muon costs
training_published.py   samples a second on stored codes against encoding inside the step, as published
training_data.py        batches from a store of 27,000 x 15,724 responses: speed, cold and warm, and memory
training_gpu.py         Janus-Pro 1B and 7B on a GPU, where there is one: rate, samples a second, memory
python benchmarks/training.py --out benchmarks/results/training.json [--quick] [--rate | --published | --data | --gpu]
"""

import torch
import training_data
import training_gpu
import training_published
import training_rate
from records import arguments, write

SECTIONS = {"rate": training_rate, "published": training_published, "data": training_data, "gpu": training_gpu}


def main() -> None:
    options = arguments(__doc__, flags={name: f"{name} alone, or with others named" for name in SECTIONS})
    here = {name: section for name, section in SECTIONS.items() if name != "gpu" or torch.cuda.is_available()}
    named = [section for name, section in SECTIONS.items() if getattr(options, name)] or list(here.values())
    claims = [claim for section in named for claim in section.claims(options)]
    write(claims, options.out)


if __name__ == "__main__":
    main()
