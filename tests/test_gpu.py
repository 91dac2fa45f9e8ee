"""On a GPU, where there is one: it learns what a CPU learns, goes on from a CPU's state, and answers the same."""

import json
from dataclasses import replace

import pytest
import torch

from brainjanus.generate import GenerationConfig, generate
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.omni import OmniConfig
from brainjanus.recipes import RunConfig
from brainjanus.run import train
from brainjanus.tokenizers.brain import BrainTokenizerConfig
from brainjanus.tokenizers.image import ImageTokenizerConfig
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.tokenizers.text import TextTokenizerConfig
from brainjanus.train.omni import OmniTrainingConfig
from brainjanus.train.optim import OptimConfig
from brainjanus.train.parallel import Hardware

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GREEDY = GenerationConfig(estimate="sample", temperature=0.0)


def tiny(optimizer="adamw", precision="float32", **more) -> RunConfig:
    optim = OptimConfig(
        optimizer, steps=12, batch_size=16, learning_rate=5e-3, precision=precision, log_every=1, save_every=5
    )
    quantizer = QuantizerConfig(num_codes=16, dim=8, decay=0.9)
    of_brains = QuantizerConfig(similarity="euclidean", num_codes=16, dim=3, decay=0.9)
    decoder = DecoderConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    return RunConfig(
        brain_tokenizer=BrainTokenizerConfig(patch_size=8, patch=PatchConfig(32, 1, 2), quantizer=of_brains),
        brain_training=replace(optim, optimizer="adamw", precision="float32"),
        image_tokenizer=ImageTokenizerConfig(16, 2, width=16, blocks=1, quantizer=quantizer),
        image_training=replace(optim, optimizer="adamw", precision="float32"),
        text_tokenizer=TextTokenizerConfig(num_codes=270),
        omni=OmniConfig(decoder),
        training=OmniTrainingConfig(optim, **more),
    )


def noting(fit, drawn):
    """A `fit` that adds each step it draws to a list."""

    def noted(net, steps, *rest, **more):
        def draw(step, *of):
            drawn.append(step)
            return steps.draw(step, *of)

        return fit(net, replace(steps, draw=draw), *rest, **more)

    return noted


def losses(run, stage="omni"):
    lines = [json.loads(line) for line in (run / "stages" / stage / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "split" not in line]


@pytest.fixture(scope="module")
def on_cpu(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "cpu"
    train(study, out, tiny(), hardware=Hardware("cpu"))
    return out


@pytest.fixture(scope="module")
def on_gpu(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "gpu"
    train(study, out, tiny(), hardware=Hardware("cuda"))
    return out


@pytest.mark.parametrize("stage", ["brain", "image", "omni"])
def test_it_learns_what_a_cpu_learns(on_cpu, on_gpu, stage):
    near = 0.02 if stage == "image" else 2e-3  # convolutions are in TF32; codes at a boundary may fall to either side
    assert losses(on_gpu, stage) == pytest.approx(losses(on_cpu, stage), rel=near)


@pytest.mark.parametrize("direction", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_stopped_training_goes_on_on_the_other(study, on_cpu, tmp_path, direction, interrupting, monkeypatch):
    from brainjanus.train import omni

    first, second = direction
    with monkeypatch.context() as patch:
        patch.setattr(omni, "fit", interrupting(omni.fit, 7))
        with pytest.raises(KeyboardInterrupt):
            train(study, tmp_path / "run", tiny(), hardware=Hardware(first))
    assert len(losses(tmp_path / "run")) == 8
    drawn: list[int] = []
    monkeypatch.setattr(omni, "fit", noting(omni.fit, drawn))
    train(study, tmp_path / "run", tiny(), hardware=Hardware(second))
    assert drawn[0] == 8, "none of what was done is done again"
    assert losses(tmp_path / "run") == pytest.approx(losses(on_cpu), rel=0.02)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("trained", ["full", "lora"])
def test_every_way_to_train_learns_in_bfloat16(study, janus_folder, tmp_path, optimizer, trained):
    tasks = {"image->brain:s1": 1.0}  # one direction: losses of several have levels of their own
    watched = {"sample_every": 6, "validate_every": 6}
    config = tiny(optimizer, "auto", trained=trained, recompute=True, tasks=tasks, **watched)
    if trained != "full":
        config = replace(config, janus=str(janus_folder), janus_tokens=4, omni=OmniConfig(image_input="janus"))
    train(study, tmp_path / "run", config, hardware=Hardware("cuda", rows_at_once=8))
    found = losses(tmp_path / "run")
    assert sum(found[-4:]) < sum(found[:4])


@pytest.mark.parametrize("target", ["text", "image", "brain:s1"])
@pytest.mark.parametrize("config", [GenerationConfig(), GREEDY], ids=["mean", "greedy"])
def test_it_answers_what_a_cpu_answers(on_cpu, target, config):
    conditions = {"brain:s2": torch.randn(3, 28, generator=torch.Generator().manual_seed(0))}
    answers = [
        generate(Checkpoint.load(on_cpu, precision="float32", device=device), conditions, target, config)
        for device in ("cpu", "cuda")
    ]
    if target == "text":
        assert answers[0] == answers[1]
    else:
        assert torch.allclose(answers[0].float().cpu(), answers[1].float().cpu(), rtol=5e-3, atol=5e-3)


def test_recorded_steps_answer_the_same(on_cpu):
    conditions = {"brain:s2": torch.randn(3, 28, generator=torch.Generator().manual_seed(0))}
    answers = [
        generate(Checkpoint.load(on_cpu, device="cuda").prepare("float32", how), conditions, "image", GREEDY)
        for how in ("none", "graphs")
    ]
    assert torch.allclose(answers[0].float(), answers[1].float(), rtol=5e-3, atol=5e-3)
