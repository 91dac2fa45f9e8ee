"""FLOPs: the matrix products of a training step, counted from what the model is.

A model and the blocks of a batch enter; floating-point operations leave, two for each multiplication, as
`torch.utils.flop_counter` counts them: what the model needs, forward and backward. Not counted: what is computed again
(activation checkpointing, a fused attention's backward pass), the tokenizers, the optimizers, and all that is no
product. Attention counts in full, causal or not.
"""

from collections.abc import Sequence

from torch import nn

from brainjanus.model.decoder import Decoder, DecoderConfig
from brainjanus.model.lora import LoraLinear
from brainjanus.model.omni import OmniModel, place_of
from brainjanus.model.sequence import Block, total_length


def step_flops(model: OmniModel, conditions: Sequence[Block], target: Block) -> int:
    """Of one training step on these blocks. What enters the decoder has a gradient; what is frozen has none."""
    codes, length = target.batch * target.length, total_length(conditions, target.length)
    total = products(model.decoder, target.batch * length)
    if isinstance(model.decoder, Decoder):  # what another backbone does beside its linear layers is not known
        total += attention(model.config.decoder, target.batch, length)
    total += products(model.heads[target.modality], codes)
    if target.modality in model.pointers:
        total += products(model.pointers[target.modality], codes)
        total += passes(True, False) * 2 * codes * getattr(model, f"{target.modality}_codebook").numel()
        if target.modality == "brain":
            point = model.point[place_of(target)]
            total += passes(True, point.requires_grad) * 2 * target.batch * point.numel()
    return total + sum(entry(model, block) for block in (*conditions, target))


def entry(model: OmniModel, block: Block) -> int:
    """Of what embeds a block; its content has no gradient."""
    if block.features is None and block.modality == "text":
        return 0
    place = place_of(block)
    if block.modality == "brain" and block.vectors is not None and model.config.brain_input == "sites":
        sites = model.read_sites[place]
        return passes(False, sites.requires_grad) * 2 * block.batch * sites.numel()
    aligner = model.aligners[block.modality if block.features is None else place]
    total = products(aligner, block.batch * block.length, entered=False)
    if block.modality == "brain":
        read = model.read[place][:: model.stride(block)]
        total += passes(False, read.requires_grad) * 2 * block.batch * read.numel()
    return total


def products(module: nn.Module, rows: int, entered: bool = True) -> int:
    """Of the linear layers of a module, in their order. entered: whether what enters has a gradient."""
    total, graded = 0, entered
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, LoraLinear)):
            for weight in layer.parameters(recurse=False):
                if weight.dim() == 2:
                    total += passes(graded, weight.requires_grad) * 2 * rows * weight.numel()
            graded = graded or any(weight.requires_grad for weight in layer.parameters(recurse=False))
    return total


def attention(config: DecoderConfig, rows: int, length: int) -> int:
    """Of the scores and of what they weigh, in all layers; neither is a weight."""
    return config.num_hidden_layers * 2 * passes(True, True) * 2 * rows * length**2 * config.hidden_size


def passes(entered: bool, trained: bool) -> int:
    """How often a product is computed: forward, and for each of its factors that has a gradient."""
    return 1 + entered + trained
