"""Settings of the hidden stage: linear probes on hidden states, before and after training."""

from ift_scale.config.section import PositiveInt, Section, Seed


class HiddenConfig(Section):
    """Linear probes on hidden states: is what an arm no longer answers still in its states?"""

    on: bool = False
    """Run the stage, which reads the states of every layer of the base model and of each arm with
    the transformers engine."""
    max_fit_questions: PositiveInt = 1000
    """Maximum number of train questions to fit the probes of a domain on. Questions that some arm
    of the domain was trained on are never used; those of the domain come first, then those of other
    pools."""
    batch_tokens: PositiveInt | None = None
    """Tokens per batch, padding included. Default: 4096 on a CPU, 16384 on a GPU."""
    seed: Seed = 42
    """Seed of the draw of train questions, of the order of their options and of the control
    task."""
