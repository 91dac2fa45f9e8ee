"""Speed of generation, in one run, with the same weights, as ratios.

Speed: 576 image tokens with guidance 5, greedy, from a random Janus of about 100 M parameters, by
`JanusForConditionalGeneration.generate` and by us, at batch 1 and 8: in the same precision, in which the tokens have to
be the same, and each in its default one. Beside it, 16 samples of one prompt against 16 calls, and the time of a step
at batch 1, without guidance, against that of reading the weights once, at the bandwidth that this machine shows in the
same minute. On a GPU also with the steps recorded.
Latency (--run FOLDER, a trained run): from one response to its caption and to its picture, batch 1.
Runs of both sides take turns, and the least time of each counts.
python benchmarks/generation.py --out benchmarks/results/generation.json [--quick] [--run runs/demo]
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from records import Claim, arguments, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from brainjanus.generate import GenerationConfig, generate, sample
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.model.janus import load_janus
from brainjanus.model.sequence import Block
from brainjanus.tokenizers.janus import ASSISTANT, USER

PROMPT = "a red cup"  # in letters, as the tokenizer made here has no words: about 25 tokens, like a sentence in words
SPECIAL = ["<bos>", "<eos>", "<pad>", "<begin_of_image>", "<end_of_image>", "<image_placeholder>"]
GUIDANCE = 5.0
SAMPLES = 16
GREEDY = GenerationConfig(estimate="sample", temperature=0.0, guidance=GUIDANCE)
READ = 400_000_000  # bytes that bandwidth is measured on: far more than any cache holds
CAPTION_MS = 100  # bar of the latency to a caption


def random_janus(folder: Path) -> JanusForConditionalGeneration:
    """About 100 M parameters in the language model and the generation head, little elsewhere, written to a folder."""
    text = LlamaConfig(
        vocab_size=600, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=12, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    vision = JanusVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=384, patch_size=16,
        projection_dim=768, num_image_tokens=576,
    )  # fmt: skip
    vq = JanusVQVAEConfig(
        embed_dim=8, num_embeddings=16384, latent_channels=32, base_channels=32, num_res_blocks=1,
        projection_dim=768, image_token_embed_dim=768,
    )  # fmt: skip
    torch.manual_seed(0)
    config = JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq, image_token_id=5, tie_word_embeddings=False
    )
    model = JanusForConditionalGeneration(config).eval()
    with torch.no_grad():
        for head in (model.model.generation_embeddings, model.model.generation_head.vision_head):
            torch.nn.init.normal_(head.weight, std=0.5)  # opinions that rounding does not change
    model.generation_config.update(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    model.generation_config.generation_kwargs = {"boi_token_id": 3}
    model.save_pretrained(folder)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=[*SPECIAL, "<|User|>", "<|Assistant|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator([PROMPT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("bos", "eos", "pad", "boi", "eoi", "image")
    special = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    colours = {"image_processor_type": "JanusImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    facts = colours | {"size": {"height": 384, "width": 384}}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return model


def theirs_greedy(model: JanusForConditionalGeneration, ours: Checkpoint, batch: int, tokens: int) -> Tensor:
    ids = ours.tokenizers.text.tokenizer.encode(f"{USER}{PROMPT}{ASSISTANT}").ids
    inputs = torch.tensor([[0, *ids, 3]] * batch, device=model.device)
    model.model.vision_model.config.num_image_tokens = tokens
    return model.generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_mode="image", do_sample=False,
        guidance_scale=GUIDANCE,
    )  # fmt: skip


def ours_greedy(
    ours: Checkpoint, batch: int, tokens: int, samples: int = 1, config: GenerationConfig = GREEDY
) -> Tensor:
    device = ours.model.embed_tokens.weight.device
    prompt = Block("text", codes=ours.tokenizers.text.prompt([PROMPT] * batch).codes.to(device))
    target = Block("image", codes=torch.zeros(batch, tokens, dtype=torch.long, device=device))
    uniform = torch.rand(batch, samples, tokens, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return sample(ours.model, [prompt], target, config, uniform).codes[:, 0]


class Timed(NamedTuple):
    """seconds: the least of several runs. values: what the last of them returned."""

    seconds: float
    values: Any


def in_turns(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Timed]:
    """Each several times, one after the other, so that what else runs on the machine hits all of them."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    values = {}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            values[name] = function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - start)
    return {name: Timed(min(seconds), values[name]) for name, seconds in taken.items()}


