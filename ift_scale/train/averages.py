"""The arms that are averages of a trained arm with its base model (`train.average`)."""

import time

from ift_scale.errors import ArtifactError
from ift_scale.io import integrity
from ift_scale.io.files import atomic_folder
from ift_scale.io.manifests import is_done
from ift_scale.stage import Context, Task, trained_arm
from ift_scale.treatments import average_of


def check(context: Context) -> None:
    """Raises DataError if the base model's tensors cannot be averaged with those of an arm."""
    from ift_scale.train.engine import average  # imports torch
    from ift_scale.train.model import packed

    model = packed.without_weights(context.model_path, context.config.model.trust_remote_code)
    average.check(context.model_path, model)


def make(context: Context, task: Task) -> None:
    """Writes the model of an average to the task's folder, with its manifest.

    Raises ArtifactError if the arm that it is made of is not trained.
    """
    from ift_scale.train.engine.average import average

    assert task.arm is not None
    started, trained = time.monotonic(), context.folder("train", trained_arm(task.arm))
    share = average_of(task.arm.setting)[1]
    assert share is not None
    if not is_done(trained, task.inputs["trained"]):
        raise ArtifactError(
            f"{trained}: not trained yet, so {task.arm.name} cannot be averaged; run `ift-scale "
            "train` again when the command that trains it has ended"
        )
    integrity.check(trained, ("model/*",))
    with atomic_folder(task.folder) as temporary:
        counts = average(context.model_path, trained / "model", temporary / "model", share)
        config = {"average": share, "arm": task.arm.model_dump()}
        task.close(config, counts, {"total": time.monotonic() - started}, temporary)
