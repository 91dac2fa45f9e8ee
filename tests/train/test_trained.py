"""What is trained changes; everything else stays as it is, to the bit, and is not saved again."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from brainjanus.core.errors import UserError
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.model.lora import LoraConfig, load_lora, merge_lora
from brainjanus.model.omni import OmniModel
from brainjanus.model.sequence import Block
from brainjanus.tokenizers.vision import wavelet
from brainjanus.train import omni as module
from brainjanus.train.codes import BrainRows, Codes
from brainjanus.train.omni import OmniTrainingConfig, fit_omni
from brainjanus.train.optim import OptimConfig
from brainjanus.train.trained import TrainedRows, is_brain, keep, prepare, recompute, release

SEEN = wavelet(torch.zeros(1, 3, 8, 8)).shape[1:]  # tokens, channels
LORA = LoraConfig(rank=2, alpha=8.0)
TASKS = {"text->brain": 1.0, "brain->text": 1.0}
MODES = ("full", "lora", "brain")
SUBJECTS_AND_HIDDEN = [4, 6, 7]  # rows of the table: control tokens `hidden`, `brain:a`, `brain:b`


def planted(checkpoint, classes=6):
    """Captions that decide every code of a's response."""
    generator = torch.Generator().manual_seed(0)
    brain, which = checkpoint.tokenizers.brain, torch.arange(classes)
    codes = which[:, None].expand(-1, 3)
    rows = BrainRows(which, which < 0, brain.decode(codes, "a"), codes)
    captions = checkpoint.tokenizers.text.encode(["a red cup", "a blue one", "one", "cup", "red", "blue"])
    return Codes(
        tuple("abcdef"), None, None, [], captions, [i[None] for i in which],
        {"wavelet": torch.rand(classes, *SEEN, generator=generator)}, {"a": rows}, brain,
    )  # fmt: skip


def config_of(trained, **settings):
    optim = OptimConfig(
        steps=8, batch_size=6, learning_rate=1e-2, precision="float32", optimizer="adamw", log_every=1, save_every=4
    )
    return OmniTrainingConfig(**{"optim": optim, "tasks": TASKS, "trained": trained, "lora": LORA} | settings)


def fitted(make_checkpoint, folder, trained, **settings):
    checkpoint = make_checkpoint()
    return fit_omni(
        checkpoint.model, checkpoint.tokenizers, planted(checkpoint), config_of(trained, **settings), folder, seed=0
    )


def saved_weights(folder, step):
    (shard,) = (folder / f"state/step-{step:08d}").glob("*.safetensors")
    return {n.removeprefix("model."): v for n, v in load_file(shard).items() if n.startswith("model.")}


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("trained", MODES)
def test_exactly_what_should_change_does(make_checkpoint, tmp_path, trained):
    before = make_checkpoint().model.state_dict()
    after = fitted(make_checkpoint, tmp_path, trained).state_dict()
    assert after.keys() == before.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    brains = {name for name in before if ".brain" in name and not name.endswith(":b")}
    projections = {name for name in before if name.startswith("decoder.") and "norm" not in name}
    if trained != "full":
        assert changed - projections == brains | {"embed_tokens.weight"}
        assert (changed & projections == projections) if trained == "lora" else not changed & projections
        rows = (after["embed_tokens.weight"] != before["embed_tokens.weight"]).any(dim=1).nonzero()[:, 0]
        assert rows.tolist() == SUBJECTS_AND_HIDDEN[:2]  # b has no data here
    else:
        assert brains | projections | {"heads.text.weight", "decoder.norm.weight"} <= changed


