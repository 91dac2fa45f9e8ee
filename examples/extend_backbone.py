"""A recurrent network in place of the transformer, and a vision encoder: brainjanus train data/mine --out runs/gru
--extend extend_backbone.py --omni.backbone gru:layers=2 --omni.image-input colours
"""

import tempfile
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

import brainjanus as bj
from brainjanus.model.backbone import Backbone
from brainjanus.model.decoder import DecoderConfig
from brainjanus.recipes import fitting


@bj.add_backbone("gru")
class GRU(Backbone):
    """B batch, L positions, D width."""

    def __init__(self, config: DecoderConfig, layers: int = 1):
        super().__init__(config)
        self.gru = nn.GRU(config.hidden_size, config.hidden_size, layers, batch_first=True)
        self.norm = nn.RMSNorm(config.hidden_size)

    def states(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """[b, l, d] -> [b, l, d]. Padding is moved behind all that is seen, where it changes nothing."""
        if seen is None:
            return self.norm(x + self.gru(x)[0])
        order = (~seen).int().argsort(dim=1, stable=True)
        states = self.gru(x.take_along_dim(order[..., None], dim=1))[0]
        return self.norm(x + states.take_along_dim(order.argsort(dim=1)[..., None], dim=1))


@bj.add_vision_encoder("colours")
def colours(pixels: Tensor) -> Tensor:
    """Pictures [b, 3, h, w] in [0, 1] as the mean colour of each of 4 x 4 cells, [b, 16, 3]."""
    return F.adaptive_avg_pool2d(pixels, 4).flatten(2).transpose(1, 2)


def main(dataset: bj.Dataset, out: Path, steps: int = 100) -> bj.Run:
    settings = {"omni.backbone": "gru:layers=2", "omni.image_input": "colours", "training.optim.batch_size": 16}
    settings |= {f"{stage}.steps": steps for stage in ("brain_training", "image_training", "training.optim")}
    run = bj.Run.train(dataset, out / "gru", fitting(dataset).changed(settings))
    who = dataset.subjects[0]
    measured = dataset.averages(who, "test")
    captions = run.generate({f"brain:{who}": measured.responses[:4]}, "text")
    predicted = run.generate({"image": dataset.images(measured.stimulus_ids)}, f"brain:{who}")
    shown = bj.Predictions("image->brain", who, measured.stimulus_ids, "mean", predicted.numpy())
    print(f"captions decoded: {captions}\n{bj.table(bj.score(dataset, shown).records)}")
    return run


if __name__ == "__main__":
    out = Path(tempfile.mkdtemp())
    main(bj.simulate(out / "simulated", bj.SimulationConfig(1, 200, num_test=40)), out)
