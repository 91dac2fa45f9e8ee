"""OmniModel: one transformer over brain, image and text.

Conditions and a target enter as blocks, logits over the target's own codebook leave. Image and brain codes are
embedded as their codebook vectors through an aligner, as in Janus; vision features and the patches of a response enter
through maps of their own. Every place of the brain and of the picture has a position embedding besides the rotary one,
because a patch of cortex is a place, not a moment.
Source: BrainJanus (arXiv 2606.30319), Janus (arXiv 2410.13848).
Differs: (1) a position is told which place it is about to predict; (2) codes of the target can be hidden, and then
the model predicts each of them on its own (the marginal), which gives the expected response in a single pass.
"""

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from brainjanus.core.errors import UserError
from brainjanus.core.linear import pack, resolve
from brainjanus.core.vocabulary import MODALITIES, Vocabulary
from brainjanus.model.backbone import BACKBONES, AnyCache, Backbone, make_decoder
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.llama import LLAMA
from brainjanus.model.sequence import Block

ENTRY_SCALE = 0.5  # standard deviation of what enters a decoder that is not trained yet
NEVER = -1e9  # logit of a code of another stage; finite, so that guidance may subtract it from itself


@dataclass(frozen=True)
class OmniConfig:
    """decoder: its size. backbone: what the decoder is: "llama", "llama:FOLDER" (beginning with the weights of a
    language model, whose sizes it has), or one that was added.

    brain_input: what a brain that is a condition enters as: "sites", the patches of the response itself, "latents", the
    tokenizer's vectors before they are quantized, or "codes". brain_fold: patches of a response that one position reads
    together, with "sites". image_input: what a picture that is a condition enters
    as: "codes", or the name of a vision encoder, built in or of the dataset's stored features. text_input: likewise,
    "codes" or the name of stored features.
    image_head: what predicts the codes of a picture: "linear", or "mlp", Janus's two layers. image_places: whether
    every place of a picture has embeddings and a pointer of its own; Janus has none. text_opening: whether a text that
    is a condition begins with a token of its own; Janus's prompts do not. entry_scale: standard deviation of what
    enters the decoder, before training. sight: each place of a brain that is predicted looks at the picture's features
    by itself: through a window of its own, what is there is added to what it enters as.
    """

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    brain_input: str = "sites"
    image_input: str = "wavelet"
    text_input: str = "codes"
    image_head: Literal["linear", "mlp"] = "linear"
    image_places: bool = True
    text_opening: bool = True
    entry_scale: float = ENTRY_SCALE
    brain_fold: int = 1
    sight: bool = False
    backbone: str = "llama"

    def __post_init__(self) -> None:
        unknown = None if self.backbone.startswith(LLAMA) else BACKBONES.problem(self.backbone)
        if unknown:
            raise UserError(f"omni config: {unknown}. Correct the config.")
        if self.brain_input not in ("sites", "latents", "codes"):
            raise UserError(f"omni config: brain_input: expected sites, latents or codes, got '{self.brain_input}'.")
        if self.brain_fold < 1 or (self.brain_fold > 1 and self.brain_input != "sites"):
            raise UserError(
                f"omni config: brain_fold: expected at least 1, and 1 where brain_input is not sites, got "
                f"{self.brain_fold} with {self.brain_input}. Correct the config."
            )
        if self.image_head not in ("linear", "mlp"):
            raise UserError(f"omni config: image_head: expected linear or mlp, got '{self.image_head}'.")
        if not self.entry_scale > 0:
            raise UserError(f"omni config: entry_scale: expected a number above 0, got {self.entry_scale}.")


@dataclass(frozen=True)
class Interface:
    """What the model must know of its tokenizers and data: lengths and widths, no weights.

    vocabulary: codebook sizes and subjects. image_codes, brain_codes: codes of a picture, of each subject's response;
    text_codes: of the longest text, its end included; brain_patch: sites that a patch has; brain_stages: codes that it
    has, behind each other, each from a part of the codebook of its own.
    image_dim, brain_dim: length of a codebook vector. features: vision encoder -> (tokens, channels).
    text_end: the code that ends a text. controls: control tokens that are pieces of the text's codebook, as in Janus,
    name -> code; the others have rows of their own.
    """

    vocabulary: Vocabulary
    image_codes: int
    brain_codes: Mapping[str, int]
    image_dim: int
    brain_dim: int
    text_codes: int = 0
    brain_patch: int = 1
    brain_stages: int = 1
    features: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    text_end: int = 0
    controls: Mapping[str, int] = field(default_factory=dict)


