"""Memory: what is computed is what the allocator gives out, and what the guide says is what is computed."""

import importlib.util
import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from brainjanus import cli, memory
from brainjanus.memory import (
    GB,
    Live,
    Peak,
    Request,
    Row,
    Step,
    Study,
    bytes_of,
    cache_of,
    janus_model,
    janus_needs,
    measured_peak,
    moments_of,
    request_peak,
    weights_of,
    without_content,
)
from brainjanus.model.decoder import DecoderConfig
from brainjanus.recipes import named
from brainjanus.train.optim import OptimConfig

ADAMW = OptimConfig(optimizer="adamw")


@pytest.fixture(scope="module")
def benchmark(project_root):
    """benchmarks/memory.py, whose stand-ins are measured here, too."""
    folder = project_root / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("memory_benchmark", folder / "memory.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


@pytest.fixture(scope="module")
def stand_in(benchmark):
    return benchmark.stand_in().model


@pytest.mark.parametrize(
    "request_",
    [
        Request(("brain:a",), "image", 1, 1, False, torch.float32),
        Request(("image",), "brain:a", 2, 16, True, torch.float32),
    ],
    ids=["one", "many, guided"],
)
def test_a_request_needs_what_is_computed(benchmark, stand_in, request_):
    computed = request_peak(stand_in.config, stand_in.interface, request_)
    assert computed.total == pytest.approx(benchmark.measured_request(64, request_), rel=0.1)


@pytest.mark.parametrize(("trained", "again"), [("lora", False), ("lora", True), ("full", False), ("brain", False)])
def test_a_training_needs_what_is_computed(benchmark, stand_in, trained, again):
    step = Step(("image",), "brain:a", 8, trained, benchmark.LORA, ADAMW, again, torch.float32)
    computed = memory.step_peak(stand_in.config, stand_in.interface, step)
    assert computed.total == pytest.approx(benchmark.measured_training(64, step), rel=0.1)


def test_a_batch_in_parts_needs_what_is_computed(benchmark, stand_in):
    """The parts behind the first find its gradients there already."""
    step = Step(("image",), "brain:a", 8, "full", benchmark.LORA, ADAMW, False, torch.float32, rows_at_once=2)
    computed = memory.step_peak(stand_in.config, stand_in.interface, step)
    assert computed.total == pytest.approx(benchmark.measured_training(64, step), rel=0.1)
    whole = memory.step_peak(stand_in.config, stand_in.interface, replace(step, rows_at_once=0))
    assert computed.working < 0.5 * whole.working


def test_nothing_is_given_out_for_it(stand_in):
    request = Request(("brain:a",), "image", precision=torch.float32)
    taken = measured_peak(lambda: request_peak(stand_in.config, stand_in.interface, request))
    assert taken < 0.05 * bytes_of(stand_in)


def test_weights_are_those_of_the_model(stand_in):
    parts = weights_of(stand_in)
    assert sum(parts.values()) == bytes_of(stand_in)
    assert parts["decoder"] == bytes_of(stand_in.decoder)
    half = request_peak(stand_in.config, stand_in.interface, Request(("image",), "brain:a"))
    assert half.weights["decoder"] == parts["decoder"] / 2
    assert half.weights["brain"] - bytes_of(stand_in.heads["brain"]) / 2 == parts["brain"] - bytes_of(
        stand_in.heads["brain"]
    )


def test_the_cache_by_hand():
    """Two layers, keys and values, one head of eight numbers; the prefix once, and all of each sample."""
    config = DecoderConfig(16, 16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    request = Request((), "image", rows=3, samples=5, guided=True)
    assert cache_of(config, request, 7, 11) == 2 * 2 * 8 * 2 * (3 * 2) * (7 + 5 * (7 + 11))
    alone = Request((), "image", rows=3, precision=torch.float32)
    assert cache_of(config, alone, 7, 11) == 2 * 2 * 8 * 4 * 3 * (7 + 11)


def test_moments_of_each_optimizer():
    net = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(5, 3)]), "frozen": nn.Linear(9, 9).requires_grad_(False)})
    assert moments_of(net, ADAMW) == 2 * 4 * (15 + 3)
    assert moments_of(net, OptimConfig(optimizer="muon")) == 4 * (15 + 2 * 3)


def test_what_is_alive_is_counted_once_and_no_longer_than_it_is():
    with without_content() as live:
        one = torch.empty(100)
        view = one[:50].view(5, 10)
        assert live.now == live.peak == 400
        both = view + 1.0
        assert live.now == 600
        del one
        assert live.now == 600  # the view holds it
        del view, both
        assert (live.now, live.peak) == (0, 600)
        live.restart()
        torch.empty(10)
        assert live.peak == 40


