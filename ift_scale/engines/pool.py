"""Engine workers: one per GPU or tensor-parallel group, kept warm while weights change."""

import time
from collections.abc import Callable
from pathlib import Path

from ift_scale.config import ModelConfig
from ift_scale.config.engines import EngineConfig
from ift_scale.engines import coverage
from ift_scale.engines.process import EngineDied, EngineProcess
from ift_scale.engines.protocol import EngineSpec
from ift_scale.errors import ConfigError, EnvironmentProblem
from ift_scale.io.progress import Bar, say
from ift_scale.ranks.environment import Ranks, own_devices


class EngineWorker:
    """Owns one engine: starts it on first use, swaps its weights, restarts it after a death."""

    def __init__(self, start: Callable[[Path], EngineProcess], bar: Bar):
        self._start, self._bar = start, bar
        self._engine: EngineProcess | None = None
        self._loaded: Path | None = None
        self.killed = False
        self.seconds = {"engine_start": 0.0, "load_weights": 0.0}

    def pop_seconds(self) -> dict[str, float]:
        """Returns and resets the seconds spent on starts and weight loads since the last call."""
        taken, self.seconds = self.seconds, {"engine_start": 0.0, "load_weights": 0.0}
        return taken

    def load(self, model_path: Path) -> EngineProcess:
        """Returns the engine with the weights of `model_path`, starting it if needed.

        Raises EngineDied or EnvironmentProblem if the engine does not start.
        """
        started = time.monotonic()
        if self._engine is not None and self._loaded != model_path:
            try:
                self._engine.load_weights(model_path)
                self.seconds["load_weights"] += time.monotonic() - started
            except EngineDied:
                raise
            except EnvironmentProblem as error:
                reason = str(error).splitlines()[0]
                say(f"the engine failed to load new weights; starting a new one: {reason}")
                self.close()
        if self._engine is None:
            self._bar.note("starting the engine")
            started = time.monotonic()
            if self.killed:
                raise EngineDied("the run is being stopped")
            # The process exists from here on, so `kill` can end it while it loads.
            self._engine = self._start(model_path)
            if self.killed:  # between the check above and the start
                self._engine.kill()
            try:
                self._engine.ready()
            except BaseException:
                self._engine = None
                raise
            self.seconds["engine_start"] += time.monotonic() - started
            self._bar.note("")
        self._loaded = model_path
        return self._engine

    def kill(self) -> None:
        """Kills the engine; this worker starts no other one."""
        self.killed = True
        engine = self._engine
        if engine is not None:
            engine.kill()

    def close(self) -> None:
        """Ends the engine; the next `load` starts a new one."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


def engine_workers(
    config: EngineConfig, model: ModelConfig, log: Path, ranks: Ranks | None, bar: Bar
) -> list[EngineWorker]:
    """Returns this process's workers for models that are loaded with the settings `model`.

    On GPUs there is one per group of `tensor_parallel_size` of this process's GPUs; on CPUs there
    are `num_engines`, by default one. The list is empty if the engines run on other ranks. Raises
    ConfigError if the GPUs do not suffice.
    """
    if ranks is not None and ranks.engines_elsewhere is not None:
        return []
    size = config.tensor_parallel_size
    devices = own_devices(ranks, size)
    groups = [devices[start : start + size] for start in range(0, len(devices) - size + 1, size)]
    if devices and not groups:
        problem = f"*.tensor_parallel_size: needs {size} GPUs, and this process sees {len(devices)}"
        problem += f" ({', '.join(devices)})"
        raise ConfigError("settings", [problem + "; lower it, or start fewer ranks on the node"])
    count = config.num_engines or max(1, len(groups))
    if groups and count > len(groups):
        problem = f"*.num_engines: {count} engines of {size} GPUs do not fit on the {len(devices)}"
        problem += " GPUs of this process"
        raise ConfigError("settings", [problem + "; lower it, or leave it out"])
    rank = f"-rank{ranks.rank}" if ranks and ranks.world_size > 1 else ""

    def worker(number: int) -> EngineWorker:
        path = log.with_name(f"{log.stem}{rank}{f'-{number}' if count > 1 else ''}{log.suffix}")
        own = groups[number] if groups else ()

        def start(model_path: Path) -> EngineProcess:
            trusted = model.trust_remote_code
            if (
                config.engine == "auto"
                and devices
                and coverage.reason_against_vllm(model_path, trusted)
            ):
                say(coverage.describe(model_path, True, trusted))
            spec = EngineSpec(
                str(model_path),
                model.dtype,
                config,
                devices=own,
                trust_remote_code=trusted,
            )
            return EngineProcess(spec, path)

        return EngineWorker(start, bar)

    return [worker(number) for number in range(count)]
