"""The stages in order. A new one is a folder whose `run.py` defines `STAGE`, and one line here."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # `--help` does not import pydantic
    from ift_scale.config import Config


class Entry(NamedTuple):
    """A stage as the command line offers it, available without importing the stage's code."""

    name: str
    help: str
    on_ranks: bool = False
    """True if ranks started by deepspeed, torchrun or srun may share its work."""
    per_arm: bool = False
    """True if it produces one artifact per arm, so that several commands may share the arms
    (`--part`)."""
    on_ray: bool = False
    """True if actors of a Ray cluster may compute it (`--ray`)."""
    of_questions: bool = False
    """True if it leaves out arms whose sets have no questions of the pools."""
    needs_questions: bool = True
    """False if it also runs without any source of questions, for users' own sets."""
    optional: bool = False
    """True if it only runs with `on: true` in its section of the settings."""

    def missing(self, config: "Config") -> str:
        """Returns why a run does not have the stage, and the remedy; empty if it does."""
        if self.optional and not getattr(config, self.name).on:
            return f"{self.name}.on: false, so the {self.name} stage is not run; set it to true"
        if self.needs_questions and not config.questions.sources:
            return (
                f"questions.sources: empty, but the {self.name} stage needs questions; add a source"
            )
        return ""


STAGES = (
    Entry("questions", "Collect the questions of all sources."),
    Entry("probe", "Probe the base model few-shot.", on_ranks=True, on_ray=True),
    Entry("write", "Write the texts that the settings need."),
    Entry("construct", "Build the instruction sets of all arms.", needs_questions=False),
    Entry("train", "Fine-tune every arm.", on_ranks=True, per_arm=True, needs_questions=False),
    Entry("evaluate", "Evaluate every arm 0-shot.", on_ranks=True, per_arm=True, on_ray=True),
    Entry(
        "learnt",
        "Ask every arm its own training items.",
        on_ranks=True,
        per_arm=True,
        of_questions=True,
        optional=True,
    ),
    Entry(
        "hidden", "Fit linear probes on hidden states.", on_ranks=True, per_arm=True, optional=True
    ),
    Entry("analyse", "Compute accuracy, consistency and differences."),
    Entry("report", "Write the report page."),
)


def stages_of(config: "Config") -> list[Entry]:
    """Returns the stages of a run, without those that its settings leave out."""
    return [stage for stage in STAGES if not stage.missing(config)]
