"""A small run of the built-in world for launch tests: two arms, trained within seconds."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from ift_scale.train.launch import launcher
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "construct.domains=[medicine]",
    "construct.settings=[harmonious, incompatible]",
    "construct.size=24",
    "construct.seeds=[0]",
    "probe.engine=transformers",
    "evaluate.engine=transformers",
    "probe.chunk_size=160",
    "evaluate.chunk_size=100",
    "train.live.every=0",
    "train.log_every=1",
)

ARMS = ("medicine-harmonious-seed0", "medicine-incompatible-seed0")
LONG = "train.epochs=20"  # 60 steps per arm


def arguments(folder: Path, *overrides: str) -> list[str]:
    """Returns the arguments after `ift-scale STAGE`."""
    sets = [f"output_dir={folder}", *SETTINGS, *overrides]
    return ["configs/demo.yaml", *(part for text in sets for part in ("--set", text))]


def command(stage: str, folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "ift_scale.cli", stage, *arguments(folder, *overrides)]


def run(stages: str, folder: Path, *overrides: str) -> None:
    """Runs stages one after another in one process on this machine."""
    code = "import sys\nfrom ift_scale.cli import main\n"
    code += (
        "for stage in sys.argv[1].split():\n    main([stage, *sys.argv[2:]], standalone_mode=False)"
    )
    command = [sys.executable, "-c", code, stages, *arguments(folder, *overrides)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def losses(folder: Path, arm: str) -> list[float]:
    rows = (folder / "train" / arm / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


def weights(folder: Path, arm: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "train" / arm / "model" / "model.safetensors")


def wait_for_step(folder: Path, arm: str, step: int, part: str = "") -> None:
    """Waits until the running launch has reported this step of the arm."""

    def has_come() -> bool:
        reported = list(launcher.read(folder / "logs" / f"train{part}-events.jsonl"))
        begun = [
            number
            for number, event in enumerate(reported)
            if event["event"] == "arm" and event["name"] == arm
        ]
        return bool(begun) and any(
            event["event"] == "step" and event["step"] >= step for event in reported[begun[-1] :]
        )

    wait_for(has_come, f"{arm} has not come to step {step}")


def processes(words: str, variable: str) -> Iterator[int]:
    """Returns ids of Python processes with these words in their command line and this NAME=value in
    their environment."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if words in line and "python" in line.split(" ")[0] and variable.encode() in variables:
                yield int(entry.name)
