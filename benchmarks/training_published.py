"""Training on stored codes against the published way, with the same model and batch.

The published way, as its script has it: every step encodes the pictures of its batch (384 pixels, VQ-16) and the
responses (15,724 sites, 1-D convolutions) again, and texts are filled up to one length. Ours reads codes that were made
once. Model, sequences, batch, loss and optimizer are the same; both sides take turns. Tokenizers have the published
sizes and random weights: what they cost does not depend on what they learnt. Each of the four published tasks is timed,
and a pass over all four counts.
python benchmarks/training_published.py --out F.json [--quick]
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from records import Claim, arguments, write
from torch import Tensor, nn

from brainjanus.core.vocabulary import Vocabulary
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.omni import Interface, OmniConfig, OmniModel
from brainjanus.model.sequence import Block
from brainjanus.tokenizers.brain import BrainTokenizer, published
from brainjanus.tokenizers.janus import JanusImageConfig, JanusImageTokenizer
from brainjanus.train.optim import OptimConfig, autocast_dtype, optimizers_of

SITES, SIDE, TEXT_CODES = 15_724, 384, 64
WORDS, TEXT_LENGTH = 8_000, 16  # codes of texts; of a caption, where ours fills up to the longest of the batch
BAR = 3.0
SIZES = {  # width, layers: parameters in all, with heads and tables
    "18 M": (256, 6),
    "30 M": (384, 7),
    "45 M": (512, 6),
    "100 M": (768, 10),
}
TASKS = (("brain", "image"), ("brain", "text"), ("image", "brain"), ("text", "brain"))


class Raw(NamedTuple):
    """What a batch is before it is tokenized; texts already are."""

    image: Tensor
    brain: Tensor
    text: Tensor


class Side(NamedTuple):
    """How one way comes by the codes of a batch, and how long its texts are."""

    image: Callable[[Raw], Tensor]
    brain: Callable[[Raw], Tensor]
    text: int


def model_of(width: int, layers: int, brain: BrainTokenizer, image: JanusImageTokenizer) -> OmniModel:
    decoder = DecoderConfig(
        hidden_size=width,
        intermediate_size=round(width * 8 / 3 / 32) * 32,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
    )
    vocabulary = Vocabulary(
        text=WORDS,
        image=image.config.quantizer.num_codes,
        brain=brain.config.quantizer.num_entries,
        subjects=("a",),
    )
    interface = Interface(
        vocabulary=vocabulary,
        image_codes=image.num_codes,
        brain_codes={"a": brain.num_codes("a")},
        image_dim=image.config.quantizer.dim,
        brain_dim=brain.config.quantizer.dim,
        text_codes=TEXT_CODES,
    )
    torch.manual_seed(0)
    return OmniModel(OmniConfig(decoder, brain_input="codes", image_input="codes"), interface)


def step(model: nn.Module, optimizers: list, blocks: dict[str, Block], task: tuple[str, str]) -> None:
    source, target = task
    model.zero_grad(set_to_none=True)
    dtype = autocast_dtype("auto", torch.device("cpu"))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model([blocks[source]], blocks[target])
        codes = blocks[target].codes
        assert codes is not None
        loss = F.cross_entropy(logits.float().transpose(1, 2), codes)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()


def seconds(model: nn.Module, optimizers: list, raw: Raw, side: Side, task: tuple[str, str]) -> float:
    start = time.perf_counter()
    blocks = {}
    for name in task:
        if name == "text":
            blocks[name] = Block("text", codes=raw.text[:, : side.text])
        else:
            codes = getattr(side, name)(raw)
            blocks[name] = Block(name, codes=codes, subject="a" if name == "brain" else None)  # type: ignore[arg-type]
    step(model, optimizers, blocks, task)
    return time.perf_counter() - start


def claims(options: argparse.Namespace) -> list[Claim]:
    quick, batch = options.quick, 2 if options.quick else 4
    torch.manual_seed(0)
    brain = BrainTokenizer(published(), {"a": torch.arange(SITES)}).eval().requires_grad_(False)
    image = JanusImageTokenizer(JanusImageConfig()).eval().requires_grad_(False)
    raw = Raw(
        torch.randint(256, (batch, 3, SIDE, SIDE), dtype=torch.uint8),
        torch.randn(batch, SITES),
        torch.randint(1, WORDS, (batch, TEXT_CODES)),
    )

    def picture(of: Raw) -> Tensor:
        with torch.no_grad():
            return image.encode(of.image.float() / 255)

    def response(of: Raw) -> Tensor:
        with torch.no_grad():
            return brain.encode(of.brain, "a")

    stored = {"image": picture(raw).to(torch.int16), "brain": response(raw).to(torch.uint8)}
    published_way = Side(picture, response, TEXT_CODES)
    ours = Side(lambda _: stored["image"].long(), lambda _: stored["brain"].long(), TEXT_LENGTH)
    found = []
    for name, (width, layers) in list(SIZES.items())[: 1 if quick else None]:
        model = model_of(width, layers, brain, image)
        optimizers = optimizers_of(model, OptimConfig(optimizer="adamw"))
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        times: dict[str, dict[tuple[str, str], float]] = {"ours": {}, "published": {}}
        for task in TASKS:
            for way, side in (("ours", ours), ("published", published_way)) * 2:
                took = seconds(model, optimizers, raw, side, task)
                times[way][task] = min(took, times[way].get(task, float("inf")))
        rates = {way: batch * len(TASKS) / sum(of.values()) for way, of in times.items()}
        found.append(
            Claim(
                f"samples a second, {name} ({parameters:.1f} M parameters), batch {batch}", rates["ours"], "1/s",
                "the published way", rates["published"], BAR if name == "30 M" else None,
            )
        )  # fmt: skip
        for task in TASKS:
            ratio = times["published"][task] / times["ours"][task]
            found.append(Claim(f"  of these, {'->'.join(task)}", ratio, "times the samples"))
    return found


def main() -> None:
    options = arguments(__doc__)
    write(claims(options), options.out)


if __name__ == "__main__":
    main()
