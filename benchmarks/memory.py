"""Memory: the peak that `brainjanus memory` computes, beside what torch's allocator gave out, on tiny stand-ins.

A stand-in has the parts of the large model in small: the same code runs, in float32 on a CPU, with the l x l products
of attention (short sequences) and without them (long ones). Behind that, what Janus-Pro needs, as docs/guide/memory.md
shows it.
python benchmarks/memory.py --out benchmarks/results/memory.json [--quick]
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from records import Claim, arguments, write

from brainjanus.generate import GenerationConfig, sample
from brainjanus.memory import GB, Peak, Request, Step, Study, janus_table, measured_peak, request_peak, step_peak
from brainjanus.model.checkpoint import Checkpoint, Tokenizers, interface_of
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.lora import LoraConfig
from brainjanus.model.omni import OmniConfig, OmniModel
from brainjanus.model.sequence import Block
from brainjanus.recipes import named
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.train.codes import BrainRows, Codes
from brainjanus.train.omni import OmniTrainingConfig, fit_omni
from brainjanus.train.optim import OptimConfig
from brainjanus.train.parallel import Hardware

WITHIN = 0.10
SITES, PATCH, STIMULI = 512, 16, 16
SIDE = 8  # codes along a side of a picture
LORA = LoraConfig(rank=8)
DECODER = DecoderConfig(
    hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=6
)


def stand_in(tokens: int = 64) -> Checkpoint:
    """About 20 MB of weights. tokens: vision features of a picture."""
    torch.manual_seed(0)
    quantizer = QuantizerConfig(num_codes=64, dim=4)
    brain = BrainTokenizer(
        BrainTokenizerConfig(patch_size=PATCH, patch=PatchConfig(width=8, depth=1, heads=2), quantizer=quantizer),
        {subject: torch.arange(SITES) for subject in ("a", "b")},
    )
    image = ImageTokenizer(ImageTokenizerConfig(32, SIDE, width=8, blocks=1, quantizer=quantizer))
    tokenizers = Tokenizers(brain, image)
    model = OmniModel(OmniConfig(DECODER, image_input="seen"), interface_of(tokenizers, {"seen": (tokens, 32)}))
    for module in (brain, image, model):
        module.eval().requires_grad_(False)
    return Checkpoint(tokenizers, model, {})


def codes_of(checkpoint: Checkpoint) -> Codes:
    """Noise, as a tokenized split."""
    brain, which = checkpoint.tokenizers.brain, torch.arange(STIMULI)
    codes = torch.randint(64, (STIMULI, SITES // PATCH))
    values = torch.randn(STIMULI, SITES)
    rows = BrainRows(which, which < 0, values, codes)
    pixels = torch.randint(256, (STIMULI, 32, 32, 3), dtype=torch.uint8)
    pictures = torch.randint(64, (STIMULI, SIDE**2))
    each = [i[None] for i in which]
    features = {"seen": torch.randn(STIMULI, *checkpoint.model.interface.features["seen"])}
    return Codes(tuple(map(str, which.tolist())), pixels, pictures, each, None, each, features, {"a": rows}, brain)


def measured_training(tokens: int, step: Step) -> int:
    """Of the real loop, three steps of it."""
    optim = replace(step.optim, steps=3, batch_size=step.batch_size, precision="float32")
    config = OmniTrainingConfig(
        optim, step.trained, step.lora, step.recompute, tasks={"image->brain:a": 1.0}, dropped=0.1
    )
    codes = codes_of(stand_in(tokens))

    def run() -> None:
        checkpoint = stand_in(tokens)
        with tempfile.TemporaryDirectory() as folder:
            hardware = Hardware("cpu", rows_at_once=step.rows_at_once)
            fit_omni(checkpoint.model, checkpoint.tokenizers, codes, config, Path(folder), seed=0, hardware=hardware)

    return measured_peak(run)


def measured_request(tokens: int, request: Request) -> int:
    """Of all draws, one after the other."""
    blocks = {
        "image": Block("image", vectors=torch.randn(request.rows, tokens, 32), features="seen"),
        "brain:a": Block("brain", vectors=torch.randn(request.rows, SITES // PATCH, PATCH), subject="a"),
    }
    length = SIDE**2 if request.target == "image" else SITES // PATCH
    codes = torch.zeros(request.rows, length, dtype=torch.long)
    goal = Block("image", codes=codes) if request.target == "image" else Block("brain", codes=codes, subject="a")
    config = GenerationConfig("sample", top_p=0.9, guidance=2.0 if request.guided else 1.0)
    uniform = torch.rand(request.rows, request.samples, length)

    @torch.no_grad()
    def run() -> None:
        sample(stand_in(tokens).model, [blocks[name] for name in request.conditions], goal, config, uniform)

    return measured_peak(run)


def agreements(quick: bool) -> list[tuple[str, Peak, int]]:
    """What was computed and what was measured, by name."""
    found: list[tuple[str, Peak, int]] = []

    def add(name: str, computed: Callable[..., Peak], measured: Callable[..., int], tokens: int, what: object) -> None:
        model = stand_in(tokens).model
        found.append((name, computed(model.config, model.interface, what), measured(tokens, what)))

    lengths = {"short": 64} if quick else {"short": 64, "long": 576}
    for length, tokens in lengths.items():
        for samples, guided in ((1, False), (16, False), (8, True)):
            to_image = Request(("brain:a",), "image", 2, samples, guided, torch.float32)
            to_brain = replace(to_image, conditions=("image",), target="brain:a")
            told = f"{samples} samples{', guided' if guided else ''}"
            add(f"request, {length}, brain->image, {told}", request_peak, measured_request, tokens, to_image)
            add(f"request, {length}, image->brain, {told}", request_peak, measured_request, tokens, to_brain)
        for trained in ("full", "lora", "brain"):
            for again in (False, True):
                optim = OptimConfig(optimizer="muon" if trained == "full" and again else "adamw")
                step = Step(("image",), "brain:a", 8, trained, LORA, optim, again, torch.float32)
                name = f"training, {length}, {trained}{', recomputed' if again else ''}"
                add(name, step_peak, measured_training, tokens, step)
        step = Step(("image",), "brain:a", 8, "full", LORA, OptimConfig(optimizer="adamw"), False, torch.float32, 2)
        add(f"training, {length}, full, 2 rows at once", step_peak, measured_training, tokens, step)
    return found


def main() -> None:
    options = arguments(__doc__)
    claims = []
    for name, computed, measured in agreements(options.quick):
        total = computed.total / 2**20
        claims.append(Claim(f"{name}: computed", total, "MiB", "measured", measured / 2**20))
        claims.append(Claim(f"{name}: off by", abs(computed.total / measured - 1), "", bar=WITHIN, at_most=True))
    for recipe in () if options.quick else ("nsd-1b", "nsd-7b"):
        for row in janus_table(named(recipe), Study()):
            claims.append(Claim(f"{recipe}: {row.what}", row.peak.total / GB, "GB"))
    write(claims, options.out)


if __name__ == "__main__":
    main()
