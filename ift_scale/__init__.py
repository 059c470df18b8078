"""IFT-Scale: what instruction fine-tuning does to a model's knowledge, measured at cluster speed.

`ift_scale.Run(path)` reads a run's results as pandas frames (docs/notebooks.md). It is imported
when it is first used, so `import ift_scale` alone loads neither pandas nor torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ift_scale.run_folder import Run

__all__ = ["Run", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "Run":
        raise AttributeError(f"module 'ift_scale' has no attribute {name!r}")
    from ift_scale.run_folder import Run

    return Run


def __dir__() -> list[str]:
    return sorted([*globals(), "Run"])
