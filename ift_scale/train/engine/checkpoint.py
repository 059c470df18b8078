"""Saves and loads an arm's checkpoints, all ranks together.

A checkpoint's folder appears as a whole or not at all, and only the newest few are kept.
"""

import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ift_scale.config.train import TrainConfig
from ift_scale.io.files import INCOMPLETE, flush, translate_disk_errors
from ift_scale.io.manifests import MANIFEST, file_digests
from ift_scale.ranks import activity
from ift_scale.train.engine import reshard, safe_load, zero_config
from ift_scale.train.engine.checkpoint_manifest import (
    PREFIX,
    CheckpointManifest,
    Progress,
    complete,
    folder_of,
    latest,
)
from ift_scale.train.engine.deepspeed import TrainEngine
from ift_scale.train.job import ArmJob
from ift_scale.train.launch.control import Control

STATE = "state"


@dataclass
class Checkpoints:
    """One arm's checkpoints. `metrics`: rank 0's metrics file, None on other ranks.

    Each checkpoint contains the metrics file and the other files of its folder.
    """

    arm: ArmJob
    config: TrainConfig
    control: Control
    metrics: Path | None

    @property
    def folder(self) -> Path:
        return folder_of(Path(self.arm.folder))

    def load(self, engine: TrainEngine) -> Progress:
        """Load the newest checkpoint, if any, into a fresh engine and restore the metrics files."""
        activity.begin("looking for a checkpoint", f"the disk of {self.folder}", slow=True)
        # Rank 0 chooses, so that all ranks load the same one.
        newest = latest(self.arm) if self.metrics else None
        mine = (str(newest[0]), newest[1].model_dump(mode="json")) if newest else None
        chosen = self.control.gather(mine)[0]
        if chosen is None:
            return Progress()
        path, saved = Path(chosen[0]), CheckpointManifest.model_validate(chosen[1])
        # Stage 0 saves the whole state, whatever the number of ranks.
        same_ranks = saved.world_size == engine.ranks.world_size or saved.zero_stage == 0
        optimizer = zero_config.optimizer_name(engine.deepspeed.optimizer)
        current = (self.config.zero_stage, self.config.offload, optimizer)
        if same_ranks and (saved.zero_stage, saved.offload, saved.optimizer) == current:
            with safe_load.restricted(path):
                loaded, _ = engine.deepspeed.load_checkpoint(str(path), tag=STATE)
            assert loaded is not None, path
        else:
            reshard.load(
                engine.deepspeed,
                engine.trained_parameters,
                path / STATE,
                saved.zero_stage,
                saved.world_size,
            )
        if self.metrics:
            _copy_files(path, self.metrics.parent)
        return saved.progress.model_copy(update={"resumed": saved.progress.resumed + 1})

    def due(self, step: int, num_steps: int) -> bool:
        """True if a checkpoint is due after `step` steps; the end of the arm needs none."""
        every = self.config.checkpoint.every
        return every > 0 and step % every == 0 and step < num_steps

    def save(self, engine: TrainEngine, progress: Progress) -> None:
        """Save a checkpoint; every rank must call this.

        Raises EnvironmentProblem if the disk is full; older checkpoints are kept.
        """
        path = self.folder / f"{PREFIX}{progress.step}"
        activity.begin(f"saving {path.name}", f"the disk of {self.folder}", slow=True)
        temporary = path.with_name(f".{path.name}{INCOMPLETE}")
        with translate_disk_errors(path):
            if self.metrics:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            self.control.barrier()
            engine.deepspeed.save_checkpoint(str(temporary), tag=STATE, save_latest=False)
            flush(temporary)
            self.control.barrier()
            digests = self._digests(engine, temporary)
            if self.metrics:
                self._publish(engine, temporary, path, progress, digests)
        self.control.barrier()

    def _digests(self, engine: TrainEngine, temporary: Path) -> dict[str, str]:
        """Returns the digests of the files of all ranks by name; each rank computes its share."""
        found = sorted(_names(temporary)) if self.metrics else []
        ranks = engine.ranks
        mine = self.control.gather(found)[0][ranks.rank :: ranks.world_size]
        computed = file_digests([temporary / name for name in mine])
        shares = self.control.gather(dict(zip(mine, computed, strict=True)))
        return {name: digest for share in shares for name, digest in share.items()}

    def _publish(
        self,
        engine: TrainEngine,
        temporary: Path,
        path: Path,
        progress: Progress,
        digests: dict[str, str],
    ) -> None:
        assert self.metrics is not None
        _copy_files(self.metrics.parent, temporary)
        names = _names(temporary)
        own = [name for name in names if name not in digests]  # copied just now
        computed = file_digests([temporary / name for name in own])
        saved = CheckpointManifest(
            progress=progress,
            key=self.arm.key,
            inputs=self.arm.inputs,
            zero_stage=int(self.config.zero_stage),
            offload=self.config.offload,
            world_size=engine.ranks.world_size,
            optimizer=zero_config.optimizer_name(engine.deepspeed.optimizer),
            versions={name: metadata.version(name) for name in ("torch", "deepspeed")},
            files={name: (temporary / name).stat().st_size for name in names},
            digests=digests | dict(zip(own, computed, strict=True)),
        )
        (temporary / MANIFEST).write_text(saved.model_dump_json(indent=1), encoding="utf-8")
        flush(temporary)
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
        flush(path.parent)
        kept = [newest for newest, _ in complete(self.folder)[-self.config.checkpoint.keep_last :]]
        for other in self.folder.glob(f"{PREFIX}*"):
            if other not in kept:
                shutil.rmtree(other)

    def remove(self) -> None:
        """Remove all checkpoints of the arm, which is finished."""
        if self.metrics:
            shutil.rmtree(self.folder, ignore_errors=True)


def _names(folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]


def _copy_files(source: Path, target: Path) -> None:
    """Copy the files of a folder, except a manifest, subfolders and DeepSpeed's scripts."""
    for file in source.iterdir():
        if file.is_file() and file.name != MANIFEST and file.suffix != ".py":
            shutil.copyfile(file, target / file.name)
