"""Janus in and out: what transformers writes is loaded whole, computes the same, and is written back."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from brainjanus.core.errors import UserError
from brainjanus.generate import GenerationConfig, generate, sample, score
from brainjanus.model.checkpoint import JANUS, Checkpoint
from brainjanus.model.janus import janus_prompt, load_janus, open_janus, save_janus
from brainjanus.model.omni import OmniConfig
from brainjanus.model.sequence import Block
from brainjanus.tokenizers.janus import ASSISTANT, USER

PROMPTS = ["a red cup", "what is this? white left"]
QUESTIONS = ["what is this?", "is the cup on the left?"]


@pytest.fixture(scope="module")
def theirs(janus_folder):
    from transformers import JanusForConditionalGeneration

    return JanusForConditionalGeneration.from_pretrained(janus_folder).eval()


@pytest.fixture(scope="module")
def ours(janus_folder) -> Checkpoint:
    return load_janus(janus_folder, text_length=12)


@pytest.fixture(scope="module")
def with_brains(janus_folder, make_checkpoint) -> Checkpoint:
    torch.manual_seed(1)
    config = OmniConfig(image_input=JANUS, brain_input="latents")
    return load_janus(janus_folder, make_checkpoint().tokenizers.brain, config=config, text_length=12)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def ids_of(checkpoint: Checkpoint, text: str) -> list[int]:
    """With the begin in front, as transformers' tokenizer writes it."""
    return checkpoint.tokenizers.text.tokenizer.encode(text).ids


