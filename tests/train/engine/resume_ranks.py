"""One rank of test_resume.py: trains many arms in one launch, some interrupted after a step.

    python -m tests.train.engine.resume_ranks PLAN

PLAN is a JSON list of
{"job": path, "stop_after": step or null, "error": text or null}. A job with a step must stop after
it, a job with an error must end with it, and all others must train to their end.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

from ift_scale.errors import EnvironmentProblem
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.ranks.environment import Ranks
from ift_scale.train import job, loop, process_group
from ift_scale.train.arm import train_arm
from ift_scale.train.launch.control import Control
from ift_scale.train.model import packed as models
from tests.train.group import joined


class StopsAfter(Control):
    """Requests a stop after `left` steps, as a signal would."""

    left: int | None = None

    def should_stop(self) -> bool:
        self.left = None if self.left is None else self.left - 1
        self._signalled = self.left == 0
        return super().should_stop()


def main(plan: Path) -> None:
    with joined() as (ranks, device):
        train(plan, ranks, device)


def train(plan: Path, ranks: Ranks, device: torch.device) -> None:
    control = StopsAfter(None, process_group.collective_timeout(0))
    weights: dict[str, dict[str, Any]] = {}  # read once, as in one launch
    for part in json.loads(plan.read_text()):
        work = job.read(Path(part["job"]))
        if work.model_path not in weights:
            weights[work.model_path] = models.read_weights(Path(work.model_path))
        context = loop.TrainContext(ranks, device, weights[work.model_path], control)
        tokenizer = PromptTokenizer(work.model_path)
        control.left = part["stop_after"]
        try:
            for arm in work.arms:
                train_arm(work, arm, context, tokenizer, job.Events(None))
            assert part["stop_after"] is None and part["error"] is None, part
        except job.Interrupted as stopped:
            assert stopped.step == part["stop_after"], (stopped.step, part)
        except EnvironmentProblem as error:
            assert part["error"] and re.search(part["error"], str(error)), (str(error), part)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
