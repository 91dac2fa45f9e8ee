"""The search for a learning rate: what it trains, what it stops, what it judges by, and what it refuses."""

import csv
import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from brainjanus import run
from brainjanus import tune as module
from brainjanus.cli import main
from brainjanus.core.config import from_dict, to_dict
from brainjanus.core.errors import UserError
from brainjanus.core.processes import only_one
from brainjanus.recipes import RunConfig
from brainjanus.tables import print_rates
from brainjanus.train.watch import Diverged
from brainjanus.tune import behind, held_out_share, middle_first, tune

FEW = {"steps": 2, "batch_size": 4}
DECODER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY = from_dict(
    RunConfig,
    {
        "seed": 3,
        "brain_tokenizer": {"patch_size": 8, "patch": {"width": 8, "depth": 0, "heads": 1}},
        "brain_training": FEW,
        "image_tokenizer": {"image_size": 16, "codes_per_side": 2, "width": 8, "blocks": 0},
        "image_training": FEW,
        "omni": {"decoder": DECODER | {"num_key_value_heads": 2}},
        "training": {"optim": FEW | {"steps": 77, "learning_rate": 4e-3, "precision": "float32"}},
    },
)
RATES = (1e-3, 2e-3, 4e-3)


class Trainer:
    """Stands for `fit_omni`: its losses on held-out stimuli fall to what `losses` says of a rate (and seed)."""

    def __init__(self, losses, killed_at=-1):
        self.losses, self.killed_at, self.asked = losses, killed_at, []

    def __call__(self, model, tokenizers, codes, training, folder, seed, *, validation, hardware, show):
        if len(self.asked) == self.killed_at:
            raise KeyboardInterrupt
        rate = training.optim.learning_rate
        self.asked.append((rate, seed, training))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state").mkdir()
        at = self.losses[rate]
        at = at[seed] if isinstance(at, dict) else at
        every, steps = training.validate_every, training.optim.steps
        for step in [*range(every, steps, every), steps]:
            if at == "jumps" and step > every:
                raise Diverged("omni: a spike.")
            loss = {"jumps": 5.0}.get(at, at) if not callable(at) else at(step / steps)
            line = {"stage": "omni", "step": step, "split": "val", "loss": loss, "nats/image->brain": loss / 2}
            with (folder / "log.jsonl").open("a") as file:
                file.write(json.dumps({"stage": "omni", "step": step, "loss": 0.0}) + "\n" + json.dumps(line) + "\n")
            if step % training.sample_every == 0:
                show(torch.nn.Identity(), step)


def falling(end: float, start: float = 9.0):
    """A loss that falls evenly."""
    return lambda share: start + (end - start) * share


@pytest.fixture
def search(study, tmp_path, monkeypatch):
    """A search whose trainings are scripted; returns (what it found, the trainer)."""
    monkeypatch.setattr(module, "tokenized", lambda *_: SimpleNamespace(tokenizers=0, training=0, validation=0))
    monkeypatch.setattr(module, "new_model", lambda *_: 0)

    def do(losses, rates=RATES, out="out", config=TINY, killed_at=-1, **options):
        trainer = Trainer(losses, killed_at)
        monkeypatch.setattr(module, "fit_omni", trainer)
        return tune(study, tmp_path / out, config, rates, **{"steps": 90, **options}), trainer

    return do


# --- the whole way


@pytest.fixture(scope="module")
def done(study, tmp_path_factory):
    """A search of two real trainings that is killed before the second and gone on with; and what was done when."""
    out, asked = tmp_path_factory.mktemp("tune") / "out", []
    with pytest.MonkeyPatch.context() as patch:
        fit, encode, brain = module.fit_omni, run.encode_split, run.fit_brain_tokenizer

        def once(*given, **options):
            if "fit" in asked and "killed" not in asked:
                asked.append("killed")
                raise KeyboardInterrupt
            asked.append("fit")
            return fit(*given, **options)

        patch.setattr(module, "fit_omni", once)
        patch.setattr(run, "encode_split", lambda *given: asked.append(given[2]) or encode(*given))
        patch.setattr(run, "fit_brain_tokenizer", lambda *a, **o: asked.append("tokenizer") or brain(*a, **o))
        with pytest.raises(KeyboardInterrupt):
            tune(study, out, TINY, (2e-3, 2e-2), steps=9)
        found = tune(study, out, TINY, (2e-3, 2e-2), steps=9)
        tune(study, out, TINY, (2e-3, 2e-2), steps=9)
    return out, found, asked


