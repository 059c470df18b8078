"""One rank of test_resume.py: trains arms as the ranks do, many in one launch, some interrupted after a step.

Run as `resume_ranks.py PLAN`, a JSON list of {"job": path, "stop_after": step or null, "error": text or null}; the environment says
which rank it is. What has a step to stop after must end there, what has an error must end with it, the others train to their end.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

from ift_scale.errors import EnvironmentProblem
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.ranks import environment
from ift_scale.ranks.rendezvous import meet
from ift_scale.train import job, loop
from ift_scale.train import worker as module
from ift_scale.train.launch.control import Control, Interrupted
from ift_scale.train.model import packed as models


class StopsAfter(Control):
    """Asks to stop after so many steps, as a signal would."""

    left: int | None = None

    def stops(self) -> bool:
        self.left = None if self.left is None else self.left - 1
        self._signalled = self.left == 0
        return super().stops()


def main(plan: Path) -> None:
    ranks = environment.from_environment()
    assert ranks is not None
    device = module.join(meet(ranks))
    torch.set_num_threads(1)  # a rank alone would take all cores
    control = StopsAfter(None, module.COLLECTIVE_TIMEOUT)
    weights: dict[str, dict[str, Any]] = {}  # read once for all parts, as by one launch
    for part in json.loads(plan.read_text()):
        work = job.read(Path(part["job"]))
        if work.model_path not in weights:
            weights[work.model_path] = models.read_weights(Path(work.model_path))
        group = loop.Group(ranks, device, weights[work.model_path], control)
        tokenizer = PromptTokenizer(work.model_path)
        control.left = part["stop_after"]
        try:
            for arm in work.arms:
                module.train_arm(work, arm, group, tokenizer, job.Events(None))
            assert part["stop_after"] is None and part["error"] is None, part
        except Interrupted as stopped:
            assert stopped.step == part["stop_after"], (stopped.step, part)
        except EnvironmentProblem as error:
            assert part["error"] and re.search(part["error"], str(error)), (str(error), part)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
