"""The stages in order. A new stage is a folder with a `run.py` that defines `STAGE`, and one line here."""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ift_scale.stage import Stage


class Entry(NamedTuple):
    """How the command line offers a stage, known without importing it."""

    name: str
    help: str
    on_ranks: bool = False
    """Ranks that deepspeed, torchrun or srun started may work on it together."""
    per_arm: bool = False
    """It makes an artifact for each arm, so several commands may each make some (`--part`)."""
    on_ray: bool = False
    """Actors of a Ray cluster may compute it (`--ray`)."""

    def load(self) -> "Stage":
        stage: Stage = import_module(f"ift_scale.{self.name}.run").STAGE
        return stage


STAGES = (
    Entry("questions", "Gather the questions of all sources."),
    Entry("probe", "Ask the base model every question, few-shot.", on_ranks=True, on_ray=True),
    Entry("write", "Have the explanations and contexts written that the sets need."),
    Entry("construct", "Build the instruction sets of all arms."),
    Entry("train", "Fine-tune every arm.", on_ranks=True, per_arm=True),
    Entry(
        "evaluate", "Ask every fine-tuned arm, 0-shot.", on_ranks=True, per_arm=True, on_ray=True
    ),
    Entry("analyse", "Compute accuracy, consistency and differences."),
    Entry("report", "Write the report page."),
)
