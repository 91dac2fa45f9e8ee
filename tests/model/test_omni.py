"""The unified model: what each logit may and may not depend on."""

import re
from dataclasses import replace

import pytest
import torch

from brainjanus.core.config import from_dict, to_dict
from brainjanus.core.errors import UserError
from brainjanus.model.omni import OmniConfig, OmniModel, Standardise
from brainjanus.model.sequence import Block, total_length
from brainjanus.tokenizers.vision import wavelet

ROWS = 3
SEEN = wavelet(torch.zeros(1, 3, 8, 8)).shape[1:]  # tokens, channels
TARGETS = ("text", "image", "brain:a", "brain:b")


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint):
    return make_checkpoint()


@pytest.fixture(scope="module")
def model(checkpoint):
    return checkpoint.model


def block(name, rows=ROWS, seed=0):
    """Random content for a target or a condition by name; image is vision features, a brain is latents."""
    generator = torch.Generator().manual_seed(seed)

    def codes(size, length):
        return torch.randint(size, (rows, length), generator=generator)

    return {
        "text": lambda: Block("text", codes=codes(262, 4)),
        "image": lambda: Block("image", codes=codes(6, 4)),
        "features": lambda: Block("image", vectors=torch.rand(rows, *SEEN, generator=generator), features="wavelet"),
        "brain:a": lambda: Block("brain", codes=codes(6, 3), subject="a"),
        "brain:b": lambda: Block("brain", codes=codes(6, 2), subject="b"),
        "latents:a": lambda: Block("brain", vectors=torch.randn(rows, 3, 4, generator=generator), subject="a"),
    }[name]()


def steps(model, conditions, goal, static=False):
    """Logits of each code of a target, step by step."""
    cache = model.start(conditions, ROWS, total_length(conditions, goal.length), goal)
    previous = [None, *goal.codes.T]
    logits = [model.step(cache, goal, 0)]
    if static:
        cache.make_static()
    for position in range(1, goal.length):
        logits.append(model.step(cache, goal, torch.tensor([position]) if static else position, previous[position]))
    filled = int(cache.column) if static else cache.filled
    assert filled == cache.length == total_length(conditions, goal.length)
    return torch.stack(logits, dim=1)


def conditions_for(target):
    names = {"text": ["features", "latents:a"], "image": ["text", "brain:b"], "brain:a": ["features", "text"]}
    return [block(name, seed=1) for name in names.get(target, ["image", "brain:a"])]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("static", [True, False])
def test_logits_step_by_step_are_those_of_one_pass(model, target, conditioned, static):
    conditions, goal = conditions_for(target) if conditioned else [], block(target)
    torch.testing.assert_close(steps(model, conditions, goal, static), model(conditions, goal), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("target", "size"), [("text", 262), ("image", 6), ("brain:a", 6)])
def test_only_codes_of_the_targets_own_codebook_are_predicted(model, target, size):
    assert model(conditions_for(target), block(target)).shape[-1] == size


@pytest.mark.parametrize("target", TARGETS)
def test_a_code_changes_only_logits_behind_it(model, target):
    conditions, goal = conditions_for(target), block(target)
    before = model(conditions, goal)
    for position in range(goal.length):
        codes = goal.codes.clone()
        codes[:, position] = (codes[:, position] + 1) % 6
        moved = (model(conditions, replace(goal, codes=codes)) - before).abs().amax(dim=-1) > 1e-4
        assert not moved[:, : position + 1].any()
        assert moved[:, position + 1 :].all()


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_hidden_is_hidden_nowhere(model, target):
    conditions, goal = conditions_for(target), block(target)
    nowhere = torch.zeros(ROWS, goal.length, dtype=torch.bool)
    torch.testing.assert_close(model(conditions, goal, nowhere), model(conditions, goal))


@pytest.mark.parametrize("target", TARGETS)
def test_a_hidden_target_is_predicted_without_its_codes(model, target):
    conditions, goal = conditions_for(target), block(target)
    hidden = torch.ones(ROWS, goal.length, dtype=torch.bool)
    hidden[0] = False
    one, other = model(conditions, goal, hidden), model(conditions, block(target, seed=9), hidden)
    torch.testing.assert_close(one[1:], other[1:])
    assert not torch.allclose(one[0], other[0])


