"""Config: every setting there and back, every mistake named."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from brainjanus.core.config import from_dict, load_config, to_dict
from brainjanus.core.errors import UserError
from brainjanus.recipes import TokenizerRunConfig, laptop, neurons, quick


@dataclass(frozen=True)
class Inner:
    count: int = 3

    def __post_init__(self):
        if self.count < 0:
            raise UserError(f"inner: expected a count of at least 0, got {self.count}. Correct it.")


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float = 1.0
    on: bool = False
    how: Literal["fast", "slow"] = "fast"
    most: int | None = None
    where: Path = Path("here")
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[int, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    any: Any = None


FULL = Outer("n", 2.5, True, "slow", 4, Path("/a"), (1.0, 2.0), (1, 2, 3), {"x": 0.5}, Inner(5), [1, "two"])


@pytest.mark.parametrize("config", [FULL, Outer("n")])
def test_a_config_becomes_plain_values_and_itself_again(config):
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("recipe", [laptop(3), quick(), neurons(features="clip")])
def test_every_recipe_becomes_plain_values_and_itself_again(recipe):
    assert from_dict(type(recipe), to_dict(recipe)) == recipe


def test_what_is_left_out_keeps_its_default():
    assert from_dict(Outer, {"name": "n", "inner": {}}) == Outer("n")


def test_a_whole_number_is_a_rate_too():
    rate = from_dict(Outer, {"name": "n", "rate": 2}).rate
    assert rate == 2.0
    assert type(rate) is float


def test_json_and_toml_say_the_same(tmp_path):
    (tmp_path / "c.json").write_text('{"name": "ä", "weights": {"x": 1}, "inner": {"count": 7}}', encoding="utf-8")
    (tmp_path / "c.toml").write_text('name = "ä"\nweights = {x = 1}\n[inner]\ncount = 7\n', encoding="utf-8")
    config = load_config(Outer, tmp_path / "c.json")
    assert config == load_config(Outer, tmp_path / "c.toml") == replace(Outer("ä"), weights={"x": 1.0}, inner=Inner(7))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "n", "nmae": 1}, "unknown key 'nmae' (there are name, rate,"),
        ({"name": "n", "inner": {"cuont": 1}}, "unknown key 'inner.cuont' (there are count)"),
        ({"name": 3}, "name: expected str, got 3"),
        ({"name": "n", "rate": "fast"}, "rate: expected float, got 'fast'"),
        ({"name": "n", "rate": True}, "rate: expected float, got True"),
        ({"name": "n", "most": 2.5}, "most: expected int, got 2.5"),
        ({"name": "n", "inner": {"count": True}}, "inner.count: expected int, got True"),
        ({"name": "n", "how": "medium"}, "how: expected one of 'fast', 'slow', got 'medium'"),
        ({"name": "n", "pair": [1.0]}, "pair: expected tuple[float, float], got [1.0]"),
        ({"name": "n", "many": [1, "2"]}, "many: expected int, got '2'"),
        ({"name": "n", "weights": {"x": "y"}}, "weights.x: expected float, got 'y'"),
        ({"name": "n", "where": 3}, "where: expected Path, got 3"),
        ({"name": "n", "inner": 3}, "inner: expected a table of settings, got 3"),
        ({"name": "n", "inner": {"count": -1}}, "inner: expected a count of at least 0, got -1"),
        ({}, "missing 1 required positional argument: 'name'"),
        ([], "the top: expected a table of settings, got []"),
    ],
)
def test_says_what_is_wrong(values, message):
    with pytest.raises(UserError) as caught:
        from_dict(Outer, values, where="my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert message in str(caught.value)


def test_says_all_that_is_wrong_at_once():
    with pytest.raises(UserError, match=r"unknown key 'a' .*; unknown key 'b' .*; rate: .*; inner\.count: "):
        from_dict(Outer, {"name": "n", "b": 1, "a": 1, "rate": "x", "inner": {"count": "y"}})


@pytest.mark.parametrize(("file", "text"), [("c.json", "{"), ("c.toml", "a ="), ("absent.json", None)])
def test_says_that_a_file_cannot_be_read(tmp_path, file, text):
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=f"{file}: expected a readable .json or .toml file"):
        load_config(Outer, tmp_path / file)


def test_a_part_of_a_table_keeps_the_parents_own_defaults_of_the_rest():
    """A brain tokenizer's quantizer is Euclidean; QuantizerConfig by itself is not."""
    config = from_dict(TokenizerRunConfig, {"tokenizer": {"quantizer": {"num_codes": 64}}})
    quantizer = TokenizerRunConfig().tokenizer.quantizer
    assert config.tokenizer.quantizer == replace(quantizer, num_codes=64)
    assert config.training == TokenizerRunConfig().training


def test_single_values_are_changed_by_the_names_of_the_command_line():
    before = quick()
    after = before.changed({"training.optim.steps": 7, "seed": 3, "training.tasks": {"brain->text": 1.0}})
    optim = replace(before.training.optim, steps=7)
    assert after == replace(before, seed=3, training=replace(before.training, optim=optim, tasks={"brain->text": 1.0}))
    assert before == quick()


def test_says_all_that_cannot_be_changed():
    with pytest.raises(UserError, match=r"settings: unknown key 'sed'.*training.optim.steps: expected int, got 'x'"):
        quick().changed({"sed": 1, "training.optim.steps": "x"})
