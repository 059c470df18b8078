"""`ift-scale sft`: fine-tunes a model on the user's own instructions.

In: a model and instruction data of any format. Out: a run's folder with the trained model. The run
has the stages construct and train only; its settings are in FOLDER/config.yaml, to which sources of
questions can be added for an evaluation.
"""

from collections.abc import Sequence
from typing import Any

import click

from ift_scale.commands.open_run import open_run, ranks_here
from ift_scale.config import Config
from ift_scale.config.file import with_overrides
from ift_scale.engines import model_folder
from ift_scale.io.progress import say

_NAME = "data"


def config_of(
    model: str,
    data: Sequence[str],
    output: str,
    weights: Sequence[float],
    overrides: tuple[str, ...],
) -> Config:
    """Returns the settings of the run, with the model's own chat template if it has one.

    Raises DataError for a model that cannot be used, ConfigError for an invalid override.
    """
    if weights and len(weights) != len(data):
        problem = f"{len(weights)} for {len(data)} DATA; give one for each, or none"
        raise click.UsageError(f"--weight: {problem}")
    sources = [
        {"path": path, "weight": weight}
        for path, weight in zip(data, weights or [1.0] * len(data), strict=True)
    ]
    own = model_folder.has_chat_template(model_folder.resolve(model, "MODEL"))
    raw: dict[str, Any] = {
        "output_dir": output,
        "model": {"path": model},
        "questions": {"sources": []},
        "evaluate": {"template": "model" if own else "vicuna"},
        "construct": {"settings": [], "sets": [{"name": _NAME, "sources": sources}]},
    }
    return with_overrides(raw, overrides, "ift-scale sft")


def fine_tune(
    model: str,
    data: Sequence[str],
    output: str,
    weights: Sequence[float],
    overrides: tuple[str, ...],
) -> None:
    """Runs the stages construct and train, or what is left of them; prints where the model is."""
    config = config_of(model, data, output, weights, overrides)
    say(f"chat template: {config.evaluate.template} (evaluate.template)")
    with open_run(config, ranks_here(on_ranks=True), [], None) as pipeline:
        context = pipeline.context
        pipeline.make_alone("construct")
        pipeline.make("train")
        for arm in context.arms() if context.is_rank_zero else ():
            say(f"model: {(context.folder('train', arm) / 'model').resolve()}")
