"""The text tokenizer: every text there and back."""

import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.tokenizers.text import END, TextTokenizer, TextTokenizerConfig, up_to_end

CAPTIONS = ["a red scene with a cup", "a red scene with two cups", "the blue scene", "two cups"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.fit(CAPTIONS, TextTokenizerConfig(num_codes=300, max_length=40))


@pytest.mark.parametrize(
    "text",
    [*CAPTIONS[:4], "", "an unseen zebra!", "Größe 12 µm, café", "三个杯子", "🧠 → 🖼️", "a  b\tc\nd", '"quoted" <b>'],
)
def test_every_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode([text])) == [text]


def test_letters_and_their_accents_are_composed(tokenizer):
    assert tokenizer.decode(tokenizer.encode(["cafe\u0301"])) == ["caf\u00e9"]


def test_a_text_is_ended_and_filled_up_whatever_else_is_in_the_batch(tokenizer):
    alone, together = tokenizer.encode(["two cups"]), tokenizer.encode(["two cups", CAPTIONS[1]])
    assert alone.shape == (1, 40)
    assert torch.equal(alone[0], together[0])
    length = int((alone[0] != END).sum())
    assert (alone[0, :length] != END).all() and (alone[0, length:] == END).all()


def test_nothing_behind_the_end_is_read(tokenizer):
    codes = tokenizer.encode(["two cups"])
    codes[0, int((codes[0] != END).sum()) + 1 :] = 7
    assert tokenizer.decode(codes) == ["two cups"]


def test_a_text_without_an_end_is_read_to_its_last_code(tokenizer):
    codes = tokenizer.encode(["two cups"])
    assert tokenizer.decode(codes[:, : int((codes[0] != END).sum())]) == ["two cups"]


def test_frequent_words_are_one_code(tokenizer):
    assert int((tokenizer.encode(["scene"]) != END).sum()) == 1
    assert 257 < tokenizer.num_codes <= 300
    assert int(tokenizer.encode(CAPTIONS).max()) < tokenizer.num_codes


def test_by_default_the_longest_training_caption_just_fits():
    tokenizer = TextTokenizer.fit(CAPTIONS, TextTokenizerConfig(num_codes=300))
    codes = tokenizer.encode(CAPTIONS)
    assert codes.shape == (12, tokenizer.max_length)
    assert ((codes != END).sum(dim=1).max()) == tokenizer.max_length - 1


def test_longer_captions_of_other_splits_fit_and_teach_nothing():
    config = TextTokenizerConfig(num_codes=300)
    alone = TextTokenizer.fit(CAPTIONS, config)
    longer = "zebras zebras zebras zebras"
    tokenizer = TextTokenizer.fit(CAPTIONS, config, longest_among=[*CAPTIONS, longer])
    assert tokenizer.tokenizer.to_str() == alone.tokenizer.to_str()
    assert int((tokenizer.encode([longer]) != END).sum()) == tokenizer.max_length - 1 > alone.max_length
    assert TextTokenizer.fit(CAPTIONS, TextTokenizerConfig(300, 20), longest_among=[longer]).max_length == 20


def test_the_same_captions_give_the_same_pieces(tokenizer):
    again = TextTokenizer.fit(CAPTIONS, TextTokenizerConfig(num_codes=300, max_length=40))
    assert again.tokenizer.to_str() == tokenizer.tokenizer.to_str()


def test_what_is_saved_is_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new")
    loaded = TextTokenizer.load(tmp_path / "new", tokenizer.max_length)
    assert torch.equal(loaded.encode(["Größe zebra"]), tokenizer.encode(["Größe zebra"]))
    assert loaded.num_codes == tokenizer.num_codes


def test_says_what_is_wrong(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"text 'zzz.*': expected at most 40 .*, got 62\. .*text_tokenizer\.max_length"):
        tokenizer.encode(["short", "z" * 60])
    with pytest.raises(UserError, match="expected a saved text tokenizer"):
        TextTokenizer.load(tmp_path, 5)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="The run folder is damaged"):
        TextTokenizer.load(tmp_path, 5)


def test_a_prompt_is_seen_up_to_its_end():
    tokenizer = TextTokenizer.fit(["a red cup", "a cup"], TextTokenizerConfig(num_codes=270))
    prompt = tokenizer.prompt(["a red cup", "a"])
    assert torch.equal(prompt.codes, tokenizer.encode(["a red cup", "a"]))
    lengths = [len(tokenizer.tokenizer.encode(text).ids) + 1 for text in ("a red cup", "a")]
    assert prompt.seen.sum(dim=1).tolist() == lengths
    assert bool(prompt.seen[1, : lengths[1]].all())


def test_only_the_first_end_is_seen():
    codes = torch.tensor([[3, 0, 0, 4], [1, 2, 3, 4]])
    assert up_to_end(codes, 0).tolist() == [[True, True, False, False], [True] * 4]