def left_padded(rows: list[list[int]], pad: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


def prompt_block(checkpoint: Checkpoint, texts: list[str]) -> Block:
    prompt = checkpoint.tokenizers.text.prompt(texts)
    return Block("text", codes=prompt.codes, seen=None if prompt.seen.all() else prompt.seen)


def greedy(checkpoint: Checkpoint, blocks: list[Block], target: str, length: int, guidance: float = 1.0):
    rows = blocks[0].batch
    goal = Block(target, codes=torch.zeros(rows, length, dtype=torch.long))
    config = GenerationConfig(estimate="sample", temperature=0.0, guidance=guidance)
    with torch.no_grad():
        return sample(checkpoint.model, blocks, goal, config, torch.zeros(rows, 1, length))[0][:, 0]


# --- the same numbers as transformers


def test_logits_of_text_are_theirs(ours, theirs):
    reply = torch.tensor([ours.tokenizers.text.pieces(["a blue cup left"])[0]])
    chat = ours.tokenizers.text.chat(PROMPTS[:1]).codes
    ids = torch.cat([torch.tensor([ids_of(ours, f"{USER}{PROMPTS[0]}{ASSISTANT}")]), reply], dim=1)
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits[:, chat.shape[1] + 1 : -1]
        found = ours.model([Block("text", codes=chat)], Block("text", codes=reply))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_logits_of_pictures_are_theirs(ours, theirs, pixels):
    codes = ours.tokenizers.image.encode(pixels)
    prompts = [PROMPTS[0]] * 2
    ids = torch.tensor([[*ids_of(ours, f"{USER}{PROMPTS[0]}{ASSISTANT}"), 3]] * 2)
    with torch.no_grad():
        embedded = torch.cat(
            [
                theirs.get_input_embeddings()(ids),
                theirs.prepare_embeddings_for_image_generation(codes[:, :-1]),
            ],
            dim=1,
        )
        states = theirs.model.language_model(inputs_embeds=embedded).last_hidden_state
        expected = theirs.model.generation_head(states[:, ids.shape[1] - 1 :])
        found = ours.model([prompt_block(ours, prompts)], Block("image", codes=codes))
    assert found.shape == (2, 16, 24)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_greedy_pictures_with_guidance_are_theirs(ours, theirs):
    """Also prompts of different lengths in one batch: theirs are filled up on the left, ours behind the text."""
    ids, mask = left_padded([[*ids_of(ours, f"{USER}{text}{ASSISTANT}"), 3] for text in PROMPTS])
    expected = theirs.generate(
        input_ids=ids, attention_mask=mask, generation_mode="image", do_sample=False, guidance_scale=5, use_cache=True
    )
    found = greedy(ours, [prompt_block(ours, PROMPTS)], "image", 16, guidance=5.0)
    assert torch.equal(found, expected)
    assert len(found.unique()) > 3
    alone = [greedy(ours, [prompt_block(ours, [text])], "image", 16, guidance=5.0)[0] for text in PROMPTS]
    assert torch.equal(torch.stack(alone), found)
    assert not torch.equal(found, greedy(ours, [prompt_block(ours, PROMPTS)], "image", 16))


@pytest.mark.parametrize("shown", [False, True])
def test_greedy_text_is_theirs(ours, theirs, pixels, shown):
    """With a picture through the understanding encoder, and without one."""
    picture = "<begin_of_image>" + "<image_placeholder>" * 16 + "<end_of_image>\n" if shown else ""
    ids, mask = left_padded([ids_of(ours, f"{USER}{picture}{text}{ASSISTANT}") for text in QUESTIONS])
    given = {"pixel_values": pixels * 2 - 1} if shown else {}
    expected = theirs.generate(
        input_ids=ids, attention_mask=mask, generation_mode="text", do_sample=False, max_new_tokens=12, **given
    )[:, ids.shape[1] :]
    blocks = janus_prompt(ours, QUESTIONS, pixels if shown else None)
    found = greedy(ours, blocks, "text", 12)
    for row, wanted in zip(found.tolist(), expected.tolist(), strict=True):
        wanted = [*wanted, *[1] * (12 - len(wanted))]
        end = wanted.index(1) + 1 if 1 in wanted else 12
        assert row[:end] == wanted[:end]


def test_the_picture_decides_the_text(ours, pixels):
    found = greedy(ours, janus_prompt(ours, QUESTIONS[:1] * 2, pixels), "text", 12)
    assert not torch.equal(found[0], found[1])


def test_pictures_are_encoded_and_decoded_as_theirs(ours, theirs, pixels):
    image, vq = ours.tokenizers.image, theirs.model.vqmodel
    with torch.no_grad():
        expected = vq.encode(pixels * 2 - 1).image_tokens.view(2, -1)
        codes = image.encode(pixels)
        assert torch.equal(codes, expected)
        assert len(codes.unique()) > 2
        decoded = (vq.decode(codes) + 1) / 2
        assert torch.allclose(image.decode(codes), decoded.clamp(0, 1), atol=1e-5)
        certain = torch.nn.functional.one_hot(codes, 24).float()
        assert torch.allclose(image.decode_probabilities(certain), decoded.clamp(0, 1), atol=1e-5)
        features = theirs.model.vision_model(pixels * 2 - 1).last_hidden_state
        assert torch.allclose(ours.tokenizers.vision(pixels), features, atol=1e-5)


def test_a_latent_takes_the_code_in_its_direction_however_long_the_codes_vector_is(janus_folder, ours, pixels):
    image = load_janus(janus_folder).tokenizers.image
    image.vq.quantize.embedding.weight.mul_(torch.linspace(0.1, 10, 24)[:, None])
    assert torch.equal(image.encode(pixels), ours.tokenizers.image.encode(pixels))


# --- all of it, in any form of the files


def same_model(one: Checkpoint, other: Checkpoint) -> bool:
    pairs = [(one.model, other.model)]
    pairs += [(getattr(one.tokenizers, n), getattr(other.tokenizers, n)) for n in ("image", "vision")]
    states = [(a.state_dict(), b.state_dict()) for a, b in pairs]
    return all(torch.equal(a[name], b[name]) for a, b in states for name in a if not name.startswith(BRAINS))


BRAINS = ("aligners.brain", "heads.brain", "pointers.brain", "brain_codebook")  # drawn anew by every loading


def test_shards_are_read(janus_folder, theirs, ours, tmp_path):
    shards = copied(janus_folder, tmp_path)
    (shards / "model.safetensors").unlink()
    theirs.save_pretrained(shards, max_shard_size="100KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 2
    assert same_model(load_janus(shards, text_length=12), ours)


def test_a_head_that_is_tied_is_the_embedding(janus_folder, tmp_path):
    tied = copied(janus_folder, tmp_path)
    change(tied / "config.json", tie_word_embeddings=True)
    rewrite(tied, lambda tensors: tensors.pop("lm_head.weight"))
    model = load_janus(tied).model
    start = model.vocabulary.range("text").start
    assert torch.equal(model.heads["text"].weight, model.embed_tokens.weight[start:])


def test_weights_are_mapped_and_not_copied(janus_folder, tmp_path):
    """What is changed in the file afterwards is seen."""
    file = copied(janus_folder, tmp_path) / "model.safetensors"
    weight = load_janus(file.parent).model.decoder.layers[0].mlp.up_proj.weight
    content = bytearray(file.read_bytes())
    with file.open("r+b") as mapped:
        mapped.seek(content.index(weight.numpy().tobytes()))
        mapped.write(b"\0" * 8)
    assert weight[0, :2].tolist() == [0, 0]
    assert load_janus(janus_folder, precision="bfloat16").model.embed_tokens.weight.dtype == torch.bfloat16


def test_control_tokens_are_those_of_janus(ours, with_brains):
    pieces = ours.model.embed_tokens.weight[ours.model.vocabulary.range("text").start :]
    for name, token in (("begin", 0), ("image", 3), ("features", 3), ("dropped", 2)):
        assert torch.equal(ours.model.embed_control(name, 1)[0, 0], pieces[token])
    colon = ours.tokenizers.text.tokenizer.encode(ASSISTANT, add_special_tokens=False).ids[-1]
    assert torch.equal(ours.model.embed_control("text", 1)[0, 0], pieces[colon])
    assert torch.equal(ours.model.embed_control("hidden", 1)[0, 0], pieces[2])  # a row of its own, which starts there
    for subject in "ab":
        assert torch.equal(with_brains.model.embed_control(f"brain:{subject}", 1)[0, 0], pieces[3])


# --- with brains


def test_brains_do_not_change_what_janus_says(ours, with_brains, pixels):
    goal = Block("image", codes=ours.tokenizers.image.encode(pixels))
    given = [prompt_block(ours, PROMPTS)]
    with torch.no_grad():
        assert torch.equal(ours.model(given, goal), with_brains.model(given, goal))


def test_what_janus_lacks_starts_at_the_scale_of_its_embedding(with_brains):
    model = with_brains.model
    scale = float(model.embed_tokens.weight.std())
    assert model.config.entry_scale == pytest.approx(scale, rel=0.1)
    assert float(model.places["brain:a"].std()) == pytest.approx(scale, rel=0.2)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    responses = with_brains.tokenizers.brain.latents(torch.randn(8, 10), "a")
    with torch.no_grad():
        entered = model.embed_content(Block("brain", vectors=responses, subject="a"))
    assert scale / 4 < float(entered.std()) < scale * 6


@pytest.mark.parametrize(
    ("given", "target"),
    [(("brain:a",), "image"), (("brain:a",), "text"), (("image", "text"), "brain:b"), (("brain:a", "image"), "brain:b"),
     (("text",), "image"), ((), "image")],
)  # fmt: skip
def test_any_direction(with_brains, pixels, given, target):
    conditions = {"brain:a": torch.randn(2, 10), "image": pixels.permute(0, 2, 3, 1), "text": PROMPTS}
    found = generate(
        with_brains,
        {name: conditions[name] for name in given},
        target,
        GenerationConfig(estimate="sample", guidance=2.0),
    )
    assert len(found) == (2 if given else 1)
    shape = {"image": (16, 16, 3), "brain:b": (8,)}.get(target)
    assert all(isinstance(row, str) for row in found) if target == "text" else found.shape[1:] == shape


def test_a_checkpoint_of_it_is_saved_and_loaded(with_brains, pixels, tmp_path):
    with_brains.save(tmp_path / "run")
    loaded = Checkpoint.load(tmp_path / "run")
    assert loaded.model.interface == with_brains.model.interface
    assert loaded.tokenizers.text.config == with_brains.tokenizers.text.config
    assert loaded.tokenizers.image.config == with_brains.tokenizers.image.config
    shown = {"image": pixels.permute(0, 2, 3, 1), "text": PROMPTS}
    config = GenerationConfig(estimate="mean")
    assert torch.equal(generate(loaded, shown, "brain:a", config), generate(with_brains, shown, "brain:a", config))
    half = Checkpoint.load(tmp_path / "run", precision="bfloat16")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("brain_input", ["sites", "latents", "codes"])
def test_held_in_bfloat16_it_says_the_same_in_all_directions(janus_folder, make_checkpoint, pixels, brain_input):
    brain, config = make_checkpoint().tokenizers.brain, OmniConfig(image_input=JANUS, brain_input=brain_input)
    shown = {"brain:a": torch.randn(2, 10), "image": pixels.permute(0, 2, 3, 1), "text": PROMPTS}
    for given, target in ((("brain:a", "text"), "image"), (("image", "text"), "brain:b"), (("brain:a",), "text")):
        rows = {"image": shown["image"], "text": ["a cup"] * 2, "brain:b": torch.randn(2, 8)}[target]
        nats = []
        for precision in ("float32", "bfloat16"):
            torch.manual_seed(3)
            checkpoint = load_janus(janus_folder, brain, config=config, text_length=12, precision=precision)
            conditions = {name: shown[name] for name in given}
            nats.append(score(checkpoint, conditions, target, rows))
            generate(checkpoint, conditions, target, GenerationConfig(estimate="sample", guidance=2.0))
        assert torch.allclose(nats[0], nats[1], rtol=0.1)


def test_the_understanding_encoder_may_be_pooled(janus_folder, ours, pixels):
    pooled = load_janus(janus_folder, image_tokens=4)
    assert pooled.model.interface.features == {JANUS: (4, 24)}
    whole = ours.tokenizers.vision(pixels).unflatten(1, (2, 2, 2, 2)).mean(dim=(2, 4)).flatten(1, 2)
    assert torch.allclose(pooled.tokenizers.vision(pixels), whole, atol=1e-6)
    assert pooled.tokenizers.encoder(JANUS) is pooled.tokenizers.vision


# --- out


def test_what_is_written_is_loaded_by_transformers_and_by_us(with_brains, theirs, tmp_path, pixels):
    from transformers import AutoTokenizer, JanusForConditionalGeneration

    save_janus(with_brains, tmp_path / "out")
    model, report = JanusForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    ids = torch.tensor([ids_of(with_brains, "<begin_of_image>" + "<image_placeholder>" * 16 + "<end_of_image> a cup")])
    with torch.no_grad():
        one, other = (m.eval()(input_ids=ids, pixel_values=pixels[:1]).logits for m in (theirs, model))
        assert torch.equal(one, other)
        assert torch.equal(
            model.model.vqmodel.encode(pixels).image_tokens, theirs.model.vqmodel.encode(pixels).image_tokens
        )
    assert model.generation_config.generation_kwargs == {"boi_token_id": 3}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("a <begin_of_image>").input_ids == ids_of(with_brains, "a <begin_of_image>")
    assert tokenizer.boi_token == "<begin_of_image>" and tokenizer.eos_token == "<eos>"
    again = load_janus(tmp_path / "out", with_brains.tokenizers.brain, text_length=12)
    assert again.tokenizers.text.config == with_brains.tokenizers.text.config
    goal, given = Block("image", codes=with_brains.tokenizers.image.encode(pixels)), [prompt_block(again, PROMPTS)]
    with torch.no_grad():
        assert torch.equal(again.model(given, goal), with_brains.model(given, goal))


def test_what_was_learnt_is_in_what_is_written(janus_folder, tmp_path):
    """Of the control tokens, too: they are rows of Janus itself."""
    checkpoint = load_janus(janus_folder, config=OmniConfig(image_input=JANUS, image_places=False), text_length=12)
    model = checkpoint.model.requires_grad_(True)
    goal, given = Block("image", codes=torch.zeros(2, 16, dtype=torch.long)), [prompt_block(checkpoint, PROMPTS)]
    model(given, goal).logsumexp(dim=-1).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad.sign()
    save_janus(checkpoint, tmp_path / "out")
    again = load_janus(tmp_path / "out", text_length=12)
    with torch.no_grad():
        assert torch.equal(model(given, goal), again.model(given, goal))


def test_says_what_janus_has_no_place_for(janus_folder, make_checkpoint, tmp_path):
    checkpoint = load_janus(janus_folder)
    checkpoint.model.targets["image"].add_(1)
    with pytest.raises(UserError, match=r"got trained targets.image. Train with --omni.no-image-places to export"):
        save_janus(checkpoint, tmp_path / "out")
    with pytest.raises(UserError, match="expected a model that began as Janus"):
        save_janus(make_checkpoint(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    checkpoint.model.targets["image"].zero_()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="expected a new or an empty folder"):
        save_janus(checkpoint, tmp_path)


# --- what is no Janus


def copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "janus")
    return tmp_path / "janus"


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(folder, edit):
    tensors = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_says_that_the_folder_is_none_of_janus(janus_folder, tmp_path):
    with pytest.raises(UserError, match="expected a folder of Janus, or a name on the hub"):
        load_janus(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"got none called config.json. Check the path"):
        load_janus(tmp_path)
    folder = copied(janus_folder, tmp_path)
    change(folder / "config.json", model_type="llama")
    with pytest.raises(UserError, match=r"expected a Janus model .*got 'llama'. deepseek-community/Janus-Pro-1B"):
        load_janus(folder)
    change(folder / "config.json", model_type="janus", text_config=3)
    with pytest.raises(UserError, match="expected the settings of a Janus model, got"):
        load_janus(folder)


def test_says_that_settings_are_not_supported(janus_folder, tmp_path):
    folder = copied(janus_folder, tmp_path)
    facts = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", vision_config=facts["vision_config"] | {"depth": 3})
    with pytest.raises(UserError, match=r"vision_config.depth 3 instead of 2. Such a model is not supported"):
        load_janus(folder)


def test_names_every_tensor_that_is_missing_unknown_or_of_another_shape(janus_folder, tmp_path):
    folder = copied(janus_folder, tmp_path)

    def damage(tensors):
        del tensors["model.language_model.norm.weight"]
        tensors["model.extra"] = torch.zeros(2)
        tensors["lm_head.weight"] = torch.zeros(299, 32)

    rewrite(folder, damage)
    with pytest.raises(UserError) as caught:
        load_janus(folder)
    for part in (
        "model.language_model.norm.weight is missing",
        "model.extra is unknown",
        "lm_head.weight has shape [299, 32] instead of [300, 32]",
        "Config and weights are of two models",
    ):
        assert part in str(caught.value)


def test_counts_the_tensors_that_it_does_not_name(janus_folder, tmp_path):
    folder = copied(janus_folder, tmp_path)
    lost = []

    def damage(tensors):
        lost.extend([name for name in tensors if name.startswith("model.vqmodel.")])
        for name in lost:
            del tensors[name]

    rewrite(folder, damage)
    with pytest.raises(UserError, match=rf"is missing; and {len(lost) - 4} more\)"):
        open_janus(folder)


def test_says_that_a_shard_is_missing_or_cut_short(janus_folder, theirs, tmp_path):
    folder = copied(janus_folder, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"got neither. Weights in another format"):
        load_janus(folder)
    theirs.save_pretrained(folder, max_shard_size="100KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{shard.name}: expected weights, got .* cut short"):
        load_janus(folder)
    shard.unlink()
    with pytest.raises(UserError, match=rf"got none called {shard.name}. Was the download cut short"):
        load_janus(folder)
    save_file({"other": torch.zeros(1)}, shard)
    with pytest.raises(UserError, match=r"got none called .* The files are of two models"):
        load_janus(folder)


def test_says_that_special_tokens_or_colours_are_missing(janus_folder, tmp_path):
    folder = copied(janus_folder, tmp_path)
    facts = json.loads((folder / "tokenizer_config.json").read_text())
    change(folder / "tokenizer_config.json", eoi_token="<nothing>")
    with pytest.raises(UserError, match=r"got none for end_of_image. Copy the folder again"):
        load_janus(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="expected image_mean and image_std, three numbers each, got None and None"):
        load_janus(folder)
    shutil.copy(janus_folder / "preprocessor_config.json", folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer.json: expected a saved text tokenizer"):
        load_janus(folder)


def test_says_that_transformers_is_missing(janus_folder, monkeypatch):
    monkeypatch.setattr("brainjanus.tokenizers.vision.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"Janus: expected the package transformers.*brainjanus\[janus\]"):
        load_janus(janus_folder)


def test_pictures_are_encoded_a_few_at_a_time(ours, pixels, monkeypatch):
    image, many = ours.tokenizers.image, torch.cat([pixels, pixels.flip(3), 1 - pixels])
    sizes, whole, encoder = [], image.encode(many), image.vq.encoder
    monkeypatch.setattr("brainjanus.tokenizers.janus.AT_ONCE", 4)
    with encoder.register_forward_pre_hook(lambda _module, given: sizes.append(len(given[0]))):
        assert torch.equal(image.encode(many), whole)
    assert sizes == [4, len(many) - 4]


def test_says_that_a_picture_has_another_size(ours):
    for read in (ours.tokenizers.image.encode, ours.tokenizers.vision):
        with pytest.raises(UserError, match="expected 16 x 16 pixels, as Janus takes them, got 8 x 8"):
            read(torch.zeros(1, 3, 8, 8))
