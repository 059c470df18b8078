"""One rank of test_resume.py: trains an arm in one go, and again interrupted and resumed, under several ZeRO stages, in one launch.

Run as `resume_ranks.py PLAN`, a JSON list of {"job": path, "stop_after": step or null, "exported": folder}; the environment says which
rank. An entry with `stop_after` must end there; the others train to their end. Only what the ranks do is run here, as they do it.
"""

import json
import sys
from pathlib import Path

from ift_scale import distributed
from ift_scale.inference.tokens import PromptTokenizer
from ift_scale.train import job, loop
from ift_scale.train import model as models
from ift_scale.train import ranks as module
from ift_scale.train.control import Control, Interrupted


class StopsAfter(Control):
    """Asks to stop after so many steps, as a signal would."""

    left: int | None = None

    def stops(self) -> bool:
        self.left = None if self.left is None else self.left - 1
        self._signalled = self.left == 0
        return super().stops()


def main(plan: Path) -> None:
    ranks = distributed.from_environment()
    assert ranks is not None
    device = module.join(ranks)
    control = StopsAfter(None)
    for part in json.loads(plan.read_text()):
        work = job.read(Path(part["job"]))
        group = loop.Group(ranks, device, models.read_weights(Path(work.model_path)), control)
        tokenizer = PromptTokenizer(work.model_path)
        control.left = part["stop_after"]
        try:
            for arm in work.arms:
                module.train_arm(work, arm, group, tokenizer, job.Events(None))
            assert part["stop_after"] is None, part
        except Interrupted as stopped:
            assert stopped.step == part["stop_after"], (stopped.step, part)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
