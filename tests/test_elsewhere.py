"""All that a run is asked on another device than the CPU: nothing is left behind, and the answers are the same."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import brainjanus as bj
from brainjanus import cli
from brainjanus import run as module
from brainjanus.adapting import adapt
from brainjanus.evaluate.extras import Extras
from brainjanus.evaluate.score import Scored
from brainjanus.explorer.session import Explorer, Shown
from brainjanus.generate import GenerationConfig, device_of, generate, score_candidates
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.run import Run, deciding, evaluate
from brainjanus.tokenizers.vision import on_device, wavelet
from brainjanus.train.codes import features_of
from tests.elsewhere import DEVICE, elsewhere

SAMPLES = GenerationConfig("sample", num_samples=2, trial_noise=True)
MEAN, DRAWN, GREEDY = GenerationConfig(), GenerationConfig(num_samples=2), GenerationConfig(temperature=0.0)


def both(folder):
    """The same checkpoint here and there."""
    return [Checkpoint.load(folder, device=device).prepare("float32") for device in ("cpu", DEVICE)]


def test_the_device_is_one_of_its_own():
    with elsewhere():
        here, there = torch.ones(2, 2), torch.ones(2, 2, device=DEVICE)
        assert (there @ there).device == DEVICE and (there.cpu() == here).all()
        with pytest.raises(RuntimeError, match="one device"):
            here + there
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()


def close(one, other):
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("config", [MEAN, DRAWN, GREEDY, SAMPLES], ids=["mean", "drawn", "greedy", "samples"])
@pytest.mark.parametrize("given", ["image", "text", "brain:s1", "part:s1", "image text"])
def test_it_answers_the_same(tiny_run, study, given, config):
    responses = torch.from_numpy(study.averages("s1", "test").responses[:2])
    rows = {
        "image": study.images(study.split_ids("test")[:2]),
        "text": [study.captions(one)[0] for one in study.split_ids("test")[:2]],
        "brain:s1": responses,
    }
    rows["part:s1"] = torch.where(torch.arange(responses.shape[1]) < 9, torch.nan, responses)
    shown = {name: rows[name] for name in given.split()}
    with elsewhere():
        here, there = both(tiny_run)
        for target in ("image", "text", "brain:s1", "brain:s2"):
            if target not in given:
                close(*(generate(checkpoint, shown, target, config) for checkpoint in (here, there)))


@pytest.mark.parametrize("target", ["image", "text", "brain:s2", "brain:n1"])
@pytest.mark.parametrize("given", ["brain:n1", "part:n1", "image", "brain:s1", "image part:n1"])
def test_an_added_subject_is_spoken_for_the_same(adapted_run, study, given, target):
    if target in given.split():
        return
    responses, pictures = (
        torch.randn(2, 30, generator=torch.Generator().manual_seed(0)),
        study.images(study.split_ids("test")[:3]),
    )
    rows = {"brain:n1": responses, "part:n1": torch.where(torch.arange(30) < 9, torch.nan, responses)}
    rows |= {"image": pictures[:2], "brain:s1": torch.from_numpy(study.averages("s1", "test").responses[:2])}
    shown = {name: rows[name] for name in given.split()}
    with elsewhere():
        checkpoints = both(adapted_run)
        close(*(generate(checkpoint, shown, target) for checkpoint in checkpoints))
        if given.startswith("brain:"):
            close(*(score_candidates(checkpoint, shown, "image", pictures) for checkpoint in checkpoints))


def test_a_subject_is_added_the_same(adapted_run, tiny_run, tmp_path):
    with elsewhere():
        adapt(tiny_run, adapted_run.parent / "data", tmp_path / "run", "n1", stimuli=16, device=DEVICE)
    here, there = (json.loads((folder / "adapt.json").read_text()) for folder in (adapted_run, tmp_path / "run"))
    assert near(there) == near(here)
    for file in ("relays", "drafts", "tokenizers/brain"):
        torch.testing.assert_close(
            *(load_file(folder / f"{file}.safetensors") for folder in (tmp_path / "run", adapted_run))
        )


class Eyes(nn.Module):
    """A frozen network that sees what the wavelets do. moves: it brings pictures to itself, as Janus's does."""

    def __init__(self, moves: bool = False):
        super().__init__()
        self.moves = moves
        self.register_buffer("scale", torch.full((1,), 0.5))

    def forward(self, pixels):
        pixels = pixels.to(self.scale.device) if self.moves else pixels
        return wavelet((pixels * self.scale).cpu()).to(self.scale.device)


@pytest.mark.usefixtures("forgotten")
def test_a_network_sees_where_the_model_is(make_checkpoint, tmp_path):
    bj.add_vision_encoder("eyes")(Eyes())
    make_checkpoint(image_input="eyes").save(tmp_path)
    pictures = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
    with elsewhere():
        for target in ("text", "brain:a"):
            close(*(generate(checkpoint, {"image": pictures}, target) for checkpoint in both(tmp_path)))


def test_features_come_back_from_where_they_were_made(study):
    ids = study.split_ids("test")[:3]
    with elsewhere():
        places = (torch.device("cpu"), DEVICE)
        found = [features_of(study, "eyes", ids, on_device(Eyes(moves=True), place)) for place in places]
        assert found[1].device.type == "cpu"
        close(*found)


