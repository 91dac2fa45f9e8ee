"""Sequence: what the model is given and what it is to predict, as blocks.

A sequence is: begin, then for each condition its opening token and its content, then the opening token of the target
and its codes. A block's content is codes, or vectors that take the place of codes: a frozen vision encoder's features,
the patches of a response, or the brain tokenizer's latents before they are quantized.

Names: text, image, brain:SUBJECT, and part:SUBJECT, a brain of which some sites are known; it may be a condition of the
same subject's brain, which is then completed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from brainjanus.core.errors import UserError
from brainjanus.core.vocabulary import Modality
from brainjanus.tokenizers.brain import BrainTokenizer

BRAINS = ("brain:", "part:")  # how the names of brains begin


@dataclass(frozen=True, eq=False)
class Block:
    """One modality's part of a sequence, for a batch of B.

    modality: text, image or brain. codes [b, k] or vectors [b, k, c]; exactly one is given.
    subject: whose brain (brain only). features: name of the encoder that the vectors come from (image and text).
    dropped: rows whose content is withheld; None withholds nothing. seen: which positions exist; the others fill up
    shorter texts, nothing attends to them and they take no position; None: all exist. unmeasured: of a brain by its
    sites: the share of each patch's sites that was filled in, not measured; None: all were measured. lean: of a brain
    that is a target: what a draft says of its codes, added to their logits. kept: factors of features, once they are
    standardised; None: all are 1.
    """

    modality: Modality
    codes: Int[Tensor, "b k"] | None = None
    vectors: Float[Tensor, "b k c"] | None = None
    subject: str | None = None
    features: str | None = None
    dropped: Bool[Tensor, "b"] | None = None
    seen: Bool[Tensor, "b k"] | None = None
    unmeasured: Float[Tensor, "b k"] | None = None
    lean: Float[Tensor, "b k n"] | None = None
    kept: Float[Tensor, "b k c"] | None = None

    def __post_init__(self) -> None:
        assert (self.codes is None) != (self.vectors is None), "a block has codes or vectors"
        assert (self.modality == "brain") == (self.subject is not None), "brain blocks name their subject, others none"

    @property
    def content(self) -> Tensor:
        content = self.codes if self.codes is not None else self.vectors
        assert content is not None
        return content

    @property
    def batch(self) -> int:
        return self.content.shape[0]

    @property
    def length(self) -> int:
        return self.content.shape[1]

    def withheld(self) -> "Block":
        """The same block with nothing shown: the unconditional model's condition."""
        return replace(self, dropped=torch.ones(self.batch, dtype=torch.bool, device=self.content.device))


@dataclass(frozen=True)
class Task:
    """A set of conditions and a target: `Task(("image",), "brain:subj01")`.

    Names are text, image, brain:SUBJECT, or part:SUBJECT (a condition only).
    """

    conditions: tuple[str, ...]
    target: str

    def __post_init__(self) -> None:
        for name in (*self.conditions, self.target):
            if name not in ("text", "image") and not name.startswith(BRAINS if name != self.target else "brain:"):
                raise UserError(
                    f"task {self}: expected text, image, brain:SUBJECT (brain:subj01) or, as a condition, "
                    f"part:SUBJECT, got '{name}'. Name the subject of a brain."
                )
        if self.target in self.conditions:
            raise UserError(f"task {self}: expected a target that is not among its conditions, got '{self.target}'.")

    def __str__(self) -> str:
        return f"{'+'.join(self.conditions) or 'nothing'}->{self.target}"

    @property
    def subject(self) -> str | None:
        """The subject of the first brain that takes part, or None."""
        return next(filter(None, map(subject_of, (*self.conditions, self.target))), None)

    @property
    def direction(self) -> str:
        """Without the subjects: image->brain."""
        return "->".join(["+".join(c.split(":")[0] for c in self.conditions), self.target.split(":")[0]])


def modality_of(name: str) -> Modality:
    """The modality of a condition's or target's name."""
    head = name.split(":")[0]
    if head not in ("text", "image", "brain", "part"):
        raise UserError(f"'{name}': expected text, image, brain:SUBJECT or part:SUBJECT. Correct the name.")
    return "brain" if head == "part" else head  # type: ignore[return-value]


def subject_of(name: str) -> str | None:
    """Whose brain a condition or target is; None for what is no brain."""
    return name.partition(":")[2] if name.startswith(BRAINS) else None


def brain_block(
    tokenizer: BrainTokenizer,
    values: Float[Tensor, "b v"],
    subject: str,
    brain_input: str,
    fold: int = 1,
    unmeasured: Bool[Tensor, "b v"] | None = None,
) -> Block:
    """A response as a condition: its patches, its latents or its codes, as the model reads brains.

    fold: patches that are read together. unmeasured: the sites that were filled in.
    """
    if brain_input == "sites":
        vectors = folded(tokenizer.patches(values, subject), fold)
        filled = None if unmeasured is None else folded(tokenizer.patches(unmeasured.float(), subject), fold)
        return Block("brain", vectors=vectors, subject=subject, unmeasured=None if filled is None else filled.mean(-1))
    share = None if unmeasured is None else tokenizer.patches(unmeasured.float(), subject).mean(dim=-1)
    latents = tokenizer.latents(values, subject)
    if brain_input == "latents":
        return Block("brain", vectors=latents, subject=subject, unmeasured=share)
    codes = tokenizer.quantizer(latents).codes
    if share is not None:
        share = share.repeat_interleave(codes.shape[1] // share.shape[1], dim=1)
    return Block("brain", codes=codes, subject=subject, unmeasured=share)


def folded(patches: Float[Tensor, "b k p"], fold: int) -> Float[Tensor, "b _ _"]:
    """`fold` neighbouring patches as one vector; the last one is filled up with zeros."""
    missing = -patches.shape[1] % fold
    return F.pad(patches, (0, 0, 0, missing)).unflatten(1, (-1, fold)).flatten(2)


def total_length(conditions: Sequence[Block], target_length: int) -> int:
    """Positions of a whole sequence: begin, each block with its opening token, and the target without its last code."""
    return 1 + sum(1 + block.length for block in conditions) + target_length
