"""The memory part of `ift-scale plan`: each setting's memory per GPU, and the choice of `auto`.

For any model config and cluster.
"""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ift_scale.config.train import TrainConfig
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.estimate.auto import Option, Plan, Room, nothing_fits, summary, weigh
from ift_scale.estimate.memory import GIB, Memory
from ift_scale.estimate.shape import ModelShape
from ift_scale.estimate.shape_of import shape_of
from ift_scale.io.progress import say
from ift_scale.models.config_file import read_config_file
from ift_scale.plan.text import show
from ift_scale.ranks.environment import has_gpu
from ift_scale.train.frozen import with_frozen

GB = 10**9
# Next to the source: the project runs from a checkout, which also has the launch scripts.
PRESETS = Path(__file__).parent.parent.parent / "configs" / "models"


@dataclass(frozen=True)
class Cluster:
    """The devices of a run.

    `gpu_bytes`: memory of one GPU; None for training on a CPU, where each "GPU" is a rank.
    `host_bytes`: available memory of a node, None if unknown.
    """

    gpu_bytes: float | None
    num_gpus: int
    gpus_per_node: int
    host_bytes: float | None = None

    @property
    def room(self) -> Room:
        """The same for the memory model."""
        return Room(self.gpu_bytes, self.num_gpus, self.gpus_per_node, self.host_bytes)

    def __str__(self) -> str:
        if self.gpu_bytes is None:
            return f"{self.num_gpus} ranks on a CPU"
        return f"{self.num_gpus} x {self.gpu_bytes / GB:.0f} GB ({self.gpu_bytes / GIB:.1f} GiB)"


def gpu_bytes_here() -> float | None:
    """Returns the memory of this machine's first GPU, None without a GPU."""
    if not has_gpu():
        return None
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory)


def config_path(model: str) -> Path:
    """Returns the config.json of a model folder, a config.json itself or a preset's bare name.

    Raises DataError if there is none of them.
    """
    path = Path(model)
    if path.is_dir():
        path /= "config.json"
    elif not path.is_file():
        presets = sorted(file.stem for file in PRESETS.glob("*.json"))
        path = PRESETS / f"{model}.json"
        if model not in presets:
            raise DataError(
                Place(model),
                "not a model folder, config.json or preset",
                did_you_mean(model, presets),
            )
    return path


def read_shape(
    model: str, train: TrainConfig | None = None, trust_remote_code: bool = False
) -> ModelShape:
    """Returns the shape of a model named as for `config_path`; see `shape_of`.

    With settings, the part that they freeze is printed, and frozen in the shape.
    """
    path = config_path(model)
    shape = shape_of(read_config_file(path), path, trust_remote_code)
    frozen, line = with_frozen(shape, path, train or TrainConfig(), trust_remote_code)
    if line is not None:
        say(f"freeze     {line}")
    assert frozen is not None
    return frozen


def print_memory(shape: ModelShape, train: TrainConfig, cluster: Cluster) -> None:
    """Prints the table of all settings that `train` leaves open, and the one to use."""
    plan = weigh(shape, cluster.room, train)
    precision = "bfloat16, float32 master weights" if plan.work.mixed else "float32"
    say(
        f"memory     {shape.parameters:,} parameters on {cluster}, {precision}, "
        f"{plan.work.tokens} tokens per micro-batch; GiB:"
    )
    show(memory_table(plan))
    say(verdict(plan, train, cluster))


def verdict(plan: Plan, train: TrainConfig, cluster: Cluster) -> str:
    """Returns one line with the setting and its memory, or with what is missing."""
    if plan.chosen.fits is False:
        return f"setting    {nothing_fits(plan, cluster.room, train)}"
    if cluster.gpu_bytes is None and cluster.host_bytes is not None:
        return f"setting    {summary(plan, cluster.room)}"
    memory = plan.chosen.memory
    ranks_here = min(cluster.num_gpus, cluster.gpus_per_node)
    host = (
        f", {ranks_here * memory.host / GIB:.0f} GiB of host memory per node" if memory.host else ""
    )
    return f"setting    {plan.chosen.setting}: {_gib(memory.total)} GiB per rank{host}"


def memory_table(plan: Plan) -> Table:
    """Returns GiB per rank for each setting, cheapest first.

    Settings with offload are listed only if nothing else fits or if the user requested offload.
    """
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
    """Returns the table's columns. Fragmentation and context, which no tensor holds, are one."""
    states = (memory.weights, memory.gradients, memory.optimizer)
    moments = (memory.activations, memory.loss, memory.backward, memory.step)
    return (*states, *moments, memory.fragmentation + memory.context, memory.total, memory.host)
