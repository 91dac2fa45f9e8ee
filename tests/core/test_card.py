"""A card is YAML and Markdown whatever its facts are called, keeps what is the user's, and costs nothing else."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from brainjanus.core.card import (
    INVITATION,
    OWN_FACTS,
    Card,
    Yours,
    add_card,
    bullets,
    kept_from,
    leave_card,
    one_line,
    plain,
    save_card,
    table,
    yaml_lines,
    yours_in,
)
from brainjanus.core.errors import UserError

CARD = Card("A title", {"license": "other", "tags": ["a", "b"]}, [("First", "Text."), ("Empty", "")])


def front_of(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


floats = st.floats(-1000, 1000).map(lambda value: round(value, 4))  # as scores are; YAML 1.1 takes 1e-05 for text
leaves = st.none() | st.booleans() | st.integers() | floats | st.text()
keys = st.sampled_from(["name", "model-index", "license_link", "a"])


@given(st.recursive(leaves, lambda some: st.lists(some) | st.dictionaries(keys, some), max_leaves=12))
def test_front_matter_is_the_yaml_of_its_facts(value):
    def as_written(one):
        if isinstance(one, dict):
            return {key: as_written(entry) for key, entry in one.items()}
        return [*map(as_written, one)] if isinstance(one, list) else one_line(one) if isinstance(one, str) else one

    assert yaml.safe_load("\n".join(yaml_lines(value))) == as_written(value)


def test_the_form():
    text = CARD.text()
    assert front_of(text) == {"license": "other", "tags": ["a", "b"]}
    assert "\n# A title\n" in text and "\n## First\n\nText.\n" in text
    assert "Empty" not in text
    assert text.endswith("<!-- /yours -->\n")


def test_names_mean_nothing_to_markdown():
    assert plain("a|b\n<script>`*[x]") == r"a\|b &lt;script>\`\*\[x\]"
    shown = table(("name", "n"), [("a|b", 1), ("two\nlines", 2)])
    assert shown.splitlines() == ["| name | n |", "|---|---|", r"| a\|b | 1 |", "| two lines | 2 |"]
    assert table(("name",), []) == ""
    assert bullets(["a", "b"]) == "- a\n- b"


def test_what_the_user_writes_stays(tmp_path):
    path = tmp_path / "README.md"
    save_card(path, CARD)
    assert yours_in(path) == Yours("", INVITATION)
    text = path.read_text().replace(f"{OWN_FACTS}\n", f"{OWN_FACTS}\nlicense: cc-by-4.0\nlanguage:\n- en\n")
    path.write_text(text.replace(INVITATION, "Recorded in 2024.\n\n## Consent\n\nGiven."))
    save_card(path, CARD._replace(title="Another", facts=CARD.facts | {"metrics": ["r"]}))
    text = path.read_text()
    assert front_of(text) == {"license": "cc-by-4.0", "language": ["en"], "tags": ["a", "b"], "metrics": ["r"]}
    assert text.count("\nlicense:") == 1  # twice is no YAML
    assert "# Another" in text and "# A title" not in text
    assert "<!-- yours -->\nRecorded in 2024.\n\n## Consent\n\nGiven.\n<!-- /yours -->" in text
    again = path.read_bytes()
    save_card(path, CARD._replace(title="Another", facts=CARD.facts | {"metrics": ["r"]}))
    assert path.read_bytes() == again


@pytest.mark.parametrize("content", [b"# My own\n", b"\xff\xfe", b"---\nlicense: mit\n---\n<!-- yours -->\nx\n"])
def test_a_file_that_is_no_card_is_left_as_it_is(tmp_path, capsys, content):
    path = tmp_path / "README.md"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"expected a card with .* got a file without"):
        save_card(path, CARD)
    leave_card(path, lambda: CARD)
    assert path.read_bytes() == content
    assert str(path) in capsys.readouterr().err


def test_what_goes_wrong_costs_one_sentence(tmp_path, capsys):
    def broken() -> Card:
        raise KeyError("sites")

    leave_card(tmp_path / "README.md", broken)
    (tmp_path / "file").write_text("")
    leave_card(tmp_path / "file" / "README.md", lambda: CARD)
    add_card(tmp_path / "README.md", broken, None)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all(line.startswith("Note: no new card.") for line in said)
    assert "KeyError('sites')" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_replaced_folder_keeps_what_was_written(tmp_path):
    path = tmp_path / "README.md"
    assert kept_from(path) is None
    path.write_text("# My own\n\nWith much in it.\n")
    kept = kept_from(path)
    assert kept == Yours(text="# My own\n\nWith much in it.")
    path.unlink()
    add_card(path, lambda: CARD, kept)
    assert yours_in(path) == kept == kept_from(path)
