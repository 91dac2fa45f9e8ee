"""BrainJanus: one model for brain, vision and language.

    import brainjanus as bj
    dataset = bj.prepare(bj.PrepareConfig.load("study.toml"), "data/study")
    run = bj.Run.train(dataset, "runs/study")
    captions = run.generate({"brain:subj01": dataset.averages("subj01", "test").responses}, "text")
    records = run.evaluate(dataset, "runs/study/scores")

Names are imported when they are first used.
"""

from importlib import import_module
from typing import Any

_PLACES = {
    "BrainSpace": "core.space",
    "Checkpoint": "model.checkpoint",
    "Dataset": "data.dataset",
    "GenerationConfig": "generate",
    "Extras": "evaluate.extras",
    "Predictions": "evaluate.record",
    "PrepareConfig": "data.spec",
    "Run": "run",
    "RunConfig": "recipes",
    "ScoreOptions": "evaluate.score",
    "SimulationConfig": "data.simulate",
    "StreamOptions": "data.plan",
    "StudyOptions": "data.study",
    "UserError": "core.errors",
    "adapt": "adapting",
    "add_backbone": "model.backbone",
    "add_encoder": "tokenizers.coder",
    "add_layout": "data.layouts",
    "add_metric": "evaluate.metrics",
    "add_quantizer": "tokenizers.quantizer",
    "add_vision_encoder": "tokenizers.vision",
    "compare_files": "scoring",
    "connect": "explorer.client",
    "describe": "info",
    "diagnose": "doctor",
    "draw_maps": "evaluate.cortex",
    "draw_pictures": "show",
    "export": "data.export",
    "lesion": "insilico.lesion",
    "localize": "insilico.localize",
    "load_extension": "core.extensions",
    "load_scores": "evaluate.record",
    "neighbours": "insilico.neighbours",
    "prefer": "insilico.prefer",
    "prepare": "data.prepare",
    "retinotopy": "insilico.retinotopy",
    "score": "evaluate.score",
    "score_files": "scoring",
    "simulate": "data.simulate",
    "write_card": "cards",
    "stream_study": "data.stream",
    "table": "show",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'brainjanus' has no attribute '{name}'")
    return getattr(import_module(f"brainjanus.{_PLACES[name]}"), name)
