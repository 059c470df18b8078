"""Saving and loading an arm's checkpoint, all ranks together: a folder that appears whole or not at all, the newest few kept."""

import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ift_scale.config import TrainConfig
from ift_scale.io.files import INCOMPLETE, flush, told_when_full
from ift_scale.io.manifests import MANIFEST
from ift_scale.train.engine import reshard, zero_config
from ift_scale.train.engine.checkpoint_manifest import (
    PREFIX,
    Progress,
    Saved,
    folder_of,
    latest,
    whole,
)
from ift_scale.train.engine.deepspeed import Engine
from ift_scale.train.job import ArmJob
from ift_scale.train.launch.control import Control

STATE = "state"


@dataclass
class Checkpoints:
    """One arm's checkpoints, as its ranks use them together. `rows`: rank 0's metrics file; it and what lies beside it (what was
    told of the arm so far) is kept in each checkpoint.
    """

    arm: ArmJob
    config: TrainConfig
    control: Control
    rows: Path | None

    @property
    def folder(self) -> Path:
        return folder_of(Path(self.arm.folder))

    def load(self, engine: Engine) -> Progress:
        """Bring a fresh engine to the newest checkpoint, where there is one; what was told up to it is there again."""
        # Rank 0 chooses, so that all ranks take the same one.
        found = self.control.gather(latest(self.arm) if self.rows else None)[0]
        if found is None:
            return Progress()
        path, saved = found
        same_ranks = (
            saved.world_size == engine.ranks.world_size or saved.zero_stage == 0
        )  # stage 0 saves everything once
        now = (
            self.config.zero_stage,
            self.config.offload,
            zero_config.optimizer_name(engine.deepspeed.optimizer),
        )
        if same_ranks and (saved.zero_stage, saved.offload, saved.optimizer) == now:
            loaded, _ = engine.deepspeed.load_checkpoint(str(path), tag=STATE)
            assert loaded is not None, path
        else:
            reshard.load(engine, path / STATE, saved.zero_stage, saved.world_size)
        if self.rows:
            _copy_files(path, self.rows.parent)
        return saved.progress.model_copy(update={"resumed": saved.progress.resumed + 1})

    def due(self, step: int, num_steps: int) -> bool:
        """Whether the settings want a checkpoint after `step` steps."""
        every = self.config.checkpoint.every
        return every > 0 and step % every == 0 and step < num_steps

    def save(self, engine: Engine, progress: Progress) -> None:
        """Every rank must call. EnvironmentProblem where the disk is full: older ones stay."""
        path = self.folder / f"{PREFIX}{progress.step}"
        temporary = path.with_name(f".{path.name}{INCOMPLETE}")
        with told_when_full(path):
            if self.rows:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            self.control.barrier()
            engine.deepspeed.save_checkpoint(str(temporary), tag=STATE, save_latest=False)
            flush(temporary)
            self.control.barrier()
            if self.rows:
                self._close(engine, temporary, path, progress)
        self.control.barrier()

    def _close(self, engine: Engine, temporary: Path, path: Path, progress: Progress) -> None:
        assert self.rows is not None
        _copy_files(self.rows.parent, temporary)
        files = [file for file in temporary.rglob("*") if file.is_file()]
        saved = Saved(
            progress=progress,
            key=self.arm.key,
            inputs=self.arm.inputs,
            zero_stage=int(self.config.zero_stage),
            offload=self.config.offload,
            world_size=engine.ranks.world_size,
            optimizer=zero_config.optimizer_name(engine.deepspeed.optimizer),
            versions={name: metadata.version(name) for name in ("torch", "deepspeed")},
            files={str(file.relative_to(temporary)): file.stat().st_size for file in files},
        )
        (temporary / MANIFEST).write_text(saved.model_dump_json(indent=1), encoding="utf-8")
        flush(temporary)
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
        flush(path.parent)
        kept = [newest for newest, _ in whole(self.folder)[-self.config.checkpoint.keep_last :]]
        for other in self.folder.glob(f"{PREFIX}*"):
            if other not in kept:
                shutil.rmtree(other)

    def remove(self) -> None:
        """The arm stands; rank 0 removes its checkpoints."""
        if self.rows:
            shutil.rmtree(self.folder, ignore_errors=True)


def _copy_files(source: Path, target: Path) -> None:
    """The plain files of a folder, but for a manifest."""
    for file in source.iterdir():
        if file.is_file() and file.name != MANIFEST:
            shutil.copyfile(file, target / file.name)