def test_a_single_code_may_be_hidden(model):
    conditions, goal = conditions_for("image"), block("image")
    hidden = torch.zeros(ROWS, 4, dtype=torch.bool)
    hidden[:, 1] = True
    before = model(conditions, goal, hidden)
    for position, seen in ((0, True), (1, False), (2, True)):
        codes = goal.codes.clone()
        codes[:, position] = (codes[:, position] + 1) % 6
        after = model(conditions, replace(goal, codes=codes), hidden)
        assert torch.allclose(before, after, atol=1e-5) != seen


@pytest.mark.parametrize("name", ["text", "image", "features", "brain:b", "latents:a"])
def test_dropped_rows_do_not_show_their_content(model, name):
    target = "brain:a" if name != "latents:a" else "image"
    dropped = torch.tensor([True, False, True])
    one, other = (replace(block(name, seed=s), dropped=dropped) for s in (1, 2))
    before, after = model([one], block(target)), model([other], block(target))
    torch.testing.assert_close(before[dropped], after[dropped])
    assert not torch.allclose(before[~dropped], after[~dropped])
    plain = model([block(name, seed=1)], block(target))
    torch.testing.assert_close(before[~dropped], plain[~dropped])
    assert not torch.allclose(before[dropped], plain[dropped])


@pytest.mark.parametrize("name", ["text", "image", "features", "brain:b"])
def test_every_condition_is_seen(model, name):
    goal = block("brain:a")
    assert not torch.allclose(model([block(name, seed=1)], goal), model([block(name, seed=2)], goal))
    assert not torch.allclose(model([block(name, seed=1)], goal), model([], goal))


def test_a_row_does_not_depend_on_its_neighbours(model):
    conditions, goal = conditions_for("brain:a"), block("brain:a")
    features, text = conditions
    alone = [replace(features, vectors=features.vectors[1:2]), replace(text, codes=text.codes[1:2])]
    single = model(alone, replace(goal, codes=goal.codes[1:2]))
    torch.testing.assert_close(model(conditions, goal)[1:2], single, atol=1e-4, rtol=1e-4)


def test_every_position_is_a_place(make_checkpoint):
    """With the same code everywhere and hidden neighbours, places of a target still differ; text has none."""
    model = make_checkpoint().model
    hidden = torch.ones(1, 4, dtype=torch.bool)
    for name in ("image", "text"):
        target = block(name, rows=1)
        embedded = model.embed_target(target, hidden)
        assert torch.allclose(embedded[:, 1], embedded[:, 2]) == (name == "text")
    same = Block("image", codes=torch.zeros(1, 4, dtype=torch.long))
    rest = model.embed_content(same)[0] - model.places["image"]
    torch.testing.assert_close(rest, rest[:1].expand_as(rest))


def test_subjects_are_opened_by_tokens_of_their_own(make_checkpoint):
    model = make_checkpoint().model
    model.targets["brain:b"].copy_(model.targets["brain:a"][:2])
    a, b = (Block("brain", codes=torch.zeros(1, 2, dtype=torch.long), subject=s) for s in "ab")
    model.targets["brain:a"] = model.targets["brain:a"][:2]
    assert not torch.allclose(model([], a), model([], b))


def test_codes_enter_as_their_codebook_vectors(checkpoint, model):
    codes = block("brain:a")
    vectors = checkpoint.tokenizers.brain.quantizer.codebook[codes.codes]
    goal = block("image")
    torch.testing.assert_close(model([codes], goal), model([Block("brain", vectors=vectors, subject="a")], goal))


def test_features_are_standardised_as_in_the_training_split(make_checkpoint):
    model = make_checkpoint().model
    goal, features = block("brain:a"), block("features")
    values = torch.randn(7, *SEEN, generator=torch.Generator().manual_seed(3)) * 4 + 9
    unit = (features.vectors - values.mean((0, 1))) / values.flatten(0, 1).std(0)
    expected = model([replace(features, vectors=unit)], goal)
    model.load_feature_statistics({"wavelet": values})
    torch.testing.assert_close(model([features], goal), expected, atol=1e-4, rtol=1e-4)


def test_a_constant_channel_is_no_division_by_zero():
    standardise = Standardise(2)
    standardise.load(torch.tensor([[[1.0, 5.0], [3.0, 5.0]]]))
    assert torch.isfinite(standardise(torch.tensor([[[2.0, 5.0]]]))).all()


