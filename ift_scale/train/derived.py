"""The arms that are made of a trained one without training: averages with the base model
(`train.average`), restored parameters (`train.restore`) and earlier epochs
(`train.export_epochs`)."""

import time
from pathlib import Path

from ift_scale.errors import ArtifactError
from ift_scale.io import integrity
from ift_scale.io.files import atomic_folder, link_or_copy
from ift_scale.io.manifests import is_done
from ift_scale.stage import Context, Task, trained_arm
from ift_scale.train.engine.kept import folder_of_epoch
from ift_scale.treatments import Derived, dose_of

VERSIONS: dict[Derived, int] = {"average": 2, "restored": 1, "epoch": 1}
"""Increment one if the same trained arm gives another model than before."""


def check(context: Context) -> None:
    """Raises DataError if the base model's tensors cannot be combined with those of an arm, but
    averages or restored models are to be made."""
    train = context.config.train
    if not train.average and not train.restore:
        return
    from ift_scale.train.engine import average  # imports torch
    from ift_scale.train.model import packed

    model = packed.without_weights(context.model_path, context.config.model.trust_remote_code)
    average.check(context.model_path, model)


def make(context: Context, task: Task) -> None:
    """Writes the model of a derived arm to the task's folder, with its manifest.

    Raises ArtifactError if the arm that it is made of is not trained.
    """
    assert task.arm is not None
    started, trained = time.monotonic(), context.folder("train", trained_arm(task.arm))
    dose = dose_of(task.arm.setting)
    assert dose.kind is not None and dose.amount is not None
    if not is_done(trained, task.inputs["trained"]):
        raise ArtifactError(
            f"{trained}: not trained yet, so {task.arm.name} cannot be made of it; run `ift-scale "
            "train` again when the command that trains it has ended"
        )
    source = folder_of_epoch(trained, int(dose.amount)) if dose.kind == "epoch" else trained
    integrity.check(trained, (f"{(source / 'model').relative_to(trained)}/*",))
    with atomic_folder(task.folder) as temporary:
        counts = _write(dose.kind, dose.amount, context.model_path, source, temporary)
        config = {dose.kind: dose.amount, "arm": task.arm.model_dump()}
        task.close(config, counts, {"total": time.monotonic() - started}, temporary)


def _write(
    kind: Derived, amount: float, base: Path, source: Path, folder: Path
) -> dict[str, float]:
    """Writes the model of the arm in `source`, changed, to `folder`. Returns the counts."""
    model = source / "model"
    if kind == "epoch":
        for file in sorted(path for path in model.rglob("*") if path.is_file()):
            link_or_copy(file, folder / file.relative_to(source))
        return {}
    from ift_scale.train.engine import average, restore

    combine = average.average if kind == "average" else restore.restore
    return combine(base, model, folder / "model", amount)
