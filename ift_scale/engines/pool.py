"""Places for engines: one a GPU or tensor-parallel group, each keeping its engine warm while weights change."""

import time
from collections.abc import Callable
from pathlib import Path

from ift_scale.config import EngineConfig
from ift_scale.engines.process import EngineDied, EngineProcess
from ift_scale.engines.protocol import EngineSpec
from ift_scale.errors import ConfigError, EnvironmentProblem
from ift_scale.io.progress import Bar, say
from ift_scale.ranks.environment import Ranks, own_devices


class Slot:
    """A place for one engine: started when first needed, given new weights in place, started again when it has died."""

    def __init__(self, start: Callable[[Path], EngineProcess], bar: Bar):
        self._start, self._bar = start, bar
        self._engine: EngineProcess | None = None
        self._loaded: Path | None = None
        self.killed = False
        self.seconds = {"engine_start": 0.0, "load_weights": 0.0}

    def taken_seconds(self) -> dict[str, float]:
        """Seconds of starts and loads since the last call."""
        taken, self.seconds = self.seconds, {"engine_start": 0.0, "load_weights": 0.0}
        return taken

    def serve(self, model_path: Path) -> EngineProcess:
        """The engine with the weights of `model_path`."""
        started = time.monotonic()
        if self._engine is not None and self._loaded != model_path:
            try:
                self._engine.load_weights(model_path)
                self.seconds["load_weights"] += time.monotonic() - started
            except EngineDied:
                raise
            except EnvironmentProblem as error:
                say(
                    f"the engine could not take new weights, so a new one is started: {str(error).splitlines()[0]}"
                )
                self.close()
        if self._engine is None:
            self._bar.note("starting the engine")
            started = time.monotonic()
            if self.killed:
                raise EngineDied("the run is being stopped")
            self._engine = self._start(
                model_path
            )  # there at once, so that it can be killed while it loads
            if self.killed:  # just now
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
        """End the engine at once; no other one is started here."""
        self.killed = True
        engine = self._engine
        if engine is not None:
            engine.kill()

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


def slots_for(
    config: EngineConfig, dtype: str, log: Path, ranks: Ranks | None, bar: Bar
) -> list[Slot]:
    """This process' slots: its share of the node's GPUs in groups of `tensor_parallel_size`; on a CPU, `num_engines` or one.

    None where it only leads other ranks.
    """
    if ranks is not None and ranks.engines_elsewhere is not None:
        return []
    size = config.tensor_parallel_size
    devices = own_devices(ranks, size)
    groups = [devices[start : start + size] for start in range(0, len(devices) - size + 1, size)]
    if devices and not groups:
        problem = f"*.tensor_parallel_size: {size} GPUs are needed and this process sees {len(devices)} ({', '.join(devices)})"
        raise ConfigError("settings", [problem + "; lower it, or start fewer ranks on the node"])
    count = config.num_engines or max(1, len(groups))
    if groups and count > len(groups):
        problem = f"*.num_engines: {count} engines of {size} GPUs do not fit on the {len(devices)} GPUs of this process"
        raise ConfigError("settings", [problem + "; lower it, or leave it out"])
    place = f"-rank{ranks.rank}" if ranks and ranks.world_size > 1 else ""

    def slot(number: int) -> Slot:
        path = log.with_name(f"{log.stem}{place}{f'-{number}' if count > 1 else ''}{log.suffix}")
        own = groups[number] if groups else ()

        def start(model_path: Path) -> EngineProcess:
            return EngineProcess(EngineSpec(str(model_path), dtype, config, devices=own), path)

        return Slot(start, bar)

    return [slot(number) for number in range(count)]
