"""FLOPs of a training step against torch's own count."""

from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from brainjanus.core.vocabulary import Vocabulary
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.lora import LoraConfig
from brainjanus.model.omni import Interface, OmniConfig, OmniModel
from brainjanus.model.sequence import Block
from brainjanus.train.flops import step_flops
from brainjanus.train.trained import adapt

aten = torch.ops.aten
FUSED = {  # torch does not count its fused attention on a CPU (two products forward, and for each two backward), nor
    # a product that is added in place
    aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1],
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **__: 4 * prod(q) * k[2],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, q, k, *__, **___: 8 * prod(q) * k[2],
}
ROWS, SITES, STAGES = 3, 8, 2
INTERFACE = Interface(
    Vocabulary(text=40, image=24, brain=32, subjects=("a",)),
    image_codes=9,
    brain_codes={"a": SITES * STAGES},
    image_dim=5,
    brain_dim=6,
    text_codes=7,
    brain_patch=4,
    brain_stages=STAGES,
    features={"seen": (6, 10)},
)
DECODER = DecoderConfig(32, 48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def blocks():
    image, text = torch.zeros(ROWS, 9, dtype=torch.long), torch.zeros(ROWS, 7, dtype=torch.long)
    return {
        "image": Block("image", codes=image),
        "text": Block("text", codes=text),
        "seen": Block("image", vectors=torch.randn(ROWS, 6, 10), features="seen"),
        "brain": Block("brain", codes=torch.zeros(ROWS, SITES * STAGES, dtype=torch.long), subject="a"),
        "sites": Block("brain", vectors=torch.randn(ROWS, SITES, 4), subject="a"),
        "latents": Block("brain", vectors=torch.randn(ROWS, SITES, 6), subject="a"),
    }


@pytest.mark.parametrize("trained", ["full", "lora", "brain"])
@pytest.mark.parametrize(
    ("conditions", "target", "brain_input", "image_head"),
    [
        (("image",), "brain", "sites", "linear"),
        (("seen", "text"), "brain", "sites", "linear"),
        (("sites",), "image", "sites", "mlp"),
        (("latents", "text"), "image", "latents", "linear"),
        (("brain",), "text", "codes", "linear"),
    ],
)
def test_a_step_has_as_many_as_torch_counts(trained, conditions, target, brain_input, image_head):
    model = OmniModel(OmniConfig(DECODER, brain_input=brain_input, image_head=image_head), INTERFACE)
    adapt(model, trained, LoraConfig(rank=3))
    given, goal = [blocks()[name] for name in conditions], blocks()[target]
    with FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
        model(given, goal).sum().backward()
    # torch also counts sums of a norm
    assert step_flops(model, given, goal) == pytest.approx(counter.get_total_flops(), rel=0.01)
