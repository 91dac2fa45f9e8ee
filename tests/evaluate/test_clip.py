import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainjanus.core.errors import UserError
from brainjanus.evaluate.captions import CaptionScorer
from brainjanus.evaluate.clip import MEAN, STD, ClipModel, clip_s, ref_clip_s

RNG = np.random.default_rng(0)


def units(n: int) -> np.ndarray:
    vectors = RNG.standard_normal((n, 5)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_clip_s_and_ref_clip_s_are_those_of_their_formulas():
    pictures, said, references = units(6), units(6), [units(k) for k in (1, 2, 3, 4, 5, 5)]
    for i in range(6):
        image = 2.5 * max(float(pictures[i] @ said[i]), 0)
        text = max(0.0, *(float(reference @ said[i]) for reference in references[i]))
        assert clip_s(pictures, said)[i] == pytest.approx(image, abs=1e-6)
        expected = 2 / (1 / image + 1 / text) if image and text else 0
        assert ref_clip_s(pictures, said, references)[i] == pytest.approx(expected, abs=1e-6)


def test_nothing_in_common_scores_zero():
    one = np.eye(3, dtype=np.float32)
    assert clip_s(one[:1], -one[:1]).tolist() == [0]
    assert ref_clip_s(one[:1], one[1:2], [one[2:3]]).tolist() == [0]
    assert ref_clip_s(one[:1], one[:1], [-one[:1]]).tolist() == [0]
    assert ref_clip_s(one[:1], one[:1], [one[:1]]).tolist() == [pytest.approx(2 * 2.5 / 3.5)]


def test_an_absent_folder_is_not_looked_for_on_the_hub(tmp_path):
    pytest.importorskip("transformers", reason="an optional library")
    with pytest.raises(UserError, match=r"expected a folder with a model in the form of transformers, got '.*nowhere'"):
        ClipModel.load(tmp_path / "nowhere")


def test_a_folder_of_something_else_is_refused(tmp_path):
    pytest.importorskip("transformers", reason="an optional library")
    with pytest.raises(UserError, match=r"CLIP: expected a model in the form of transformers \(config.json"):
        ClipModel.load(tmp_path)


def test_without_transformers_the_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'brainjanus\[vision-metrics\]'"):
        ClipModel.load(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights whose words are single letters."""
    transformers = pytest.importorskip("transformers", reason="an optional library")
    import torch

    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    folder.mkdir()
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: code for code, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {
        "vocab_size": len(tokens), "max_position_embeddings": 24, "bos_token_id": len(tokens) - 2,
        "eos_token_id": len(tokens) - 1,
    }  # fmt: skip
    vision = small | {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder) -> ClipModel:
    return ClipModel.load(folder)


def test_pictures_are_prepared_as_openai_does(folder, clip):
    import torch

    pictures = RNG.integers(0, 256, (3, 50, 41, 3), dtype=np.uint8)
    prepared = []
    for picture in pictures:
        image = Image.fromarray(picture).resize((32, int(32 * 50 / 41)), Image.Resampling.BICUBIC)
        top = round((image.height - 32) / 2.0)
        prepared.append((np.asarray(image)[top : top + 32] / 255 - MEAN) / STD)
    pixels = torch.tensor(np.stack(prepared), dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        pooled = clip._model.vision_model(pixel_values=pixels).pooler_output
        expected = clip._model.visual_projection(pooled).numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = clip.embed_pictures(pictures)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_captions_and_pictures_agree_with_the_forward_pass(folder, clip):
    import torch
    import transformers

    captions = ["a dog", "cats on a boat"]
    inputs = transformers.CLIPTokenizer.from_pretrained(folder)(captions, return_tensors="pt", padding=True)
    pictures = RNG.random((2, 3, 32, 32)).astype(np.float32)  # of the right size: nothing is resized
    pixels = (torch.from_numpy(pictures) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        out = clip._model(**inputs, pixel_values=pixels)
    np.testing.assert_allclose(clip.embed_captions(captions), out.text_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(clip.embed_resized(pictures), out.image_embeds.numpy(), atol=1e-5)


def test_tensors_are_resized_bilinear_with_antialiasing(clip):
    import torch

    pictures = RNG.random((2, 3, 64, 64)).astype(np.float32)
    small = torch.nn.functional.interpolate(torch.from_numpy(pictures), (32, 32), mode="bilinear", antialias=True)
    np.testing.assert_allclose(clip.embed_resized(pictures), clip.embed_resized(small.numpy()), atol=1e-6)


def test_a_caption_does_not_depend_on_its_neighbours_and_a_long_one_is_cut(clip):
    together = clip.embed_captions(["a dog", "x" * 10_000, "", "日本\n"])
    np.testing.assert_allclose(together[:1], clip.embed_captions(["a dog"]), atol=1e-5)
    assert np.isfinite(together).all()


def test_the_scores_stand_among_the_caption_scores(clip):
    references, said = [["a dog", "dogs"], ["a cat"], ["boats", "a boat"]], ["dog", "cat", "a boat"]
    pictures = RNG.integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    with CaptionScorer(references, metrics=["clip_s", "ref_clip_s"], clip=clip, pictures=pictures) as scorer:
        scored, human = scorer.score(said), scorer.human()
    seen, texts = clip.embed_pictures(pictures), clip.embed_captions(["A photo depicts " + caption for caption in said])
    meant = [clip.embed_captions(["A photo depicts " + caption for caption in group]) for group in references]
    np.testing.assert_allclose(scored.scores["clip_s"].samples, clip_s(seen, texts), atol=1e-5)
    np.testing.assert_allclose(scored.scores["ref_clip_s"].samples, ref_clip_s(seen, texts, meant), atol=1e-5)
    assert scored.definition["clip_s"].startswith(
        "CLIP-S, 2.5 max(cos, 0), 'A photo depicts ', CLIP tiny-clip (2 layers"
    )
    assert human.rows.tolist() == [0, 2]
    first = clip_s(seen[[0, 2]], np.stack([meant[0][0], meant[2][0]]))
    np.testing.assert_allclose(human.scores["clip_s"].samples, first, atol=1e-5)


def test_without_pictures_the_sentence_says_so(clip):
    with CaptionScorer([["a"]], metrics=["clip_s"], clip=clip) as scorer:
        assert "no pictures were given" in scorer.score(["a"]).skipped["clip_s"]


def test_weights_of_another_model_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("text_projection.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"got none for 'text_projection.weight'"):
        ClipModel.load(tmp_path)
