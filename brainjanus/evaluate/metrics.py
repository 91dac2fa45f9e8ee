"""The metrics: what each one is called, says and is defined as.

Enters: nothing, or a metric that a user adds. Leaves: METRICS, in the order in which they are shown, and behind them
those in ADDED. `definition` is what a protocol records: two
values of a metric whose definitions differ are not compared. Where a definition depends on what is installed (caption
metrics, pretrained backbones), it is put together when the metric is computed, and None here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from brainjanus.core.errors import UserError
from brainjanus.core.extensions import Added

F = TypeVar("F", bound=Callable[..., Any])
INFINITE = float("inf")
R = (-1.0, 1.0)  # the bounds of a correlation


class Metric(NamedTuple):
    """title, explanation: for people. lower: whether lower is better; None: neither is.

    bounds: the least and the greatest value that there can be.
    """

    title: str
    explanation: str
    definition: str | None = None
    lower: bool | None = False
    bounds: tuple[float, float] = (0.0, 1.0)


_TO_425 = "RGB resized to 256, then 425 px (bilinear, antialiased)"
_SSIM = f"{_TO_425}, grey, gaussian weights sigma 1.5, population covariance, data range 1"
_RESTORED = "responses predicted from the picture, decoded again into a picture: "

METRICS: Mapping[str, Metric] = {
    # brain -> text
    "content_f1": Metric(
        "Content-word F1",
        "overlap (harmonic mean of precision and recall) of the content words, as sets, of the decoded caption and of "
        "the best-matching caption of the stimulus; 1 is the same words.",
        "F1 of the sets of words that are no stop words, best of the references",
    ),
    "cider": Metric(
        "CIDEr", "agreement in n-grams, rare ones counting more; what captions are ranked by.", bounds=(0.0, 10.0)
    ),
    "bleu1": Metric("BLEU-1", "share of the decoded words that stand in a reference; a constant caption earns a lot."),
    "bleu2": Metric("BLEU-2", "the same for words and pairs of words."),
    "bleu3": Metric("BLEU-3", "the same up to three words in a row."),
    "bleu4": Metric("BLEU-4", "the same up to four words in a row."),
    "meteor": Metric("METEOR", "words aligned with a reference, stems and synonyms included."),
    "rouge_l": Metric("ROUGE-L", "the longest sequence of words that is shared with a reference."),
    "spice": Metric("SPICE", "agreement of the objects, attributes and relations that are named."),
    "bertscore": Metric("BERTScore", "agreement of the words' contextual embeddings (F1)."),
    "clip_s": Metric(
        "CLIP-S", "how well the decoded caption fits the seen picture, by CLIP; needs no reference.", bounds=(0.0, 2.5)
    ),
    "ref_clip_s": Metric(
        "RefCLIP-S", "harmonic mean of CLIP-S and the CLIP similarity to the closest reference.", bounds=(0.0, 2.5)
    ),
    "text_similarity": Metric(
        "Word-vector similarity",
        "cosine between the word vectors of what was decoded and of what was shown; credits a neighbouring concept.",
        "cosine of the dataset's word vectors, looked up by content words among training captions",
        bounds=R,
    ),
    # brain -> image
    "two_way": Metric(
        "Two-way identification",
        "how often the decoded picture is more alike (pixel correlation) to the seen one than to another of the test "
        "set; chance is 0.5.",
        f"Pearson's r of pixels, {_TO_425}; each reconstruction against all other seen pictures, ties fail",
    ),
    "pixcorr": Metric(
        "PixCorr",
        "Pearson's r between the pixels of the decoded and the seen picture, mean over pictures.",
        f"Pearson's r of pixels, {_TO_425}",
        bounds=R,
    ),
    "ssim": Metric(
        "SSIM",
        "structural similarity of the decoded and the seen picture, in grey; 1 is the same picture.",
        _SSIM,
        bounds=R,
    ),
    "alexnet2": Metric("AlexNet(2)", "two-way identification in an early layer of AlexNet."),
    "alexnet5": Metric("AlexNet(5)", "two-way identification in a middle layer of AlexNet."),
    "inception": Metric("Inception", "two-way identification in the last pooling layer of Inception-v3."),
    "clip": Metric("CLIP", "two-way identification in CLIP ViT-L/14's image embedding."),
    "effnet": Metric(
        "EffNet-B", "distance (1 - r) in EfficientNet-B1's last pooling layer.", lower=True, bounds=(0.0, 2.0)
    ),
    "swav": Metric("SwAV", "distance (1 - r) in SwAV ResNet-50's last pooling layer.", lower=True, bounds=(0.0, 2.0)),
    "brain_correlation": Metric(
        "Brain correlation",
        "a linear encoder, fitted to training stimuli, predicts responses to the decoded picture; their pattern r with "
        "the measured responses. In the ceiling's place stands the same encoder given the seen picture.",
        "Pearson's r across sites between the mean measured response and that which ridge on wavelet features predicts "
        "from the decoded picture, mean over pictures",
        bounds=R,
    ),
    # -> brain
    "voxel_r": Metric(
        "Voxel r",
        "for each site, Pearson's r across stimuli between predicted and measured response; mean over sites.",
        "Pearson's r across stimuli, mean over sites; constant sites count 0",
        bounds=R,
    ),
    "voxel_r_normalised": Metric(
        "Normalised voxel r",
        "voxel r divided by the site's noise ceiling; 1 is all that can be explained. Sites with a ceiling under 0.1 "
        "are left out.",
        "voxel r / noise ceiling (Allen et al. 2022), mean over sites with a ceiling of at least 0.1",
        bounds=(-INFINITE, INFINITE),
    ),
    "pattern_r": Metric(
        "Pattern r",
        "for each stimulus, Pearson's r across sites between predicted and measured pattern; mean over stimuli. "
        "Papers often call this voxel-level Pearson.",
        "Pearson's r across sites, mean over stimuli",
        bounds=R,
    ),
    "cosine": Metric(
        "Cosine",
        "for each stimulus, the cosine between predicted and measured pattern; mean over stimuli.",
        "cosine across sites (not centred), mean over stimuli",
        bounds=R,
    ),
    "r2": Metric(
        "R²",
        "share of each site's variance across stimuli that is predicted; mean over sites. Below 0, the mean of the "
        "test responses would have been closer.",
        "1 - residual / total sum of squares across stimuli, mean over sites; constant sites count 0",
        bounds=(-INFINITE, 1.0),
    ),
    "mse": Metric(
        "MSE",
        "mean squared difference between predicted and measured response, in squared z units.",
        "mean over stimuli and sites of the squared difference",
        lower=True,
        bounds=(0.0, INFINITE),
    ),
    "identification_top1": Metric(
        "Identification, top 1",
        "how often the measured response is most alike to the prediction for its own stimulus, among all of the test.",
        "pattern r of each measured response with the predictions for all scored stimuli; share of rank 1, ties fail",
    ),
    "identification_rank": Metric(
        "Identification, rank",
        "the mean place of the right stimulus in that comparison; 1 is best.",
        "pattern r of each measured response with the predictions for all scored stimuli; mean rank, ties the last",
        lower=True,
        bounds=(1.0, INFINITE),
    ),
    "selectivity_r": Metric(
        "Selectivity maps",
        "agreement across sites of the predicted and the measured contrast map of each category (stimuli with a word "
        "in their captions against all others); mean over categories. p is of a spin test.",
        "Pearson's r across sites of contrast maps, mean over the up to 8 most frequent content words in 5 to 50 % of "
        "the scored stimuli",
        bounds=R,
    ),
    "autocorrelation": Metric(
        "Spatial autocorrelation",
        "how alike neighbouring sites are in a predicted map (Moran's I), mean over stimuli. Neither high nor low is "
        "good: a prediction without noise is smoother than the measured maps, a far rougher one has lost the layout.",
        "Moran's I with the 8 nearest neighbours in the hemisphere, mean over stimuli",
        lower=None,
        bounds=(-INFINITE, INFINITE),
    ),
    "autocorrelation_measured": Metric(
        "Spatial autocorrelation, measured",
        "the same of the measured maps, noise included.",
        "Moran's I of the measured maps with the 8 nearest neighbours in the hemisphere, mean over stimuli",
        lower=None,
        bounds=(-INFINITE, INFINITE),
    ),
    "encode_decode_two_way": Metric(
        "Encode, then decode: two-way",
        _RESTORED + "two-way identification. A control that hides the picture in the vector is perfect here: read it "
        "beside voxel r only.",
        f"decoded from the prediction; Pearson's r of pixels, {_TO_425}; against all other seen pictures, ties fail",
    ),
    "encode_decode_pixcorr": Metric(
        "Encode, then decode: PixCorr",
        _RESTORED + "PixCorr.",
        f"decoded from the prediction; Pearson's r of pixels, {_TO_425}",
        bounds=R,
    ),
    "encode_decode_ssim": Metric(
        "Encode, then decode: SSIM", _RESTORED + "SSIM.", f"decoded from the prediction; {_SSIM}", bounds=R
    ),
}


@dataclass(frozen=True)
class AddedMetric:
    """A metric of a user's own; see `add_metric`."""

    metric: Metric
    target: str
    function: Callable[..., Any]
    per_stimulus: bool
    ceiling: Callable[..., float | None] | None