def test_real_tensors_are_counted_too():
    with Live() as live:
        kept = torch.ones(8, dtype=torch.float64)
        torch.ones(100)
    assert (live.now, live.peak) == (64, 464)
    del kept


def test_a_card_has_to_hold_it_with_room_to_spare():
    def cards(gigabytes):
        return Peak({"decoder": int(gigabytes * GB / 2)}, 0, 0, 0, int(gigabytes * GB / 2)).cards

    assert cards(21.2) == ["24 GB", "40 GB", "48 GB", "80 GB", "141 GB"]
    assert cards(21.4) == ["40 GB", "48 GB", "80 GB", "141 GB"]
    assert cards(73.2) == ["141 GB"] and cards(140) == []


def test_the_recipes_are_janus_at_its_sizes():
    """Parameters of the language model, embedding and head included: 1.65 and 6.91 thousand million."""
    for name, wanted in (("nsd-1b", 1.65e9), ("nsd-7b", 6.91e9)):
        parts = weights_of_study(Study(), name)
        assert (parts["decoder"] + parts["text"]) / 4 == pytest.approx(wanted, rel=0.01)
        codes = janus_model(named(name), Study())[1].brain_codes
        assert list(codes.values()) == [246] * 8


def test_fewer_brains_need_less():
    eight, one = (weights_of_study(Study(subjects=number)) for number in (8, 1))
    assert one["brain"] < eight["brain"] / 4
    assert one["decoder"] == eight["decoder"]


def weights_of_study(study, name="nsd-1b"):
    config, interface = janus_model(named(name), study)
    with without_content():
        return weights_of(memory.OmniModel(config, interface))


# --- the guide


@pytest.fixture(scope="module")
def guide(project_root):
    """recipe -> line -> (GB, cards), as docs/guide/memory.md shows them."""
    text = (project_root / "docs/guide/memory.md").read_text(encoding="utf-8")
    tables = {}
    for name, body in re.findall(r"^brainjanus memory (\S+)\n```\n\n(.*?)\n\n", text, flags=re.MULTILINE | re.DOTALL):
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()[2:]]
        tables[name] = {what: (total, cards) for what, *_, total, cards in cells}
    return tables


def test_the_guide_shows_what_was_computed(guide, project_root):
    """All lines are those of the newest result of the benchmark."""
    newest = max((project_root / "benchmarks/results").glob("*-memory.json"))
    records = {record["name"]: record["value"] for record in json.loads(newest.read_text())}
    wanted = {name: list(janus_needs(named(name), Study())) for name in ("nsd-1b", "nsd-7b")}
    assert {name: list(lines) for name, lines in guide.items()} == wanted
    for name, lines in guide.items():
        for what, (total, _) in lines.items():
            assert total == f"{records[f'{name}: {what}']:.1f}", f"{name}: {what}"


@pytest.mark.parametrize(
    ("name", "what"), [("nsd-1b", "brain -> image, guided"), ("nsd-7b", "train lora, batch 32, recomputed")]
)
def test_the_guide_shows_what_is_computed(guide, name, what):
    peak = janus_needs(named(name), Study())[what]()
    assert guide[name][what] == (f"{peak.total / GB:.1f}", fitting(peak))


def fitting(peak):
    return f"{peak.cards[0]} and more" if peak.cards else "none"


# --- the command


def test_the_command_shows_a_table(monkeypatch, capsys):
    asked = []

    def table(recipe, study, samples, rows_at_once):
        asked.append((recipe.training.optim.batch_size, study.subjects, samples))
        return [Row("train lora", Peak({"decoder": 10 * GB, "lora": GB}, GB, 2 * GB, 0, 12 * GB))]

    monkeypatch.setattr(memory, "janus_table", table)
    options = ["--samples", "3", "--study.subjects", "2", "--training.optim.batch-size", "5"]
    assert cli.main(["memory", "nsd-7b", *options]) == 0
    assert asked == [(5, 2, 3)]
    shown = capsys.readouterr().out
    assert re.search(r"train lora +11\.0 +1\.0 +2\.0 +0\.0 +12\.0 +26\.0 +40 GB, 48 GB, 80 GB, 141 GB", shown)


def test_the_command_knows_its_recipes(capsys):
    assert cli.main(["memory", "laptop"]) == 2
    assert "expected one of nsd-1b, nsd-7b, got 'laptop'" in capsys.readouterr().err