def test_a_run_is_scored_where_it_was_opened(tiny_run, study, tmp_path, monkeypatch):
    places = []
    monkeypatch.setattr(
        module, "scored_and_told", lambda *given: places.append(device_of(given[1])) or Scored([], {}, [])
    )
    with elsewhere():
        for device in ("cpu", DEVICE):
            Run.open(tiny_run, device=device).evaluate(study, tmp_path)
        made_by = [deciding(tiny_run, Checkpoint.load(tiny_run, device=device), study, 0) for device in ("cpu", DEVICE)]
    assert places == [torch.device("cpu"), DEVICE] and made_by[0] != made_by[1]


def test_half_precision_goes_through(tiny_run, study):
    """As GPUs have it."""
    pictures = study.images(study.split_ids("test")[:2])
    with elsewhere():
        there = Checkpoint.load(tiny_run, device=DEVICE)
        there.model.prepare("bfloat16")
        for target in ("text", "brain:s1"):
            assert len(generate(there, {"image": pictures}, target, DRAWN)) == 2
        assert score_candidates(there, {"brain:s1": torch.zeros(2, 40)}, "image", pictures).isfinite().all()


@pytest.mark.parametrize("command", ["evaluate", "explore", "adapt"])
def test_several_processes_are_refused(tiny_run, study, tmp_path, command, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    more = [str(study.path), "--out", str(tmp_path / "out")] if command == "adapt" else []
    assert cli.main([command, str(tiny_run), *more]) == 2
    assert capsys.readouterr().err == (
        f"brainjanus: {command}: expected one process, got several. Start it without torchrun, or as one task.\n"
    )


def test_the_explorer_answers_the_same(tiny_run):
    def told(explorer):
        first, second = explorer.stimulus_ids[:2]
        picture, said = explorer.picture(second), explorer.facts(second).captions[0]
        return [
            explorer.about(),
            explorer.encode(Shown(first), against=Shown(text=said), samples=2),
            explorer.encode(Shown(picture=picture), ("s1",)),
            explorer.accuracy("s1", "image->brain"),
            explorer.accuracy("s2", "text->brain"),
            explorer.decode("s1", first, hidden=("V1",), samples=2, guidance=2.0),
            explorer.decode("s2", second, repeat=0),
            explorer.tokens("s1", first, swapped={0: 1}, masked=(1,)),
        ]

    here = told(Explorer(tiny_run))
    with elsewhere():
        there = told(Explorer(tiny_run, device=DEVICE))
    np.testing.assert_equal(near(there), near(here))


def near(answer):
    """Arrays to three decimals; log p may differ in the last digits."""
    if isinstance(answer, np.ndarray) and answer.dtype.kind == "f":
        return np.round(answer, 3) + 0.0
    if isinstance(answer, float):
        return round(answer, 3)
    if isinstance(answer, dict):
        return {name: near(value) for name, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [near(value) for value in answer]
    return answer


def test_a_run_is_scored_the_same(tiny_run, study, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ScoreOptions", partial(module.ScoreOptions, permutations=20, resamples=20))
    evaluate(tiny_run, study, tmp_path / "here", extras=Extras(java=False))
    with elsewhere():
        evaluate(tiny_run, study, tmp_path / "there", extras=Extras(java=False), device=DEVICE)
    here, there = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("here", "there"))
    assert [one["metric"] for one in there] == [one["metric"] for one in here]
    assert [one["value"] for one in there] == pytest.approx([one["value"] for one in here], abs=0.02)


@pytest.mark.parametrize("command", ["evaluate", "explore", "adapt"])
def test_a_device_that_is_not_there_is_a_sentence(tiny_run, study, tmp_path, command, capsys):
    more = [str(study.path), "--out", str(tmp_path / "out")] if command == "adapt" else []
    assert cli.main([command, str(tiny_run), *more, "--device", "cuda:99"]) == 2
    err = capsys.readouterr().err
    assert "--device: expected cpu, or cuda where there is a GPU" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tiny_run / "scores").exists()


EXPERIMENTS = {
    "localize": lambda run, out: bj.localize(run, ["red"], ["blue"], settings=1, out=out),
    "retinotopy": lambda run, out: bj.retinotopy(
        run, field_deg=8.0, stimuli="bars", passes=2, subjects=["s1"], out=out
    ),
    "prefer": lambda run, out: bj.prefer(run, "V1", samples=4, top=2, prompts=["red", "blue"], out=out),
    "lesion": lambda run, out: bj.lesion(run, controls=1, captions=1, pictures=True, out=out),
    "neighbours": lambda run, out: bj.neighbours(run, top=1, out=out),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_find_the_same(tiny_run, tmp_path, name):
    EXPERIMENTS[name](tiny_run, tmp_path / "here")
    with elsewhere():
        EXPERIMENTS[name](Run.open(tiny_run, device=DEVICE), tmp_path / "there")
    here, there = (json.loads((tmp_path / place / "results.json").read_text()) for place in ("here", "there"))
    np.testing.assert_equal(near(there), near(here))