ADDED = Added[AddedMetric]("metric", METRICS)


def add_metric(
    name: str,
    target: str,
    title: str,
    explanation: str,
    definition: str,
    *,
    lower: bool | None = False,
    bounds: tuple[float, float] = (-INFINITE, INFINITE),
    per_stimulus: bool = True,
    ceiling: Callable[..., float | None] | None = None,
) -> Callable[[F], F]:
    """A decorator that makes a function the metric of this name, scored wherever the metrics of its target are.

    The function gets what was measured, seen or said, and what was predicted, of N stimuli in the same order:
    brain: [n, v] z-scored, [n, v]. image: N arrays uint8 [pictures, h, w, 3], an array [n, h, w, 3] in [0, 255].
    text: N sequences of captions, N captions.
    It returns one score a stimulus [n], whose mean is the value; without `per_stimulus`, one number for all of them.
    It is called with stimuli in other pairs (N times; without `per_stimulus`, once a shuffle and once a resample),
    which gives floor, p and interval; of a brain, for all sites and again for each region.

    target: brain, image or text. title, explanation, definition, lower, bounds: see `Metric`. ceiling: a function of
    the Reference, of a brain that of the sites which are scored, that returns the most that any prediction could reach,
    or None.
    Raises UserError for a name that is built in or no name, and for a target that does not exist.
    """
    if target not in ("brain", "image", "text"):
        raise UserError(f"metric '{name}': expected a target among brain, image, text, got '{target}'. Correct it.")
    metric = Metric(title, explanation, definition, lower, bounds)

    def add(function: F) -> F:
        ADDED.add(name, AddedMetric(metric, target, function, per_stimulus, ceiling))
        return function

    return add


FEATURES = "features:"  # "features:NAME" and "retrieval:NAME ..." are metrics on features that the user supplied
RETRIEVAL = "retrieval:"
ENCODE_DECODE = "encode_decode_"


def metric_of(name: str) -> Metric:
    """The metric of this name; also those on supplied features, whose names are the user's, and encode-then-decode."""
    if name.startswith(ENCODE_DECODE) and name not in METRICS:
        decoded = metric_of(name.removeprefix(ENCODE_DECODE))
        return decoded._replace(
            title=f"Encode, then decode: {decoded.title}", explanation=f"{_RESTORED}{decoded.explanation}"
        )
    if name.startswith(FEATURES):
        space = name.removeprefix(FEATURES)
        return Metric(f"Two-way, {space}", f"two-way identification in the features '{space}'.")
    if name.startswith(RETRIEVAL):
        space = name.removeprefix(RETRIEVAL)
        return Metric(
            f"Retrieval, {space}",
            f"top-1 retrieval among up to 300 candidates in the features '{space}', mean of 30 draws.",
        )
    if name in ADDED.entries:
        return ADDED.entries[name].metric
    return METRICS.get(name, Metric(name, "not among the metrics of this version, nor of an extension that is loaded."))