def test_says_what_is_wrong(model):
    with pytest.raises(UserError, match=r"features 'clip': expected those the model was trained on \(wavelet\)"):
        model([Block("image", vectors=torch.zeros(3, *SEEN), features="clip")], block("brain:a"))
    with pytest.raises(UserError, match="text codes: expected ids in"):
        model([Block("text", codes=torch.full((3, 2), 262))], block("brain:a"))
    with pytest.raises(UserError, match="brain_input: expected sites, latents or codes, got 'voxels'"):
        OmniConfig(brain_input="voxels")


def test_a_brain_that_enters_by_its_sites_is_read_place_by_place(make_checkpoint):
    checkpoint = make_checkpoint(brain_input="sites")
    model, patches = checkpoint.model, torch.randn(1, 3, 4)
    embedded = model.embed_content(Block("brain", vectors=patches, subject="a"))
    expected = torch.einsum("bkp,kpd->bkd", patches, model.read_sites["brain:a"]) + model.places["brain:a"]
    torch.testing.assert_close(embedded, expected)
    goal = block("image", rows=1)
    before = model([Block("brain", vectors=patches, subject="a")], goal)
    patches[0, 1, 2] += 1
    assert not torch.allclose(before, model([Block("brain", vectors=patches, subject="a")], goal), atol=1e-3)


def test_a_brain_that_is_predicted_enters_by_its_codes(make_checkpoint):
    """The codes before a code are what sampling has; the patches it has not."""
    model = make_checkpoint(brain_input="sites").model
    goal = block("brain:a")
    torch.testing.assert_close(steps(model, [block("text")], goal), model([block("text")], goal), atol=1e-4, rtol=1e-4)


# --- brains whose patches have several codes (residual quantizers)

INPUTS = ("sites", "latents", "codes")


@pytest.fixture(scope="module")
def staged(make_checkpoint):
    """Two stages of six codes: subject a has 3 patches and 6 codes; ids 0-5 at even places, 6-11 at odd ones."""
    return {how: make_checkpoint(brain_input=how, stages=2) for how in INPUTS}


def staged_codes(length, seed=0):
    codes = torch.randint(6, (ROWS, length), generator=torch.Generator().manual_seed(seed))
    return codes + 6 * (torch.arange(length) % 2)


def shown(how, seed=0):
    """A response of subject a as a condition."""
    if how == "codes":
        return Block("brain", codes=staged_codes(6, seed), subject="a")
    vectors = torch.randn(ROWS, 3, 4, generator=torch.Generator().manual_seed(seed))  # 4 sites, 4 numbers of a latent
    return Block("brain", vectors=vectors, subject="a")


def test_a_patch_has_a_code_of_each_stage(staged):
    interface = staged["sites"].model.interface
    assert (interface.brain_stages, interface.vocabulary.brain) == (2, 12)
    assert interface.brain_codes == {"a": 6, "b": 4}
    model = staged["sites"].model
    assert model.read_sites["brain:a"].shape == (3, 4, 32)  # one a patch
    assert len(model.places["brain:a"]) == len(model.targets["brain:a"]) == len(model.read["brain:a"]) == 6