def test_features_that_are_as_new_as_the_brain_are_trained_with_it(make_checkpoint):
    model = make_checkpoint().model
    new = {name for name, _ in model.named_parameters() if ".features:wavelet" in name}
    assert len(new) == 5
    module.prepare(model, "brain", LoraConfig(), torch.float32, 0)
    assert new <= {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert is_brain("aligners.features:wavelet.1.weight") and not is_brain("aligners.features:janus.1.weight")


@pytest.mark.parametrize("trained", MODES)
def test_the_loss_goes_down(make_checkpoint, tmp_path, trained):
    optim = OptimConfig(steps=60, batch_size=12, learning_rate=1e-2, precision="float32", log_every=20)
    fitted(make_checkpoint, tmp_path, trained, optim=optim, tasks={"text->brain": 1.0}, dropped=0.0)
    curve = losses(tmp_path)
    assert curve[-1] < 0.8 * curve[0]


@pytest.mark.parametrize("trained", MODES)
def test_stopped_and_gone_on_with_it_is_the_same_training(make_checkpoint, tmp_path, monkeypatch, trained, read_log):
    """Bit for bit: weights, log and adapters."""
    whole = fitted(make_checkpoint, tmp_path / "whole", trained)
    step_losses, calls = module.step_losses, []

    def interrupted(*arguments):
        calls.append(0)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step_losses(*arguments)

    monkeypatch.setattr(module, "step_losses", interrupted)
    with pytest.raises(KeyboardInterrupt, match="saved at step 5 of 8"):
        fitted(make_checkpoint, tmp_path / "parts", trained)
    parts = fitted(make_checkpoint, tmp_path / "parts", trained)
    assert len(calls) == 8
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name
    assert read_log(tmp_path / "whole/log.jsonl") == read_log(tmp_path / "parts/log.jsonl")
    if trained == "lora":
        one, other = (load_file(tmp_path / part / "lora.safetensors") for part in ("whole", "parts"))
        assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("trained", ["lora", "brain"])
def test_a_state_holds_what_is_trained_alone(make_checkpoint, tmp_path, trained):
    model = fitted(make_checkpoint, tmp_path, trained)
    saved = saved_weights(tmp_path, 8)
    names = {name for name, _ in model.named_parameters() if is_brain(name)} | {"embed_tokens.rows"}
    buffers = {name for name, _ in model.named_buffers()}
    matrices = {name for name in saved if ".lora_" in name}
    assert saved.keys() == names | buffers | matrices
    assert len(matrices) == (2 * 2 * 7 if trained == "lora" else 0)


def test_other_frozen_weights_are_refused(make_checkpoint, tmp_path):
    fitted(make_checkpoint, tmp_path, "brain")
    other = make_checkpoint()
    other.model.heads["text"].weight.data[3, 3] += 1e-3
    with pytest.raises(UserError, match=r"expected the frozen weights that this training began with \(\w{12}\), got"):
        fit_omni(other.model, other.tokenizers, planted(other), config_of("brain"), tmp_path, seed=0)


def test_the_adapter_file_and_the_merged_model_agree(make_checkpoint, tmp_path):
    merged = fitted(make_checkpoint, tmp_path, "lora")
    base = make_checkpoint().model
    load_lora(base.decoder, tmp_path / "lora.safetensors")
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(base.decoder(x), merged.decoder(x), atol=1e-5, rtol=1e-5)
    merge_lora(base.decoder)
    for name, value in merged.decoder.state_dict().items():
        assert torch.equal(base.decoder.state_dict()[name], value), name


@pytest.mark.parametrize("trained", ["lora", "brain"])
def test_a_finished_run_is_a_plain_checkpoint(make_checkpoint, tmp_path, trained):
    checkpoint = make_checkpoint()
    fit_omni(
        checkpoint.model, checkpoint.tokenizers, planted(checkpoint), config_of(trained), tmp_path / "stage", seed=0
    )
    checkpoint.save(tmp_path / "run")
    loaded = Checkpoint.load(tmp_path / "run", precision="float32").model
    assert loaded.state_dict().keys() == make_checkpoint().model.state_dict().keys()
    for name, value in checkpoint.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("trained", MODES)
def test_prepared_and_released_at_once_it_is_what_it_was(make_checkpoint, trained):
    checkpoint, model = make_checkpoint(), make_checkpoint().model
    prepare(model, trained, LORA)
    target = Block("brain", codes=torch.tensor([[1, 2, 3]]), subject="a")
    conditions = [Block("text", codes=torch.tensor([[5, 6]]))]
    model.requires_grad_(False)  # torch multiplies in another order what has a gradient
    assert torch.equal(model(conditions, target), checkpoint.model(conditions, target))
    release(model)
    for name, value in checkpoint.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert type(model.embed_tokens) is nn.Embedding


def test_frozen_matrices_are_held_in_half_where_no_bit_is_lost(make_checkpoint):
    model = make_checkpoint().model
    half = model.decoder.layers[0].mlp.up_proj.weight
    half.data = half.data.bfloat16().float()
    before = half.data.clone()
    prepare(model, "lora", LORA, torch.bfloat16)
    held = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert held == {"decoder.layers.0.mlp.up_proj.weight"}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    release(model)
    assert torch.equal(model.decoder.layers[0].mlp.up_proj.weight, before)


@pytest.mark.parametrize("trained", MODES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_in_bfloat16_trains_in_float32_and_is_given_back_as_it_was(
    make_checkpoint, tmp_path, trained, precision
):
    checkpoint = make_checkpoint()
    checkpoint.model.bfloat16()
    optim = OptimConfig(steps=2, batch_size=4, precision=precision, log_every=1)
    model = fit_omni(
        checkpoint.model, checkpoint.tokenizers, planted(checkpoint), config_of(trained, optim=optim), tmp_path, seed=0
    )
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    state = saved_weights(tmp_path, 2)
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_trained_rows_are_looked_up_and_alone_have_gradients():
    torch.manual_seed(0)
    table = nn.Embedding(9, 4).requires_grad_(False)
    rows = TrainedRows(table, [7, 2])
    tokens = torch.tensor([[0, 7], [2, 2]])
    assert torch.equal(rows(tokens), table(tokens))
    rows(tokens).sum().backward()
    assert rows.weight.grad is None
    assert rows.rows.grad.tolist() == [[1.0] * 4, [2.0] * 4]
    rows.rows.data += 1
    merged = rows.merged(torch.float32)
    assert torch.equal(merged.weight - table.weight, F.one_hot(torch.tensor([7, 2]), 9).sum(0)[:, None].expand(9, 4))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("trained", MODES)
def test_recomputed_it_is_the_same_training(make_checkpoint, tmp_path, trained, dropout):
    def dropping():
        checkpoint = make_checkpoint()
        decoder = replace(checkpoint.model.config.decoder, dropout=dropout)
        model = OmniModel(replace(checkpoint.model.config, decoder=decoder), checkpoint.model.interface)
        model.load_state_dict(checkpoint.model.state_dict())
        return replace(checkpoint, model=model.eval().requires_grad_(False))

    plain = fitted(dropping, tmp_path / "plain", trained)
    again = fitted(dropping, tmp_path / "again", trained, recompute=True)
    for name, value in plain.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_recomputed_layers_keep_their_input_alone(make_checkpoint):
    layers = make_checkpoint().model.decoder.layers.requires_grad_(True)
    decoder = make_checkpoint().model.decoder.requires_grad_(True)
    decoder.layers = layers
    x, kept = torch.randn(1, 7, 32), []

    def count():
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            decoder(x).sum()
        return sum(kept)

    everything = count()
    recompute(layers)
    assert count() < 0.2 * everything
    keep(layers)
    assert count() == everything
