"""The brain tokenizer: every encoder with every quantizer, there and back."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from brainjanus.core.config import from_dict, to_dict
from brainjanus.core.errors import UserError
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig, form_of, published
from brainjanus.tokenizers.conv import PaperConfig
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig

QUANTIZERS = {
    "cosine": QuantizerConfig(num_codes=8, dim=5),
    "euclidean": QuantizerConfig(similarity="euclidean", num_codes=8, dim=3),
    "residual": QuantizerConfig("residual", num_codes=8, dim=3, stages=2),
    "fsq": QuantizerConfig("fsq", num_codes=16),
}
ORDERS = {"a": torch.randperm(10, generator=torch.Generator().manual_seed(0)), "b": torch.arange(7).flip(0)}


def values(sites, rows=3, seed=1):
    return torch.randn(rows, sites, generator=torch.Generator().manual_seed(seed))


def make(encoder="patch", quantizer="euclidean", orders=ORDERS):
    """Four sites a patch; solved on random responses, everything else as if trained."""
    torch.manual_seed(0)
    config = BrainTokenizerConfig(
        encoder,
        4,
        PatchConfig(width=8, depth=1, heads=2),
        PaperConfig(4, (1, 1, 2), 1, 6),
        QUANTIZERS[quantizer],
    )
    tokenizer = BrainTokenizer(config, orders)
    for subject, order in orders.items():
        tokenizer.solve(subject, values(len(order), 50), values(len(order), 0))
    for name, parameter in tokenizer.named_parameters():
        if parameter.dim() >= 2 and encoder == "patch":
            nn.init.normal_(parameter, std=0.3 if "to_latent" not in name else 0.05)
    return tokenizer.eval()


@pytest.fixture(scope="module", params=[(e, q) for e in ("patch", "paper") for q in QUANTIZERS], ids="-".join)
def tokenizer(request):
    return make(*request.param).requires_grad_(False)


# --- every encoder with every quantizer


@pytest.mark.parametrize(("subject", "sites", "patches"), [("a", 10, 3), ("b", 7, 2)])
def test_a_response_becomes_codes_of_its_patches_and_a_response(tokenizer, subject, sites, patches):
    stages = tokenizer.config.quantizer.stages
    assert tokenizer.subjects == ("a", "b")
    assert (tokenizer.num_sites(subject), tokenizer.num_patches(subject)) == (sites, patches)
    assert tokenizer.num_codes(subject) == patches * stages
    codes = tokenizer.encode(values(sites), subject)
    assert codes.shape == (3, patches * stages)
    assert int(codes.min()) >= 0 and int(codes.max()) < tokenizer.config.quantizer.num_entries
    assert tokenizer.decode(codes, subject).shape == (3, sites)
    assert len(tokenizer.encode(values(sites, 200), subject).unique(dim=0)) > 1


def test_forward_is_encode_and_decode(tokenizer):
    x = values(10)
    out = tokenizer(x, "a")
    assert torch.equal(out.quantized.codes, tokenizer.encode(x, "a"))
    torch.testing.assert_close(out.values, tokenizer.decode(out.quantized.codes, "a"), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.latents, tokenizer.latents(x, "a"))
    encoded = tokenizer.coder.encode(tokenizer.patches(x, "a"), "a")
    torch.testing.assert_close(out.latents, tokenizer.quantizer.prepare(encoded))
    torch.testing.assert_close(out.quantized.values, tokenizer.quantizer(out.latents).values)
    assert torch.equal(tokenizer.quantizer(out.latents).codes, out.quantized.codes)  # latents may be stored


def test_certain_distributions_decode_to_their_codes(tokenizer):
    codes, size = tokenizer.encode(values(10), "a"), tokenizer.config.quantizer.num_entries
    certain = nn.functional.one_hot(codes, size).float()
    torch.testing.assert_close(
        tokenizer.decode_probabilities(certain, "a"), tokenizer.decode(codes, "a"), atol=1e-5, rtol=1e-4
    )
    mixed = tokenizer.decode_probabilities(certain.mean(dim=0, keepdim=True), "a")
    vectors = tokenizer.quantizer.codebook[codes].mean(dim=0, keepdim=True)
    torch.testing.assert_close(mixed, tokenizer.decode_vectors(vectors, "a"), atol=1e-5, rtol=1e-4)
    summed = vectors.unflatten(1, (3, -1)).sum(dim=2)  # stages of a patch stand behind each other
    torch.testing.assert_close(mixed, tokenizer.decode_latents(summed, "a"), atol=1e-5, rtol=1e-4)


def test_bits_are_those_of_all_codes(tokenizer):
    quantizer = tokenizer.config.quantizer
    each = {"cosine": 3, "euclidean": 3, "residual": 6, "fsq": 4}
    kind = quantizer.similarity if quantizer.kind == "vq" else quantizer.kind
    assert tokenizer.bits("a") == 3 * each[kind] and tokenizer.bits("b") == 2 * each[kind]
    assert tokenizer.bits("a") == tokenizer.num_codes("a") * math.log2(quantizer.num_codes)


def test_the_work_of_a_response_is_that_of_its_encoder(tokenizer):
    assert tokenizer.flops("a") == tokenizer.coder.flops(3, 4) > tokenizer.flops("b") > 0


def test_config_is_written_and_read(tokenizer):
    assert from_dict(BrainTokenizerConfig, to_dict(tokenizer.config)) == tokenizer.config


def test_a_row_does_not_depend_on_its_neighbours(tokenizer):
    x = values(10)
    torch.testing.assert_close(tokenizer.latents(x, "a")[1:2], tokenizer.latents(x[1:2], "a"), atol=1e-5, rtol=1e-4)


# --- sites


@pytest.mark.parametrize("encoder", ["patch", "paper"])
def test_patches_are_cut_in_cortical_order_but_the_published_encoders(encoder):
    tokenizer = make(encoder)
    order = ORDERS["a"] if encoder == "patch" else torch.arange(10)
    x = values(10)
    patches = tokenizer.patches(x, "a")
    assert torch.equal(patches.flatten(1)[:, :10], x[:, order])
    assert torch.equal(patches.flatten(1)[:, 10:], torch.zeros(3, 2))
    assert torch.equal(tokenizer.site_patch("a")[order], torch.arange(10) // 4)


def test_what_a_subject_is_called_and_how_its_sites_are_numbered_does_not_matter():
    """The same brain with its sites shuffled has the same codes, and its reconstruction comes back shuffled."""
    again = torch.randperm(10, generator=torch.Generator().manual_seed(5))
    place = torch.argsort(again)  # where each site has gone to
    plain, shuffled = make(), make(orders={"a": place[ORDERS["a"]], "b": ORDERS["b"]})
    for tokenizer, x in ((plain, values(10, 50)), (shuffled, values(10, 50)[:, again])):
        tokenizer.solve("a", x, values(10, 0))
    x = values(10, seed=2)
    codes = plain.encode(x, "a")
    assert torch.equal(codes, shuffled.encode(x[:, again], "a"))
    torch.testing.assert_close(plain.decode(codes, "a")[:, again], shuffled.decode(codes, "a"))


def test_subjects_may_be_called_what_a_module_has():
    names = ("train", "type", "values", "items")
    tokenizer = make(orders=dict.fromkeys(names, ORDERS["a"]))
    assert tokenizer.subjects == names
    assert (tokenizer.num_sites("items"), tokenizer.num_codes("train")) == (10, 3)
    assert tokenizer.encode(values(10), "values").shape == (3, 3)


# --- what is solved and what is learnt


def low_rank(rows, seed=0):
    """Responses of three independent parts; what differs between two of them is the seed alone."""
    ways = torch.randn(3, 10, generator=torch.Generator().manual_seed(9))
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed)) @ ways


def untrained(quantizer="euclidean", **settings):
    config = BrainTokenizerConfig(patch_size=4, patch=PatchConfig(8, 1, 2), quantizer=QUANTIZERS[quantizer])
    return BrainTokenizer(replace(config, **settings), ORDERS).eval().requires_grad_(False)


@pytest.mark.parametrize("quantizer", ["cosine", "euclidean", "residual"])
def test_before_training_the_latents_tell_all_of_a_response_of_low_rank(quantizer):
    """Also of responses that were not there when the axes were solved for."""
    tokenizer = untrained(quantizer)
    tokenizer.solve("a", low_rank(60), values(10, 0))
    new = low_rank(20, seed=1)
    latents = tokenizer.coder.encode(tokenizer.patches(new, "a"), "a")
    torch.testing.assert_close(tokenizer.decode_latents(latents, "a"), new, atol=1e-3, rtol=1e-3)
    assert tokenizer.coder.constant == (quantizer == "cosine")


def test_solving_leaves_other_subjects_and_what_is_trained_as_they_are():
    tokenizer = make()
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    tokenizer.solve("b", values(7, 40, seed=3), values(7, 0))
    changed = {name for name, value in tokenizer.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"coder.maps.brain:b.{name}" for name in ("principal", "turn", "back", "scale")}


def test_noise_is_deducted_where_repeats_tell_of_it():
    tokenizer = untrained()
    noise = torch.zeros(200, 10)
    noise[:, 2] = 5 * torch.randn(200, generator=torch.Generator().manual_seed(2))
    signal = low_rank(200)
    signal[:, 2] = 0
    written = {}
    for share in (0.0, 1.0):
        tokenizer.solve("a", signal + noise, noise, share)
        latents = tokenizer.coder.encode(tokenizer.patches(signal + noise, "a"), "a")
        written[share] = tokenizer.decode_latents(latents, "a")
    assert written[1.0][:, 2].std() < 0.5 < 3 < written[0.0][:, 2].std()
    assert (written[1.0] - signal).square().mean() < 0.1 * (written[0.0] - signal).square().mean()


def test_the_published_encoder_has_nothing_to_solve():
    tokenizer = make("paper")
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    tokenizer.solve("a", values(10, 20), values(10, 0))
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    assert not list(tokenizer.of_subject("a").parameters())


@pytest.mark.parametrize(("encoder", "reached"), [("patch", False), ("paper", True)])
@pytest.mark.parametrize("quantizer", ["cosine", "euclidean", "fsq"])
def test_distortion_reaches_the_published_encoder_alone(encoder, reached, quantizer):
    """What patches read is solved for; the commitment reaches both."""
    tokenizer = make(encoder, quantizer)
    out = tokenizer(values(10), "a")
    first = tokenizer.coder.to_latent if encoder == "patch" else tokenizer.coder.encoder[0]
    (distortion,) = torch.autograd.grad(out.values.square().sum(), first.weight, retain_graph=True, allow_unused=True)
    assert (distortion is not None and bool(distortion.any())) == reached
    (latents,) = torch.autograd.grad(out.latents.square().sum(), first.weight, retain_graph=True)
    assert latents.any() or quantizer == "cosine"
    if quantizer != "fsq":
        (commitment,) = torch.autograd.grad(out.quantized.loss, first.weight)
        assert commitment.any()


def test_distortion_reaches_what_decodes():
    tokenizer = make()
    tokenizer(values(10), "a").values.square().sum().backward()
    reached = {name for name, p in tokenizer.coder.named_parameters() if p.grad is not None and p.grad.any()}
    own = {f"maps.brain:a.{name}" for name in ("out", "bias", "position")}
    assert {name.split(".")[0] for name in reached - own} == {"from_latent", "decoder"} and own <= reached


# --- configs


def test_the_published_tokenizer_has_the_published_numbers():
    """Table 6 of the paper; 15,724 sites become 246 codes of 7 bits."""
    config = published()
    assert config.paper == PaperConfig(64, (1, 2, 2, 2, 4, 4, 4), 2, 512)
    quantizer = config.quantizer
    assert (config.encoder, config.patch_size, quantizer.num_codes, quantizer.dim) == ("paper", 64, 128, 32)
    assert (quantizer.kind, quantizer.commitment * quantizer.dim) == ("vq", 0.25) and quantizer.entropy > 0
    tokenizer = BrainTokenizer(config, {"subj01": torch.arange(15_724).flip(0)})
    assert (tokenizer.num_codes("subj01"), tokenizer.bits("subj01")) == (246, 246 * 7)
    assert torch.equal(tokenizer.sites_of("subj01").order, torch.arange(15_724))


def test_the_default_is_three_numbers_a_patch_told_apart_by_distance():
    config = BrainTokenizerConfig()
    assert (config.encoder, config.patch.reach) == ("patch", "cortex")
    assert (config.quantizer.kind, config.quantizer.similarity, config.quantizer.dim) == ("vq", "euclidean", 3)


def test_the_form_of_latents_follows_from_the_quantizer():
    forms = {name: form_of(quantizer) for name, quantizer in QUANTIZERS.items()}
    assert {name for name, form in forms.items() if form.constant} == {"cosine"}
    assert {name for name, form in forms.items() if form.each} == {"fsq"}
    assert forms["residual"] == forms["euclidean"] and forms["residual"].units == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"quantizer": QuantizerConfig(dim=1)}, r"quantizer.dim must be at least 2 with cosine similarity, .* got 1\."),
        ({"encoder": "paper"}, "patch_size must be 64, as the 7 levels of the paper encoder make it, got 32"),
        (
            {"encoder": "paper", "patch_size": 0, "paper": PaperConfig(multipliers=(1, 2))},
            "at least 1, got 0; patch_size must be 2, as the 2 levels .* got 0. Correct the config",
        ),
    ],
)
def test_says_what_is_wrong_with_a_config(settings, message):
    with pytest.raises(UserError, match=message):
        BrainTokenizerConfig(**settings)


def test_says_which_encoders_there_are():
    config = BrainTokenizerConfig()
    object.__setattr__(config, "encoder", "linear")  # where types are checked, as here, nothing else passes
    with pytest.raises(UserError, match="encoder must be one of patch, paper, got 'linear'"):
        config.__post_init__()


@pytest.mark.parametrize("encoder", ["patch", "paper"])
def test_says_what_is_wrong(encoder):
    tokenizer = make(encoder)
    with pytest.raises(UserError, match=r"response: expected 10 sites, got 7. Was it made with another mask\?"):
        tokenizer.encode(values(7), "a")
    for ask in (
        lambda: tokenizer.encode(values(7), "c"),
        lambda: tokenizer.decode(torch.zeros(1, 2).long(), "c"),
        lambda: tokenizer.num_sites("c"),
        lambda: tokenizer.bits("c"),
        lambda: tokenizer.of_subject("c"),
    ):
        with pytest.raises(UserError, match=r"the subjects it was trained on \(a, b\), got 'c'. Train a tokenizer"):
            ask()
