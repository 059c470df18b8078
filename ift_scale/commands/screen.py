"""The `screen` command: its options become settings of a configuration."""

from typing import Any

from ift_scale.commands.open_run import ranks_here
from ift_scale.config.file import with_overrides
from ift_scale.config.instructions import InstructionSource
from ift_scale.questions.detect import detect

PROBE: dict[str, Any] = {
    "chunk_size": 256,
    "num_shots": 4,
    "reliability": {"demonstration_draws": 3, "cloze": "byte", "decide_by": "average"},
    "free": {"ask": True, "num_samples": 4},
}
"""Settings of the probe that a screen starts from; --set overrides them."""


def run_screen(
    model: str,
    data: tuple[str, ...],
    output: str,
    engine: str | None,
    treatment: str | None,
    pools: tuple[str, ...],
    skip: bool,
    overrides: tuple[str, ...],
) -> None:
    """Screens `data` with `model`; see `screening.screen`. ConfigError for invalid settings."""
    ranks_here(on_ranks=False)
    raw: dict[str, Any] = {"output_dir": output, "model": {"path": model}, "probe": dict(PROBE)}
    if engine is not None:
        raw["probe"]["engine"] = engine
    if treatment is not None:
        raw["screen"] = {"treatment": treatment}
    if pools:
        raw["questions"] = {"sources": [detect(spec).settings for spec in pools]}
    config = with_overrides(raw, overrides, "ift-scale screen")
    sources = [InstructionSource(path=path, on_error="skip" if skip else "stop") for path in data]
    from ift_scale.screen.screening import screen

    screen(config, sources, bool(pools))