@pytest.mark.parametrize("hidden", [False, True])
def test_codes_of_another_stage_are_never_likely(staged, hidden):
    goal = Block("brain", codes=staged_codes(4), subject="b")
    mask = torch.ones(ROWS, 4, dtype=torch.bool) if hidden else None
    logits = staged["sites"].model([shown("sites")], goal, mask)
    p = logits.softmax(dim=-1).unflatten(2, (2, 6))  # rows, places, stages, codes
    assert (p[:, 0::2, 0] > 0).all() and (p[:, 1::2, 1] > 0).all()
    assert not p[:, 0::2, 1].any() and not p[:, 1::2, 0].any()
    guided = (logits + 3 * (logits - logits.flip(0))).softmax(dim=-1).unflatten(2, (2, 6))
    assert not guided[:, 0::2, 1].any() and torch.isfinite(guided).all()


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("how", INPUTS)
def test_logits_of_stages_step_by_step_are_those_of_one_pass(staged, how, static):
    model, goal = staged[how].model, Block("brain", codes=staged_codes(4), subject="b")
    torch.testing.assert_close(
        steps(model, [shown(how)], goal, static), model([shown(how)], goal), atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(model([shown(how)], goal), model([shown(how, seed=1)], goal))


@pytest.mark.parametrize("how", INPUTS)
def test_a_patch_stands_where_its_first_code_does(staged, how):
    model, block = staged[how].model, shown(how)
    places, read = model.places["brain:a"], model.read["brain:a"]
    wanted = {
        "sites": lambda: torch.einsum("bkp,kpd->bkd", block.vectors, model.read_sites["brain:a"]) + places[::2],
        "latents": lambda: (
            model.aligners["brain"](block.vectors)
            + torch.einsum("bke,ked->bkd", block.vectors, read[::2])
            + places[::2]
        ),
        "codes": lambda: (
            model.aligners["brain"](model.brain_codebook[block.codes])
            + torch.einsum("bke,ked->bkd", model.brain_codebook[block.codes], read)
            + places
        ),
    }[how]()
    torch.testing.assert_close(model.embed_content(block), wanted)


def test_dropped_patches_do_not_show_their_content(staged):
    model, goal = staged["sites"].model, Block("brain", codes=staged_codes(4), subject="b")
    one, other = (model([shown("sites", seed).withheld()], goal) for seed in (0, 1))
    torch.testing.assert_close(one, other)


# --- what Janus has otherwise


def reformed(checkpoint, **settings) -> OmniModel:
    """The same interface with another config, with decided opinions."""
    torch.manual_seed(2)
    model = OmniModel(replace(checkpoint.model.config, **settings), checkpoint.model.interface)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


def test_a_text_may_stand_without_an_opening_token(checkpoint):
    text = Block("text", codes=torch.tensor([[3, 4, 5]]))
    with_it, without = (
        reformed(checkpoint, text_opening=opens).embed_conditions([text], 1).x for opens in (True, False)
    )
    assert (with_it.shape[1], without.shape[1]) == (5, 4)
    assert torch.equal(torch.cat([with_it[:, :1], with_it[:, 2:]], dim=1), without)


def test_how_long_a_withheld_text_is_does_not_show(checkpoint):
    model = reformed(checkpoint)
    codes, target = (
        torch.tensor([[3, 4, 5, 0], [3, 0, 0, 0]]),
        Block("image", codes=torch.zeros(2, 4, dtype=torch.long)),
    )
    seen = torch.tensor([[True] * 4, [True, True, False, False]])
    shown = Block("text", codes=codes, seen=seen)
    given, withheld = model([shown], target), model([shown.withheld()], target)
    torch.testing.assert_close(withheld[0], withheld[1])
    assert not torch.allclose(given[0], given[1])
    padded = reformed(checkpoint, text_opening=False)([shown.withheld()], target)  # Janus: as many pads as it has codes
    assert not torch.allclose(padded[0], padded[1])


def test_pictures_may_have_two_layers_and_no_places(checkpoint):
    model = OmniModel(
        replace(checkpoint.model.config, image_head="mlp", image_places=False), checkpoint.model.interface
    )
    assert "image" not in model.places and "image" not in model.targets and "image" not in model.pointers
    target = Block("image", codes=torch.zeros(2, 4, dtype=torch.long))
    assert not model([], target).any(), "no code is likelier before training"
    loss = torch.nn.functional.cross_entropy(model([], target).flatten(0, 1), target.codes.flatten())
    loss.backward()
    assert model.heads["image"][2].weight.grad.any(), "the last layer starts at zero, and learns at once"


def test_control_tokens_may_be_pieces_of_text(checkpoint):
    interface = replace(checkpoint.model.interface, controls={"begin": 7})
    model = OmniModel(checkpoint.model.config, interface)
    start = model.vocabulary.range("text").start
    assert torch.equal(model.embed_control("begin", 1)[0, 0], model.embed_tokens.weight[start + 7])
    own = model.vocabulary.control("hidden")
    assert torch.equal(model.embed_control("hidden", 1)[0, 0], model.embed_tokens.weight[own])


def test_names_of_features_may_be_paths(checkpoint):
    name = "transformers:/models/vit.tiny@16"
    config = replace(checkpoint.model.config, image_input=name)
    model = OmniModel(config, replace(checkpoint.model.interface, features={name: (4, 5)}))
    model.load_feature_statistics({name: torch.randn(6, 4, 5)})
    block = Block("image", vectors=torch.randn(2, 4, 5), features=name)
    assert model.embed_content(block).shape == (2, 4, config.decoder.hidden_size)
    with pytest.raises(UserError, match=re.escape(f"expected those the model was trained on ({name})")):
        model.embed_content(replace(block, features="other"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"image_head": "deep"}, "expected one of 'linear', 'mlp', got 'deep'"),
     ({"entry_scale": 0.0}, "entry_scale: expected a number above 0, got 0.0")],
)  # fmt: skip
def test_says_what_is_wrong_with_the_config(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        from_dict(OmniConfig, to_dict(OmniConfig()) | settings)


def test_what_enters_starts_at_the_scale_that_is_wanted(checkpoint):
    """A tenth of the usual scale enters from everywhere: the decoder that it enters into is used to that."""
    usual, small = (
        OmniModel(replace(checkpoint.model.config, entry_scale=scale, brain_input="sites"), checkpoint.model.interface)
        for scale in (0.5, 0.05)
    )
    for name in ("aligners.brain.2.weight", "aligners.image.2.weight", "read_sites.brain:a", "places.brain:a"):
        one, other = (float(model.get_parameter(name).detach().std()) for model in (usual, small))
        assert other == pytest.approx(one / 10, rel=0.3), name
    assert float(small.aligners["brain"][0].weight.detach().std()) == pytest.approx(1.0, rel=0.3)


# --- sight, and what a draft leans to


@pytest.fixture(scope="module")
def sighted(model):
    """The same, whose brains look at the picture through windows."""
    made = OmniModel(replace(model.config, sight=True), model.interface)
    made.load_state_dict(model.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(2)
    for window in made.sight.values():
        torch.nn.init.normal_(window, generator=generator)
    return made.requires_grad_(False)


@pytest.mark.parametrize("static", [True, False])
def test_what_places_see_is_the_same_step_by_step(sighted, model, static):
    conditions, goal = conditions_for("brain:a"), block("brain:a")
    whole = sighted(conditions, goal)
    torch.testing.assert_close(steps(sighted, conditions, goal, static), whole, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(whole, model(conditions, goal))


def test_a_place_sees_through_its_window_only(sighted):
    shown, goal = block("features"), block("brain:a")
    with torch.no_grad():
        sighted.sight["brain:a"].zero_()
        sighted.sight["brain:a"][1, 3] = 1.0
        seen = sighted.sighted(sighted.embed_conditions([shown], ROWS), goal)
        content = sighted.embed_vectors(shown, slice(0, shown.length))
    torch.testing.assert_close(seen[:, 1], content[:, 3])
    assert not seen[:, [0, 2]].any()


def test_what_is_withheld_is_not_seen(sighted):
    shown = replace(block("features"), dropped=torch.tensor([True, False, False]))
    seen = sighted.sighted(sighted.embed_conditions([shown], ROWS), block("brain:a"))
    assert not seen[0].any() and seen[1].any()
    assert sighted.sighted(sighted.embed_conditions([shown], ROWS), block("text")) is None
    assert sighted.sighted(sighted.embed_conditions([block("text")], ROWS), block("brain:a")) is None


def test_sight_needs_features(model):
    with pytest.raises(UserError, match="sight: expected pictures that are read as features, got 'codes'"):
        OmniModel(replace(model.config, sight=True, image_input="codes"), model.interface)


def test_what_a_draft_leans_to_is_added_to_the_logits(model):
    conditions, goal = conditions_for("brain:a"), block("brain:a")
    lean = torch.randn(ROWS, goal.length, 6, generator=torch.Generator().manual_seed(3))
    leaning = replace(goal, lean=lean)
    torch.testing.assert_close(model(conditions, leaning), model(conditions, goal) + lean)
    torch.testing.assert_close(steps(model, conditions, leaning), model(conditions, leaning), atol=1e-4, rtol=1e-4)


def test_features_are_left_out_after_they_are_standardised(model):
    shown = block("features")
    nothing = replace(shown, kept=torch.zeros_like(shown.vectors))
    standardise = model.aligners["features:wavelet"].get_submodule("0")
    usual = replace(shown, vectors=standardise.mean.expand_as(shown.vectors))
    places = slice(0, shown.length)
    torch.testing.assert_close(model.embed_vectors(nothing, places), model.embed_vectors(usual, places))