def test_a_search_that_was_killed_goes_on_and_is_done_once(done):
    out, found, asked = done
    assert asked == ["tokenizer", "train", "fit", "killed", "tokenizer", "train", "fit"]
    assert [one.rate for one in found.rates] == [2e-3, 2e-2]
    assert len(list((out / "shared" / "codes").iterdir())) > 0, "made once, for all rates"
    assert not list(out.glob("cells/*/state")) and len(list(out.glob("cells/*/log.jsonl"))) == 2


def test_the_losses_are_those_of_held_out_stimuli_at_the_last_step(done):
    out, found, _ = done
    for one in found.rates:
        lines = [json.loads(line) for line in (out / f"cells/rate{one.rate}-seed3/log.jsonl").read_text().splitlines()]
        held_out = [line for line in lines if line.get("split") == "val"]
        assert one.cells[0].curve == [(line["step"], line["loss"]) for line in held_out]
        assert held_out[-1]["step"] == 9 and one.loss == held_out[-1]["loss"]
        assert max(line["lr"] for line in lines if "lr" in line) <= one.rate
    assert found.best.loss == min(one.loss for one in found.rates)


def test_the_config_is_one_to_train_with(done):
    """Only the rate differs from the settings: neither the steps of the search nor what it held out."""
    out, found, _ = done
    optim = replace(TINY.training.optim, learning_rate=found.best.rate)
    assert RunConfig.load(out / "config.json") == replace(TINY, training=replace(TINY.training, optim=optim))


def test_the_table_and_the_picture(done):
    out, found, _ = done
    with open(out / "rates.tsv") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(float(row["rate"]), row["outcome"], row["step"]) for row in rows] == [
        (2e-3, "done", "9"), (2e-2, "done", "9"),
    ]  # fmt: skip
    for row, one in zip(rows, found.rates, strict=True):
        assert float(row["loss"]) == pytest.approx(one.loss, rel=1e-5)
        assert float(row["nats/image->brain"]) == pytest.approx(one.cells[0].losses["nats/image->brain"], rel=1e-5)
    with Image.open(out / "rates.png") as picture:
        assert min(picture.size) > 300


# --- what is trained


def test_every_rate_has_its_whole_schedule_in_few_steps(search):
    found, trainer = search({rate: falling(5) for rate in RATES}, seeds=(0, 1))
    assert sorted((rate, seed) for rate, seed, _ in trainer.asked) == [(r, s) for r in RATES for s in (0, 1)]
    for rate, _, training in trainer.asked:
        assert training.optim == replace(TINY.training.optim, steps=90, learning_rate=rate, save_every=30)
        assert (training.validate_every, training.sample_every, training.patience) == (10, 30, 0)
    assert found.advice == "" or found.best.rate in (RATES[0], RATES[-1])


def test_rates_are_by_default_those_around_the_one_of_the_settings(search):
    _, trainer = search({rate: falling(5) for rate in (1e-3, 2e-3, 4e-3, 8e-3)}, rates=())
    assert sorted(rate for rate, _, _ in trainer.asked) == [1e-3, 2e-3, 4e-3, 8e-3]
    assert {seed for _, seed, _ in trainer.asked} == {TINY.seed}


def test_likely_rates_are_tried_first():
    assert middle_first([1.0, 2.0, 4.0, 8.0, 16.0]) == [4.0, 8.0, 2.0, 16.0, 1.0]
    assert middle_first([1.0, 10.0]) == [10.0, 1.0]


# --- what is stopped


def test_a_rate_that_is_far_behind_is_stopped_and_the_result_says_so(search, tmp_path, capsys):
    """2e-3 comes first: 8 at a third, 2 less at the end; 4e-3 is 1.9 behind there. Then it is the best, and gained 4.9
    from there on; 1e-3 is 5.1 behind."""
    losses = {2e-3: falling(6, 9), 4e-3: lambda share: 9.9 if share < 0.5 else 5.0, 1e-3: falling(15.0, 15.0)}
    found, _ = search(losses)
    assert [(one.rate, one.outcome) for one in found.rates] == [(1e-3, "stopped"), (2e-3, "done"), (4e-3, "done")]
    stopped = found.rates[0].cells[0]
    assert stopped.curve[-1] == (30, 15.0) and found.rates[0].loss == math.inf
    assert stopped.why == "loss 15 at step 30, where rate 0.004 had 9.9 and came to 5"
    assert found.best.rate == 4e-3, "a late one may win"
    print_rates(found)
    table = capsys.readouterr().out
    assert [line.split()[:2] for line in table.splitlines() if line.strip()[:1] == "0"] == [
        ["0.001", "stopped"], ["0.002", "90"], ["0.004", "best"],
    ]  # fmt: skip


