"""The memory part of `ift-scale plan`: what each setting takes a GPU, which one `auto` takes, for any model config and cluster."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ift_scale.config import TrainConfig
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.estimate.auto import Option, Plan, Room, nothing_fits, summary, weigh
from ift_scale.estimate.memory import GIB, Memory
from ift_scale.estimate.shape import ModelShape
from ift_scale.io.progress import say
from ift_scale.plan.text import show
from ift_scale.ranks.environment import has_gpu

GB = 10**9
# Beside the source: the product is run from a checkout, where its configurations and launch scripts are too.
PRESETS = Path(__file__).parent.parent.parent / "configs" / "models"


@dataclass(frozen=True)
class Cluster:
    """What a run would have. `gpu_bytes` of one GPU; None is training on a CPU, with a rank in each "GPU"'s place.

    `host_bytes`: what is left of a node's memory, where it is known.
    """

    gpu_bytes: float | None
    num_gpus: int
    gpus_per_node: int
    host_bytes: float | None = None

    @property
    def room(self) -> Room:
        return Room(self.gpu_bytes, self.num_gpus, self.gpus_per_node, self.host_bytes)

    def __str__(self) -> str:
        if self.gpu_bytes is None:
            return f"{self.num_gpus} ranks on a CPU"
        return f"{self.num_gpus} x {self.gpu_bytes / GB:.0f} GB ({self.gpu_bytes / GIB:.1f} GiB)"


def gpu_bytes_here() -> float | None:
    """Memory of this machine's first GPU, None where there is none."""
    if not has_gpu():
        return None
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory)


def read_shape(model: str) -> ModelShape:
    """The shape of a model folder, a config.json or a preset's bare name. DataError where it is none of them."""
    path = Path(model)
    if path.is_dir():
        path /= "config.json"
    elif not path.is_file():
        presets = sorted(file.stem for file in PRESETS.glob("*.json"))
        path = PRESETS / f"{model}.json"
        if model not in presets:
            raise DataError(
                Place(model),
                "is no model folder, config.json or preset",
                did_you_mean(model, presets),
            )
    return ModelShape.from_config(_read(path), path)


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            Place(path), "is missing", "Give a folder as transformers' save_pretrained writes it"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            Place(path), f"not valid JSON: {error}", "Give a Hugging Face config.json"
        ) from error
    if not isinstance(config, dict):
        raise DataError(Place(path), "is no JSON object", "Give a Hugging Face config.json")
    return config


def print_memory(shape: ModelShape, train: TrainConfig, cluster: Cluster) -> None:
    """Print the table of all settings that `train` leaves open, and the line that names the one to use."""
    plan = weigh(shape, cluster.room, train)
    precision = "bfloat16, float32 master weights" if plan.work.mixed else "float32"
    say(
        f"memory     {shape.parameters:,} parameters on {cluster}, {precision}, {plan.work.tokens} tokens a micro-batch; GiB:"
    )
    show(memory_table(plan))
    say(verdict(plan, train, cluster))


def verdict(plan: Plan, train: TrainConfig, cluster: Cluster) -> str:
    """One line: the setting and what it takes, or what is missing."""
    if plan.chosen.fits is False:
        return f"setting    {nothing_fits(plan, cluster.room, train)}"
    if cluster.gpu_bytes is None and cluster.host_bytes is not None:
        return f"setting    {summary(plan, cluster.room)}"
    memory = plan.chosen.memory
    ranks_here = min(cluster.num_gpus, cluster.gpus_per_node)
    host = (
        f", {ranks_here * memory.host / GIB:.0f} GiB of host memory a node" if memory.host else ""
    )
    return f"setting    {plan.chosen.setting}: {_gib(memory.total)} GiB a rank{host}"


def memory_table(plan: Plan) -> Table:
    """GiB a rank for each setting, cheapest first; with offload only where nothing else fits, or where it was asked for."""
    without = [option for option in plan.options if option.setting.offload == "none"]
    enough = any(option.fits is not False for option in without)
    table = Table(box=None, pad_edge=False)
    for name in ("ZeRO", "recompute", "offload"):
        table.add_column(name)
    for name in (
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "loss",
        "backward",
        "step",
        "reserve",
        "total",
        "host",
    ):
        table.add_column(name, justify="right")
    table.add_column("")
    for option in without if enough else plan.options:
        table.add_row(*_row(option, option is plan.chosen))
    return table


def _row(option: Option, is_chosen: bool) -> list[str]:
    fits = {True: "fits", False: "too much", None: ""}[option.fits]
    mark = " <- chosen" if is_chosen and option.fits is not False else ""
    setting = option.setting
    numbers = [_gib(part) for part in parts(option.memory)]
    return [setting.stage, setting.checkpointing, setting.offload, *numbers, f"{fits}{mark}"]


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}" if size == 0 or size >= GIB else f"{size / GIB:.3f}"


def parts(memory: Memory) -> tuple[float, ...]:
    """Fragmentation and context are one column: what no tensor holds."""
    states = (memory.weights, memory.gradients, memory.optimizer)
    moments = (memory.activations, memory.loss, memory.backward, memory.step)
    return (*states, *moments, memory.fragmentation + memory.context, memory.total, memory.host)