# B batch, K codes of a block, L positions, D width, N codebook entries
class OmniModel(nn.Module):
    image_codebook: Tensor
    brain_codebook: Tensor
    acceleration: str = "none"  # of its steps: see model/steps.py

    def __init__(self, config: OmniConfig, interface: Interface):
        super().__init__()
        self.config, self.interface = config, interface
        vocabulary, width = interface.vocabulary, config.decoder.hidden_size
        self.vocabulary = vocabulary
        self.decoder = make_decoder(config.backbone, config.decoder)
        self.embed_tokens = nn.Embedding(vocabulary.range("text").stop, width)  # control and text
        self.register_buffer("image_codebook", torch.zeros(vocabulary.image, interface.image_dim))
        self.register_buffer("brain_codebook", torch.zeros(vocabulary.brain, interface.brain_dim))
        self.aligners = nn.ModuleDict(
            {"image": aligner(interface.image_dim, width), "brain": aligner(interface.brain_dim, width)}
        )
        places = {"image": interface.image_codes} if config.image_places else {}
        places |= {f"brain:{subject}": k for subject, k in interface.brain_codes.items()}
        for name, (tokens, channels) in interface.features.items():
            self.aligners[features_key(name)] = nn.Sequential(Standardise(channels), *aligner(channels, width))
            places[features_key(name)] = tokens
        self.places = nn.ParameterDict({name: torch.zeros(k, width) for name, k in places.items()})
        self.targets = nn.ParameterDict(
            {name: torch.zeros(k, width) for name, k in places.items() if not name.startswith("features:")}
        )
        sizes = {m: getattr(vocabulary, m) for m in MODALITIES}
        self.heads = nn.ModuleDict({m: nn.Linear(width, n, bias=False) for m, n in sizes.items() if n})
        if config.image_head == "mlp" and vocabulary.image:
            self.heads["image"] = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, vocabulary.image))
        dims = {"image": interface.image_dim, "brain": interface.brain_dim}
        self.pointers = nn.ModuleDict(
            {
                m: nn.Linear(width, dim, bias=False)
                for m, dim in dims.items()
                if m in self.heads and (m == "brain" or config.image_places)
            }
        )
        brains = {f"brain:{subject}": k for subject, k in interface.brain_codes.items()}
        self.read = nn.ParameterDict({n: torch.zeros(k, interface.brain_dim, width) for n, k in brains.items()})
        if config.brain_input == "sites":
            shape = (config.brain_fold * interface.brain_patch, width)
            patches = {n: -(-k // (interface.brain_stages * config.brain_fold)) for n, k in brains.items()}
            self.read_sites = nn.ParameterDict({n: torch.zeros(k, *shape) for n, k in patches.items()})
        if config.sight:
            if config.image_input not in interface.features:
                raise UserError(
                    f"omni config: sight: expected pictures that are read as features, got '{config.image_input}'. "
                    "Name a vision encoder, or turn sight off."
                )
            tokens = interface.features[config.image_input][0]
            self.sight = nn.ParameterDict({n: torch.zeros(k, tokens) for n, k in brains.items()})
        self.point = nn.ParameterDict({n: torch.zeros(k, width, interface.brain_dim) for n, k in brains.items()})
        self.initialise()

    @torch.no_grad()
    def initialise(self, but: Container[str] = ()) -> None:
        """Everything that enters has one scale, so that no content drowns in its position; layers start as identity.

        Codebook vectors and latents have length one, not one per entry: their aligners start accordingly larger.
        but: names of parameters that stay as they are.
        """
        relative = self.config.entry_scale / ENTRY_SCALE
        for name, parameter in self.named_parameters():
            if name in but or (name.startswith("decoder.") and isinstance(self.decoder, Backbone)):
                continue
            if name.endswith(("o_proj.weight", "down_proj.weight", "bias")) or name.startswith("point."):
                nn.init.zeros_(parameter)
            elif name.startswith(("places.", "targets.", "embed_tokens.", "read.")):
                nn.init.normal_(parameter, std=self.config.entry_scale)
            elif name == "heads.image.0.weight":  # the first of two layers: the last one starts at zero
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif name.startswith(("heads.", "pointers.")):
                nn.init.zeros_(parameter)
            elif name.startswith("sight."):  # all of the picture alike
                nn.init.constant_(parameter, 1 / parameter.shape[1])
            elif parameter.dim() == 2 or name.startswith("read_sites."):
                last = name.startswith("read_sites.") or re.fullmatch(r"aligners\.(.*)\.[23]\.weight", name)
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * (relative if last else 1))
            else:  # of a norm
                nn.init.ones_(parameter)
        for name in (f"aligners.{modality}.0.weight" for modality in ("image", "brain")):
            if name not in but:
                nn.init.normal_(self.get_parameter(name), std=1.0)

    @torch.no_grad()
    def load_codebooks(self, image: Float[Tensor, "n d"], brain: Float[Tensor, "m e"]) -> None:
        """Take over the tokenizers' codebooks, through which codes are embedded; they stay as they are."""
        self.image_codebook.copy_(image)
        self.brain_codebook.copy_(brain)

    @torch.no_grad()
    def load_feature_statistics(self, features: Mapping[str, Float[Tensor, "n _ _"]]) -> None:
        """Take over the mean and spread of each channel of the vision features of the training split."""
        for name, values in features.items():
            standardise = self.aligners[features_key(name)].get_submodule("0")
            assert isinstance(standardise, Standardise)
            standardise.load(values)

    def forward(
        self, conditions: Sequence[Block], target: Block, hidden: Bool[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b k n"]:
        """Logits of each code of the target, given the conditions and the codes before it that are not hidden.

        N is the size of the target's own codebook: prediction is restricted to its range of the vocabulary.
        """
        prefix = self.embed_conditions(conditions, target.batch)
        x = torch.cat([prefix.x, self.embed_target(target, hidden, self.sighted(prefix, target))], dim=1)
        seen = None if prefix.seen is None else F.pad(prefix.seen, (0, target.length), value=True)
        states = self.decoder(x, seen=seen)
        return self.logits(states[:, prefix.x.shape[1] :], target, slice(0, target.length))

    def logits(
        self, states: Float[Tensor, "b k d"], target: Block, places: slice | Int[Tensor, "k"]
    ) -> Float[Tensor, "b k n"]:
        """Of each code at some places of the target.

        Codes of images and brains are also pointed at by their vector in the codebook, so that what is learned of one
        code holds for its neighbours; every place of a brain points in a way of its own.
        """
        states = self.left_out(states)
        logits = self.heads[target.modality](states)
        if target.modality not in self.pointers:
            return logits
        vectors = self.pointers[target.modality](states)
        if target.modality == "brain":
            vectors = vectors + torch.einsum("bkd,kde->bke", states, self.point[place_of(target)][places])
        logits = logits + vectors @ getattr(self, f"{target.modality}_codebook").T
        if target.lean is not None:
            logits = logits + target.lean[:, places]
        if target.modality == "brain" and self.interface.brain_stages > 1:
            logits = logits.masked_fill(self.other_stages(places, logits.device), NEVER)
        return logits

    def left_out(self, x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Without what dropout takes of it in training."""
        share = self.config.decoder.dropout
        return F.dropout(x, share) if self.training and share else x

    def other_stages(self, places: slice | Int[Tensor, "k"], device: torch.device) -> Bool[Tensor, "k n"]:
        """Which codes belong to another stage of the quantizer than that of each of these places."""
        stages, size = self.interface.brain_stages, self.vocabulary.brain
        stage = torch.arange(max(self.interface.brain_codes.values()), device=device)[places] % stages
        return stage[:, None] != torch.arange(size, device=device) // (size // stages)

    def embed_conditions(self, conditions: Sequence[Block], batch: int) -> "Prefix":
        """begin, and each condition behind its opening token."""
        parts = [self.embed_control("begin", batch)]
        seen = [torch.ones(batch, 1, dtype=torch.bool, device=parts[0].device)]
        looked_at = None
        for block in conditions:
            if block.modality != "text" or block.codes is None or self.config.text_opening:
                parts, seen = [*parts, self.embed_control(opening(block), batch)], [*seen, seen[0]]
            content = self.embed_vectors(block, slice(0, block.length))
            if self.config.sight and block.features == self.config.image_input and block.modality == "image":
                looked_at = content if block.dropped is None else content * ~block.dropped[:, None, None]
            parts.append(self.embed_content(block, content))
            del content  # memory that is needed no more
            exists = seen[0].expand(batch, block.length) if block.seen is None else block.seen
            if block.seen is not None and block.dropped is not None and self.config.text_opening:
                exists = exists & ~block.dropped[:, None]  # not even how long it is; Janus pads what it withholds
            seen.append(exists)
        filled_up = any(block.seen is not None for block in conditions)
        return Prefix(torch.cat(parts, dim=1), torch.cat(seen, dim=1) if filled_up else None, looked_at)

    def sighted(self, prefix: "Prefix", target: Block) -> Float[Tensor, "b k d"] | None:
        """What each place of a brain sees of the picture through its own window; None where there is no picture."""
        if prefix.looked_at is None or target.modality != "brain":
            return None
        seen = torch.einsum("btd,kt->bkd", prefix.looked_at, self.sight[place_of(target)])
        return self.left_out(seen)

    def embed_content(self, block: Block, x: Float[Tensor, "b k d"] | None = None) -> Float[Tensor, "b k d"]:
        """The content of a condition; rows that are dropped show only where they would be. x: what it is embedded as,
        if that is known."""
        x = self.embed_vectors(block, slice(0, block.length)) if x is None else x
        if block.unmeasured is not None:
            x = x + block.unmeasured[..., None].to(x.dtype) * self.embed_control("hidden", 1)
        if block.dropped is not None:
            x = torch.where(block.dropped[:, None, None], self.embed_control("dropped", 1), x)
        place = place_of(block)
        return x + self.places[place][:: self.stride(block)] if place in self.places else x

    def stride(self, block: Block) -> int:
        """How many codes each vector of this block takes the place of."""
        return self.interface.brain_stages * self.config.brain_fold if is_read(block) else 1

    def embed_vectors(self, block: Block, places: slice | Int[Tensor, "k"]) -> Float[Tensor, "b k d"]:
        """The content of a block that lies at these of its places."""
        if block.features is not None:
            name = features_key(block.features)
            if name not in self.aligners:
                known = ", ".join(self.interface.features) or "none"
                raise UserError(
                    f"features '{block.features}': expected those the model was trained on "
                    f"({known}). Prepare the dataset with the same vision encoder."
                )
            standardise, *layers = self.aligners[name].children()
            x = standardise(block.content.to(self.brain_codebook.dtype))
            x = x if block.kept is None else x * block.kept
            for layer in layers:
                x = layer(x)
            return x
        if block.modality == "text":
            return self.embed_tokens(self.vocabulary.to_tokens(block.content, "text"))
        vectors = block.vectors if block.vectors is None else block.vectors.to(self.brain_codebook.dtype)
        if block.codes is not None:
            vectors = getattr(self, f"{block.modality}_codebook")[block.codes]
        if is_read(block) and self.config.brain_input == "sites":
            return torch.einsum("bkp,kpd->bkd", vectors, self.read_sites[place_of(block)][places])
        x = self.aligners[block.modality](vectors)
        if block.modality == "brain":  # what a code means depends on where on the cortex it is
            read = self.read[place_of(block)][:: self.stride(block)][places]
            x = x + torch.einsum("bke,ked->bkd", vectors, read)
        return x

    def embed_target(
        self,
        target: Block,
        hidden: Bool[Tensor, "b k"] | None = None,
        sighted: Float[Tensor, "b k d"] | None = None,
    ) -> Float[Tensor, "b k d"]:
        """The target as it enters: its opening token, then all codes but the last, each told what comes next, and what
        its place sees."""
        x = self.embed_vectors(target, slice(0, target.length))[:, :-1]
        if hidden is not None:
            x = torch.where(hidden[:, :-1, None], self.embed_control("hidden", 1), x)
        x = torch.cat([self.embed_control(opening(target), target.batch), x], dim=1)
        place = place_of(target)
        x = x + self.targets[place] if place in self.targets else x
        return x if sighted is None else x + sighted

    def embed_control(self, name: str, batch: int) -> Float[Tensor, "b 1 d"]:
        alias = self.interface.controls.get(name)  # of Janus: its own pieces
        row = self.vocabulary.control(name) if alias is None else self.vocabulary.range("text").start + alias
        token = torch.tensor(row, device=self.embed_tokens.weight.device)
        return self.embed_tokens(token).expand(batch, 1, -1)

    def start(self, conditions: Sequence[Block], batch: int, length: int, target: Block | None = None) -> AnyCache:
        """A cache that holds the conditions and has room for `length` positions in all, and what the places of a target
        see."""
        prefix = self.embed_conditions(conditions, batch)
        cache: Any = self.decoder.new_cache(batch, length)
        self.decoder(prefix.x, cache, prefix.seen)
        cache.sighted = None if target is None else self.sighted(prefix, target)
        return cache

    def step(
        self, cache: Any, target: Block, position: int | Int[Tensor, "1"], previous: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b n"]:
        """Logits of the code at `position` of the target. previous: the code before it; None at position 0.

        target: says what is predicted; its codes are not read. A position that is a tensor gives the same work at all
        positions but 0, which can be compiled or recorded if the cache is static.
        """
        places = slice(position, position + 1) if isinstance(position, int) else position
        place = place_of(target)
        if previous is None:
            x = self.embed_control(opening(target), cache.batch)
        elif target.modality == "text":  # a code that was drawn is one of the vocabulary: nothing is to be checked
            x = self.embed_tokens(previous[:, None] + self.vocabulary.range("text").start)
        else:
            before = slice(position - 1, position) if isinstance(position, int) else position - 1
            x = self.embed_vectors(Block(target.modality, codes=previous[:, None], subject=target.subject), before)
        if place in self.targets:
            x = x + self.targets[place][places]
        if cache.sighted is not None:
            x = x + cache.sighted[:, places]
        return self.logits(self.decoder(x, cache), target, places)[:, 0]

    def prepare(self, precision: str = "auto") -> None:
        """Lay the weights out for generation, in place. precision: auto, float32, bfloat16 or float16 (see `resolve`).

        In float16 on a CPU only the weights of the decoder and of the heads are rounded; in half precision otherwise
        the decoder, the heads and the embeddings of words compute in it, too.
        """
        device = self.embed_tokens.weight.device
        if self.decoder.packed:
            raise UserError(
                "model: expected one that is not laid out for generation yet, got one that is. Load it again, or use "
                "it as it is."
            )
        precision = resolve(precision, sum(p.numel() for p in self.parameters()), device)
        if precision == "float16" and device.type == "cpu":  # from whatever they were saved in, layer by layer
            pack(self.decoder, precision)
            pack(self.heads, precision)
            self.float()
            return
        self.float()
        for large in (self.decoder, self.heads, self.embed_tokens):
            large.to(getattr(torch, precision))
            pack(large, precision)


class Prefix(NamedTuple):
    """The conditions as they enter the decoder. seen: which positions exist; None: all. looked_at: the features of the
    picture that places of a brain look at."""

    x: Float[Tensor, "b l d"]
    seen: Bool[Tensor, "b l"] | None
    looked_at: Float[Tensor, "b t d"] | None = None


class Standardise(nn.Module):
    """Subtract each channel's mean and divide by its spread."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def load(self, values: Float[Tensor, "n t c"]) -> None:
        flat = values.float().flatten(0, 1)
        self.mean.copy_(flat.mean(dim=0))
        self.std.copy_(flat.std(dim=0).clamp_min(1e-6))

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        return (x - self.mean) / self.std


def aligner(channels: int, width: int) -> nn.Sequential:
    """From vectors of another space to the model's width: two layers, as in Janus."""
    return nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))


def is_read(block: Block) -> bool:
    """Whether it is a brain as it was measured, not its codes."""
    return block.modality == "brain" and block.vectors is not None


def opening(block: Block) -> str:
    """The control token that opens a block."""
    if block.features is not None:
        return "features"
    return f"brain:{block.subject}" if block.modality == "brain" else block.modality


def place_of(block: Block) -> str:
    """The name of a block's positions; text has none beside the rotary ones."""
    return features_key(block.features) if block.features is not None else opening(block)


def features_key(name: str) -> str:
    """The name of an encoder among a module's parameters, where a dot would separate names."""
    return "features:" + name.replace(".", "%2E")