def test_nobody_is_stopped_by_a_rate_that_gained_nothing_or_has_another_seed():
    cell = module.Cell(1e-3, 0, "done", [(30, 5.0), (90, 5.0)], {}, "")
    assert behind(50.0, 30, [cell]) == "" and behind(50.0, 30, []) == ""
    gained = cell._replace(curve=[(30, 5.0), (90, 4.0)])
    assert behind(6.0, 30, [gained]) == "" and behind(6.1, 30, [gained]) != ""
    assert behind(6.1, 30, [gained._replace(outcome="diverged")]) == ""
    assert behind(6.1, 20, [gained]) == "", "not measured at that step"


def test_a_rate_that_diverges_is_a_result(search, tmp_path):
    losses = {1e-3: falling(6), 2e-3: falling(5), 4e-3: {0: falling(4), 1: "jumps"}}
    found, _ = search(losses, seeds=(0, 1))
    assert [one.outcome for one in found.rates] == ["done", "done", "diverged"]
    assert found.rates[2].cells[1].why == "omni: a spike." and found.rates[2].loss == math.inf
    assert (found.best.rate, found.advice) == (2e-3, ""), "a rate that diverges ends the range"
    not_finite, _ = search({1e-3: falling(6), 2e-3: falling(5), 4e-3: math.nan}, out="nan")
    assert [one.outcome for one in not_finite.rates] == ["done", "done", "diverged"]
    assert "NaN" not in (tmp_path / "nan" / "cells" / "rate0.004-seed3" / "result.json").read_text()


def test_another_error_is_an_error(search, monkeypatch):
    def full(_):
        raise UserError("state: a full disk")

    with pytest.raises(UserError, match="a full disk"):
        search(dict.fromkeys(RATES, full))


def test_says_so_if_all_diverge(search):
    with pytest.raises(UserError, match=r"among 0.001, 0.002, 0.004: all diverged. .*: omni: a spike"):
        search(dict.fromkeys(RATES, "jumps"))


# --- what it is judged by


def test_the_mean_over_seeds_decides(search):
    losses = {1e-3: {0: falling(4.0), 1: falling(8.0)}, 2e-3: {0: falling(5.0), 1: falling(5.2)}, 4e-3: falling(7)}
    found, _ = search(losses, seeds=(0, 1))
    assert found.best.rate == 2e-3 and found.best.loss == pytest.approx(5.1)
    row = module.row_of(found.best)
    assert (row["lowest"], row["highest"], row["nats/image->brain"]) == pytest.approx((5.0, 5.2, 2.55))


@pytest.mark.parametrize(
    ("ends", "advice"),
    [
        ((5.0, 6.0, 7.0), "The best rate, 0.001, is the smallest .*widen the range.* --rates 0.001 0.0005 0.00025"),
        ((7.0, 5.0, 7.0), "^$"),
        ((7.0, 6.0, 5.0), "The best rate, 0.004, is the largest .*widen the range.* --rates 0.004 0.008 0.016"),
    ],
)
def test_says_that_the_best_is_at_an_end_of_the_range(search, capsys, ends, advice):
    found, _ = search({rate: falling(end) for rate, end in zip(RATES, ends, strict=True)})
    assert pytest.approx(found.best.loss) == 5.0
    print_rates(found)

    assert re.search(advice, found.advice) and found.advice in capsys.readouterr().out


def test_rates_and_seeds_may_be_added(search):
    losses = {rate: falling(end) for rate, end in zip((*RATES, 8e-3), (7, 6, 5, 6), strict=True)}
    search(losses)
    found, trainer = search(losses, rates=(4e-3, 8e-3))
    assert [(rate, seed) for rate, seed, _ in trainer.asked] == [(8e-3, 3)], "the others were done"
    assert [one.rate for one in found.rates] == [*RATES, 8e-3] and found.best.rate == 4e-3 and not found.advice
    found, trainer = search(losses, seeds=(3, 4))
    assert sorted(rate for rate, _, _ in trainer.asked) == [*RATES, 8e-3], "all that are compared have the same seeds"