def bytes_per_second(device: torch.device) -> float:
    """At which this machine reads memory."""
    memory = torch.ones(READ // 4, device=device)
    return READ / in_turns({"read": lambda: float(memory.sum())}, 10)["read"].seconds


def bytes_per_token(ours: Checkpoint, size: int) -> int:
    """Of the weights that every token of a picture reads, at so many bytes a number."""
    config = ours.model.config.decoder
    head = config.hidden_size**2 + config.hidden_size * ours.model.vocabulary.image
    keys = config.hidden_size * config.num_key_value_heads // config.num_attention_heads
    layer = 2 * config.hidden_size * (config.hidden_size + keys) + 3 * config.hidden_size * config.intermediate_size
    return size * (head + config.num_hidden_layers * layer)


def speed(work: Path, *, quick: bool) -> list[Claim]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens, few = (24, 8) if quick else (576, 64)
    theirs = random_janus(work / "janus").to(device)
    same = load_janus(work / "janus", device=device).prepare("float32")
    default = load_janus(work / "janus", device=device).prepare()
    recorded = (
        load_janus(work / "janus", device=device).prepare("bfloat16", "graphs") if device.type == "cuda" else None
    )
    claims, half = [], "bfloat16" if device.type == "cuda" else "float16"
    for batch in (1, 8):
        functions = {
            "theirs": lambda batch=batch: theirs_greedy(theirs, same, batch, tokens),
            "same": lambda batch=batch: ours_greedy(same, batch, tokens),
            "default": lambda batch=batch: ours_greedy(default, batch, tokens),
        }
        if recorded is not None:
            functions["recorded"] = lambda batch=batch: ours_greedy(recorded, batch, tokens)
        repeats = 2 if batch == 1 else 1  # a long run is its own repetition
        times = in_turns(functions, repeats)
        agreement = float((times["theirs"].values == times["same"].values).float().mean())
        claims.append(Claim(f"batch {batch}: float32, greedy tokens as theirs", agreement, "of 1", bar=1.0))
        per_second = {name: batch * tokens / timed.seconds for name, timed in times.items()}
        reference = "transformers, float32", per_second["theirs"]
        for name, what, bar in (("same", "float32", 1.0), ("default", f"our default ({half})", 2.0)):
            claims.append(Claim(f"batch {batch}: {what}", per_second[name], "tokens/s", *reference, bar))
        if recorded is not None:
            whole = {name: value.clone() for name, value in theirs.state_dict().items()}
            theirs.to(torch.bfloat16)
            in_half = in_turns({"theirs": functions["theirs"]}, repeats)["theirs"]
            theirs.float().load_state_dict(whole)  # not as bfloat16 has rounded them
            reference = "transformers, bfloat16", batch * tokens / in_half.seconds
            name = f"batch {batch}: bfloat16, recorded"
            claims.append(Claim(name, per_second["recorded"], "tokens/s", *reference, 4.0))
    best = max(claim.record()["ratio"] for claim in claims if claim.name.endswith(": float32"))
    claims.append(Claim("the better of both batches: float32", best, "times theirs", bar=1.3))
    fast = {"float32": same, half: default if recorded is None else recorded}
    return claims + against_memory(fast, tokens) + shared_prefix(same, few)


def against_memory(ours: dict[str, Checkpoint], tokens: int) -> list[Claim]:
    """A step at batch 1, with all that belongs to it, against reading the weights once."""
    plain = GenerationConfig(estimate="sample", temperature=0.0)
    run = {name: lambda one=one: ours_greedy(one, 1, tokens, config=plain) for name, one in ours.items()}
    times = in_turns(run, 2)
    rate = bytes_per_second(next(iter(ours.values())).model.embed_tokens.weight.device)
    claims = [Claim("bandwidth of this machine's memory", rate / 1e9, "GB/s")]
    for name, one in ours.items():
        least = bytes_per_token(one, 4 if name == "float32" else 2) / rate
        reference = "reading the weights once", least * 1e3
        step = times[name].seconds / tokens * 1e3
        claims.append(Claim(f"batch 1, not guided: a step, {name}", step, "ms", *reference, 1.5, at_most=True))
    return claims


def shared_prefix(ours: Checkpoint, tokens: int) -> list[Claim]:
    """16 samples of one prompt, which share what is computed of it, against as many calls."""
    config = GenerationConfig(estimate="sample", guidance=GUIDANCE)
    times = in_turns(
        {
            "together": lambda: ours_greedy(ours, 1, tokens, SAMPLES, config),
            "apart": lambda: [ours_greedy(ours, 1, tokens, 1, config) for _ in range(SAMPLES)],
        },
        2,
    )
    reference = "one by one", SAMPLES * tokens / times["apart"].seconds
    name = f"{SAMPLES} samples of one prompt, {tokens} tokens: float32"
    return [Claim(name, SAMPLES * tokens / times["together"].seconds, "tokens/s", *reference, 3.0)]


def latency(run: Path, *, quick: bool) -> list[Claim]:
    """From one response to its caption and to its picture: median and 99th percentile of a call, batch 1."""
    checkpoint = Checkpoint.load(run).prepare()
    subject = checkpoint.tokenizers.brain.subjects[0]
    sites = checkpoint.tokenizers.brain.num_sites(subject)
    responses = torch.randn(20 if quick else 300, 1, sites, generator=torch.Generator().manual_seed(0))
    claims = []
    for target, how in (("text", "sample"), ("image", "mean"), ("image", "sample")):
        config = GenerationConfig(estimate=how, temperature=0.0)
        taken = []
        for response in responses:
            start = time.perf_counter()
            generate(checkpoint, {f"brain:{subject}": response}, target, config)
            taken.append((time.perf_counter() - start) * 1e3)
        name = f"a response to its {'caption' if target == 'text' else f'picture ({how})'}"
        bar = CAPTION_MS if target == "text" else None
        claims.append(Claim(f"{name}: median", statistics.median(taken), "ms", bar=bar, at_most=True))
        claims.append(Claim(f"{name}: 99th percentile", statistics.quantiles(taken, n=100)[-1], "ms"))
    return claims


def main() -> None:
    args = arguments(__doc__, run="a trained run whose latency is measured")
    args.work.mkdir(parents=True, exist_ok=True)
    claims = speed(args.work, quick=args.quick)
    if args.run is not None:
        claims += latency(args.run, quick=args.quick)
    write(claims, args.out)


if __name__ == "__main__":
    main()
