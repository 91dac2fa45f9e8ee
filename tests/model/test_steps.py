"""Steps done in another way are the same steps."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.generate import GenerationConfig, sample
from brainjanus.model import steps as module
from brainjanus.model.sequence import Block
from brainjanus.model.steps import accelerate

# In a process of its own, as the checks of shapes that tests switch on are not for torch's tracer
TRACED = """
import functools, sys, torch
from torch._dynamo.utils import counters
from brainjanus.core.vocabulary import Vocabulary
from brainjanus.generate import GenerationConfig, sample
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.omni import Interface, OmniConfig, OmniModel
from brainjanus.model.sequence import Block
from brainjanus.model.steps import accelerate

torch.manual_seed(0)
torch.compile = functools.partial(torch.compile, backend="eager")
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
interface = Interface(Vocabulary(text=20, image=12, brain=8, subjects=("a",)), 16, {"a": 6}, 4, 4, text_codes=9)
model = OmniModel(OmniConfig(DecoderConfig(**sizes), "latents", "codes"), interface)
for value in [*model.parameters(), model.image_codebook, model.brain_codebook]:
    torch.nn.init.normal_(value, std=0.3)
model.eval().requires_grad_(False)
seen = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
given = [Block("text", codes=torch.randint(20, (2, 5)), seen=seen)]
for name, length in (("image", 16), ("brain", 6)):
    target = Block(name, codes=torch.zeros(2, length, dtype=torch.long), subject="a" if name == "brain" else None)
    drawn = []
    for how in ("none", "compile"):
        accelerate(model, how)
        config = GenerationConfig(estimate="sample", guidance=2.0)
        with torch.no_grad():
            drawn.append(sample(model, given, target, config, torch.rand(2, 3, length).fill_(0.4)).codes)
    assert torch.equal(*drawn), name
assert counters["stats"]["unique_graphs"] == 2, counters
assert not counters["graph_break"], counters
"""


def test_all_compiled_steps_of_a_request_are_one_graph_and_draw_the_same(tmp_path):
    (tmp_path / "script.py").write_text(TRACED)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def model(make_checkpoint):
    return make_checkpoint().model


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("target", "length"), [("text", 5), ("image", 4), ("brain", 3)])
def test_static_steps_draw_the_same(monkeypatch, model, target, length, padded):
    """What is compiled and recorded, done as it is."""
    monkeypatch.setattr(module, "compiled", lambda model, cache, target, previous: partial(model.step, cache, target))
    codes = torch.randint(6, (2, 4), generator=torch.Generator().manual_seed(0))
    seen = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1]]).bool() if padded else None
    given = [Block("text", codes=codes, seen=seen)] if target != "text" else [Block("image", codes=codes)]
    subject = "a" if target == "brain" else None
    goal = Block(target, codes=torch.zeros(2, length, dtype=torch.long), subject=subject)
    uniform = torch.rand(2, 3, length, generator=torch.Generator().manual_seed(1))
    drawn = []
    for how in ("none", "compile"):
        accelerate(model, how)
        drawn.append(sample(model, given, goal, GenerationConfig(estimate="sample", guidance=3.0), uniform).codes)
    assert torch.equal(*drawn)
    assert len(drawn[0].flatten(0, 1).unique(dim=0)) > 1


def test_what_a_machine_cannot_do_is_refused(model):
    with pytest.raises(UserError, match="accelerate: expected none, compile or graphs, got 'faster'"):
        accelerate(model, "faster")
    with pytest.raises(UserError, match=r"expected a model on a CUDA device for graphs, got cpu\. Choose compile"):
        accelerate(model, "graphs")
    assert model.acceleration == "none"