def test_goes_on_where_it_was_killed(search):
    losses = {rate: falling(5) for rate in RATES}
    with pytest.raises(KeyboardInterrupt):
        search(losses, killed_at=2)
    _, trainer = search(losses)
    assert len(trainer.asked) == 1


# --- what it refuses


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rates": (1e-3,)}, "rates must be two or more different ones, got 0.001"),
        ({"rates": (1e-3, 1e-3)}, "rates must be two or more different ones, got 0.001, 0.001"),
        ({"rates": (1e-3, -1.0)}, "rates must be positive, got -1"),
        ({"rates": (1e-3, math.nan)}, "rates must be positive, got nan"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"seeds": (1, 1)}, "seeds must be different ones, got 1, 1"),
    ],
)
def test_refuses_options_before_anything_is_written(search, tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        search({}, **options)
    assert not (tmp_path / "out").exists()


def test_refuses_other_settings_and_other_folders(search, tmp_path):
    losses = {rate: falling(5) for rate in RATES}
    search(losses)
    with pytest.raises(UserError, match=r"this search was started with, got others \(steps 90 -> 60"):
        search(losses, steps=60)
    with pytest.raises(UserError, match=r"got others \(config.training.dropped 0.1 -> 0.3"):
        search(losses, config=replace(TINY, training=replace(TINY.training, dropped=0.3)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="one that holds a search for a rate, got something else"):
        search(losses, out="mine")
    (tmp_path / "out" / "cells" / "rate0.001-seed3" / "result.json").write_text('{"rate": 1}')
    with pytest.raises(UserError, match=r"result.json: expected what a training at one rate came to"):
        search(losses)


def test_refuses_to_be_several_processes(search, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="tune: expected one process, got several"):
        search({rate: falling(5) for rate in RATES})


def test_refuses_a_folder_that_another_search_is_at(search, tmp_path):
    losses = {rate: falling(5) for rate in RATES}
    search(losses)
    with only_one(tmp_path / "out" / "tune.json"), pytest.raises(UserError, match="got one that another process"):
        search(losses)


def test_enough_is_held_out_to_judge_by(study, monkeypatch):
    assert held_out_share(study, TINY.training) * 64 == 16
    assert held_out_share(study, replace(TINY.training, validation=0.5)) == 0.5
    monkeypatch.setattr(module, "LEAST_HELD_OUT", 17)
    with pytest.raises(UserError, match=r"at least 17, got a dataset with 64 .*--training.validation 0.27"):
        held_out_share(study, TINY.training)


# --- the command


def test_the_command(study, tmp_path, monkeypatch, capsys):
    asked = []

    def fake(dataset, out, config, rates, **options):
        asked.append((config, rates, options["steps"], options["seeds"]))
        cell = module.Cell(1e-3, 0, "done", [(9, 2.0)], {}, "")
        one = module.Rate(1e-3, [cell])
        return module.Tuned([one], one, "Widen the range.")

    monkeypatch.setattr(module, "tune", fake)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(TINY)))
    given = ["--config", str(tmp_path / "config.json"), "--rates", "1e-3", "4e-3", "--steps", "9", "--seeds", "0", "1"]
    assert main(["tune", str(study.path), "--out", str(tmp_path / "o"), *given, "--training.dropped", "0.3"]) == 0
    assert asked == [(replace(TINY, training=replace(TINY.training, dropped=0.3)), (1e-3, 4e-3), 9, (0, 1))]
    out = capsys.readouterr().out
    assert "best" in out and "Widen the range." in out and out.endswith("o/config.json\n")
    assert main(["tune", str(study.path), "--out", "o", "--config", "x", "--recipe", "quick"]) == 2
    assert "tune: expected --recipe or --config, got both" in capsys.readouterr().err


def test_the_command_says_how_to_go_on(study, tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt("omni is saved at step 3 of 9")

    monkeypatch.setattr(module, "tune", stopped)
    assert main(["tune", str(study.path), "--out", str(tmp_path / "o")]) == 130
    assert "omni is saved at step 3 of 9. Run the same command again to go on from there." in capsys.readouterr().err
