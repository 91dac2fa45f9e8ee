"""Alignment of the brain's latents to vision and language: a contrastive loss, off unless its weight is positive.

Latents of a response are pooled to one vector, which has to be nearer to the embedding of its own picture, and of its
own caption, than to those of the other stimuli of the batch, and the other way round.
Source: the alignment loss of the Unified Brain Tokenizer (BrainJanus, arXiv 2606.30319), in the form of CLIP (Radford
et al. 2021). Differs: what is pooled passes a map of its own at each place, because what a latent means depends on
where on the cortex it is; where no pretrained text encoder is at hand, a caption is the mean of trained vectors of its
pieces.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.tokenizers.brain import BrainTokenizer
from brainjanus.tokenizers.text import TextTokenizer, TextTokenizerConfig
from brainjanus.tokenizers.vision import ENCODERS
from brainjanus.train.codes import captions_of_each, features_of


@dataclass(frozen=True)
class AlignmentConfig:
    """weight: of the loss; 0 is off. dim: of the common space. temperature: of the softmax over a batch.

    image: the vision features that pictures are embedded by, built in or stored in the dataset. text: stored features
    that captions are embedded by, or "pieces": trained vectors of the pieces of captions. Either may be "none".
    """

    weight: float = 0.0
    dim: int = 64
    temperature: float = 0.1
    image: str = "wavelet"
    text: str = "pieces"

    def __post_init__(self) -> None:
        problems = []
        if not self.weight >= 0:
            problems.append(f"weight must be at least 0, got {self.weight}")
        if self.dim < 1:
            problems.append(f"dim must be at least 1, got {self.dim}")
        if not self.temperature > 0:
            problems.append(f"temperature must be positive, got {self.temperature}")
        if self.weight > 0 and self.image == self.text == "none":
            problems.append("image and text must not both be 'none'")
        if problems:
            raise UserError("alignment config: " + "; ".join(problems) + ". Correct the config.")


# N stimuli, C channels
class Seen(NamedTuple):
    """What was shown, in the order of the dataset's training stimuli; None where there is no such thing."""

    image: Float[Tensor, "n c"] | None
    text: Float[Tensor, "n c"] | None  # stored features of captions, or how often each piece is in them


def seen(dataset: Dataset, ids: tuple[str, ...], config: AlignmentConfig) -> Seen:
    """What these stimuli look and read like. Raises UserError if the dataset has neither, or not what is named."""
    image = text = None
    known = config.image in ENCODERS and config.image not in dataset.feature_names  # and so needs pictures
    if config.image != "none" and (dataset.image_size is not None or not known):
        image = standardised(features_of(dataset, config.image, ids).flatten(1))
    captioned = any(dataset.captions(stimulus) for stimulus in ids)
    if config.text not in ("none", "pieces"):
        text = standardised(features_of(dataset, config.text, ids).flatten(1))
    elif config.text == "pieces" and captioned:
        groups = captions_of_each(dataset, ids)
        every = [caption for group in groups for caption in group]
        codes = TextTokenizer.fit(every, TextTokenizerConfig(), longest_among=every).encode(every)
        counts = F.one_hot(codes.long(), int(codes.max()) + 1).sum(dim=1).float()
        counts[:, 0] = 0  # the end of a text says nothing
        means = [part.mean(dim=0) for part in counts.split([len(group) for group in groups])]
        text = F.normalize(torch.stack(means), dim=-1)
    if image is None and text is None:
        raise UserError(
            f"{dataset.path}: expected pictures or captions to align the tokenizer to, got neither (image "
            f"'{config.image}', text '{config.text}'). Train with --objective.alignment.weight 0, or name "
            "what the dataset has."
        )
    return Seen(image, text)


def standardised(x: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    return (x - x.mean(dim=0)) / x.std(dim=0).clamp_min(1e-6)


class Alignment(nn.Module):
    """The maps into the common space. They serve the loss alone and are not part of the tokenizer.

    What was shown stays on the CPU, from where the rows of a batch are taken: it is as large as all of the features,
    and of a module's buffers a training makes a copy at each step.
    """

    def __init__(self, config: AlignmentConfig, tokenizer: BrainTokenizer, stimuli: Seen):
        super().__init__()
        self.config = config
        self.stimuli = stimuli
        dim = tokenizer.config.quantizer.dim
        sizes = {f"brain:{s}": tokenizer.num_patches(s) * dim for s in tokenizer.subjects}
        sizes |= {name: x.shape[1] for name, x in stimuli._asdict().items() if x is not None}
        self.maps = nn.ModuleDict({name: nn.Linear(size, config.dim) for name, size in sizes.items()})

    def loss(self, latents: Float[Tensor, "b k d"], subject: str, stimuli: Int[Tensor, "b"]) -> Float[Tensor, ""]:
        """Mean over what is there of the two; rows that show the same stimulus are not held against each other."""
        brain = F.normalize(self.maps[f"brain:{subject}"](latents.flatten(1)).float(), dim=-1)
        stimuli, device = stimuli.cpu(), brain.device
        same = (stimuli[:, None] == stimuli) & ~torch.eye(len(stimuli), dtype=torch.bool)
        same, own = same.to(device), torch.arange(len(stimuli), device=device)
        losses = []
        for name, rows in self.stimuli._asdict().items():
            if rows is not None:
                other = F.normalize(self.maps[name](rows[stimuli].to(device)).float(), dim=-1)
                similar = (brain @ other.T / self.config.temperature).masked_fill(same, -torch.inf)
                losses.append((F.cross_entropy(similar, own) + F.cross_entropy(similar.T, own)) / 2)
        return torch.stack(losses).mean()
