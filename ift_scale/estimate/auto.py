"""Resolution of `auto`: the cheapest setting that fits according to the memory model.

Values set by the user are kept. The order, cheapest first (offload none, then optimizer, then all):

1. ZeRO-2 without recomputation.
2. ZeRO-2 with selective checkpointing. It recomputes norms, rotary embedding and SwiGLU but no
   matrix product, which costs a few per cent.
3. and 4. The same with ZeRO-3, which gathers every weight twice per micro-batch, while ZeRO-2
   gathers it once per step. Within a node, and over a fast network at thousands of tokens per
   micro-batch, most of it overlaps with computation.
5. and 6. ZeRO-2 and ZeRO-3 with full checkpointing, which recomputes every layer's forward pass: a
   third more work on any network.

Offload comes after all of these, because every step then waits for the host to update its part of
the weights. The order is reasoned, not measured; set the stage by hand on a slow network.

On a CPU the order is the same without offload. The limit is the node's memory: the bytes of all its
ranks against what is available.

Stages 0 and 1 are never chosen. In bfloat16, DeepSpeed 0.19.8 does not implement stage 0 with
float32 accumulation, and turns stage 1 into BF16_Optimizer, which holds 4 + 2 bytes of gradients
per parameter on every rank and overlaps nothing: stage 2 needs less memory and is no slower. On a
single rank stage 3 saves nothing unless the weights are offloaded, and is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ift_scale.config.train import TrainConfig
from ift_scale.errors import ConfigError, EnvironmentProblem
from ift_scale.estimate.activations import Checkpointing
from ift_scale.estimate.memory import GIB, Memory, Offload, Setting, Workload, estimate
from ift_scale.estimate.shape import ModelShape

_OFFLOADS: tuple[Offload, ...] = ("none", "optimizer", "all")
_STAGES_AND_CHECKPOINTING: tuple[tuple[int, Checkpointing], ...] = (
    (2, "none"),
    (2, "selective"),
    (3, "none"),
    (3, "selective"),
    (2, "full"),
    (3, "full"),
)


@dataclass(frozen=True)
class Option:
    """A setting, its memory, and whether it fits (None: the device's memory is unknown)."""

    setting: Setting
    memory: Memory
    fits: bool | None


@dataclass(frozen=True)
class Plan:
    """All options in order of cost, and the one to use, which is the first that fits."""

    work: Workload
    options: tuple[Option, ...]
    chosen: Option


def candidates(
    config: TrainConfig, world_size: int, on_gpu: bool = True, per_node: int = 8
) -> list[Setting]:
    """Returns the settings that the user leaves open, cheapest first.

    A stage 0 or 1 set by the user replaces stage 2. With ZeRO-3 over several whole nodes and
    `train.hpz: auto`, each setting is preceded by the same one with the weights held once per node,
    which sends less. On a CPU `auto` offloads nothing, because its memory is the host's. Raises
    ConfigError if the user's values exclude each other.
    """
    group = hpz_group(config, world_size, per_node)
    stage, offload, checkpointing = (
        config.zero_stage,
        config.offload,
        config.activation_checkpointing,
    )
    order = _STAGES_AND_CHECKPOINTING
    if stage != "auto":
        order = tuple((stage, how) for at, how in order if at == 2)
    settings = []
    offloads = _OFFLOADS if on_gpu else _OFFLOADS[:1]
    for moved in offloads if offload == "auto" else (offload,):
        for at, how in order:
            # Compiled layers hide their operations from selective checkpointing, and ZeRO-3 has
            # hooks inside the layers.
            if config.compile and (how == "selective" or at == 3):
                continue
            if isinstance(config.hpz, int) and (at != 3 or moved == "all"):
                continue
            possible = (
                at == 3 if moved == "all" else at > 0 or moved == "none"
            ) and checkpointing in ("auto", how)
            useless = stage == "auto" and at == 3 and world_size == 1 and moved != "all"
            if possible and not useless:
                grouped = group if at == 3 and moved != "all" else 1
                sizes = [grouped] if grouped == 1 or config.hpz == group else [grouped, 1]
                settings += [Setting(at, moved, how, size) for size in sizes]
    if not settings:
        needs = "ZeRO-3, which partitions the weights" if offload == "all" else "ZeRO-1, 2 or 3"
        problem = f"train.offload: {offload} needs {needs} (train.zero_stage = {stage})"
        raise ConfigError("settings", [f"{problem}; set one of them to auto"])
    return settings


def hpz_group(config: TrainConfig, world_size: int, gpus_per_node: int) -> int:
    """Returns the number of ranks that share a second copy of the weights, 1 for none.

    `auto` uses a node's ranks if there are several nodes of equal size. DeepSpeed 0.19.8 supports
    this in ZeRO-3 only, in equal groups of consecutive ranks. With offloaded weights the copies
    would be in host memory too, which the configuration rejects. Raises ConfigError for an
    impossible number.
    """
    if isinstance(config.hpz, int):
        if world_size % config.hpz or world_size == config.hpz:
            raise ConfigError(
                "settings",
                [
                    f"train.hpz: {config.hpz} must divide the number of ranks and be less than it "
                    f"({world_size} ranks); set it to auto"
                ],
            )
        return config.hpz
    several = 1 < gpus_per_node < world_size and world_size % gpus_per_node == 0
    return gpus_per_node if config.hpz == "auto" and several else 1


def whole_nodes(hosts: Sequence[str]) -> bool:
    """True if the ranks, given by their hosts in order, fill nodes of equal size one by one."""
    size = hosts.count(hosts[0])
    nodes = [set(hosts[start : start + size]) for start in range(0, len(hosts), size)]
    return (
        len(hosts) % size == 0
        and all(len(node) == 1 for node in nodes)
        and len(nodes) == len(set(hosts))
    )


@dataclass(frozen=True)
class Room:
    """Available memory. `gpu_bytes`: of one GPU, None for training on a CPU. `host_bytes`: of a
    node's memory for all of its `per_node` ranks together, None if unknown."""

    gpu_bytes: float | None
    world_size: int
    per_node: int
    host_bytes: float | None = None

    @property
    def on_gpu(self) -> bool:
        return self.gpu_bytes is not None

    @property
    def ranks_here(self) -> int:
        """Number of ranks that share a node's memory."""
        return min(self.world_size, self.per_node)

    def host_need(self, memory: Memory) -> float:
        """Returns the bytes that a node's ranks need of its memory together."""
        return self.ranks_here * (memory.host if self.on_gpu else memory.total + memory.host)

    def fits(self, memory: Memory) -> bool | None:
        """True if every rank's memory fits; None if the available memory is unknown."""
        if self.gpu_bytes is None and self.host_bytes is None:
            return None
        host_fits = self.host_bytes is None or self.host_need(memory) <= self.host_bytes
        return host_fits and (self.gpu_bytes is None or memory.total <= self.gpu_bytes)


def weigh(shape: ModelShape, room: Room, config: TrainConfig) -> Plan:
    """Returns every candidate with its memory.

    The chosen one is the first that fits, or else the one that needs the least memory.
    """
    work = Workload.of(config, shape, room.world_size, room.on_gpu)
    options = []
    for setting in candidates(config, room.world_size, room.on_gpu, room.per_node):
        memory = estimate(work, setting)
        options.append(Option(setting, memory, room.fits(memory)))
    if options[0].fits is None:
        return Plan(work, tuple(options), options[0])
    least = min(
        options, key=lambda option: option.memory.total + (0 if room.on_gpu else option.memory.host)
    )
    return Plan(work, tuple(options), next((option for option in options if option.fits), least))


def choose(shape: ModelShape, room: Room, config: TrainConfig) -> Plan:
    """Returns the same as `weigh`. Raises EnvironmentProblem with remedies if nothing fits."""
    plan = weigh(shape, room, config)
    if plan.chosen.fits is False:
        raise EnvironmentProblem(nothing_fits(plan, room, config))
    return plan


def nothing_fits(plan: Plan, room: Room, config: TrainConfig) -> str:
    """Returns a message with the missing memory and remedies, if nothing fits."""
    return (
        f"no setting fits {plan.work.shape.parameters / 1e9:.2f}e9 parameters on "
        f"{room.world_size} {'GPUs' if room.on_gpu else 'ranks on CPUs'}, with "
        f"{plan.work.tokens:,} tokens per micro-batch: {_missing(plan.chosen, room)}. One of these "
        f"helps: {'; '.join(_remedies(room, config))}."
    )


def _missing(least: Option, room: Room) -> str:
    memory, setting = least.memory, least.setting
    need, have = memory.total / GIB, (room.gpu_bytes or 0.0) / GIB
    if not room.on_gpu:
        return f"the lightest ({setting}) needs {_on_host(memory, room)}"
    if need <= have:
        host = (room.host_bytes or 0.0) / room.ranks_here / GIB
        return (
            f"{setting} needs {memory.host / GIB:.1f} GiB of host memory per GPU, more than the "
            f"{host:.1f} GiB available"
        )
    return (
        f"the lightest ({setting}) needs {need:.1f} GiB per GPU, {need - have:.1f} GiB more than "
        f"its {have:.1f} GiB"
    )


def _remedies(room: Room, config: TrainConfig) -> list[str]:
    remedies = [
        f"train on more {'GPUs' if room.on_gpu else 'nodes, or with fewer ranks on each'}",
        "lower train.tokens_per_micro_batch (and train.max_length)",
    ]
    if room.on_gpu and config.offload not in ("auto", "all"):
        remedies.append("set train.offload to auto")
    if config.activation_checkpointing in ("none", "selective"):
        remedies.append("set train.activation_checkpointing to auto")
    if config.zero_stage not in ("auto", 3):
        remedies.append("set train.zero_stage to auto")
    return remedies


def _on_host(memory: Memory, room: Room) -> str:
    need, have = room.host_need(memory) / GIB, (room.host_bytes or 0.0) / GIB
    each = (memory.total + memory.host) / GIB
    return (
        f"{each:.2f} GiB per rank, {need:.2f} of a node's {have:.2f} GiB for its "
        f"{room.ranks_here} ranks"
    )


def summary(plan: Plan, room: Room) -> str:
    """Returns one line with the setting chosen on CPUs and the reason."""
    first, chosen = plan.options[0], plan.chosen
    text = f"{chosen.setting}: {_on_host(chosen.memory, room)}"
    if first is not chosen:
        each = (first.memory.total + first.memory.host) / GIB
        text += f"; {first.setting} would need {each:.2f} GiB per rank, which does not fit"
    return text


def resolve(
    config: TrainConfig, shape: ModelShape | None, room: Room, tokens: int | None = None
) -> tuple[TrainConfig, str | None]:
    """Returns the configuration with every `auto` of stage, offload, hpZ and activation
    checkpointing resolved, and a log line about the choice or None.

    Without a shape, which some classes do not have, the memory is unknown: each `auto` then becomes
    what needs least without offload.
    `tokens`: maximum tokens of a micro-batch of the arms' sets, if that is below the limit. Raises
    errors like `choose`. A setting that is entirely set by hand is not checked against the memory
    model, which may be wrong.
    """
    if shape is None:
        setting = _least(config)
        return _with(config, setting), f"{setting}: the memory that the model needs is unknown"
    if "auto" not in (config.zero_stage, config.offload, config.activation_checkpointing):
        return _with(config, weigh(shape, room, config).chosen.setting), None
    weighed = (
        config if tokens is None else config.model_copy(update={"tokens_per_micro_batch": tokens})
    )
    plan = choose(shape, room, weighed)
    line = None if room.on_gpu or room.host_bytes is None else summary(plan, room)
    return _with(config, plan.chosen.setting), line


def _least(config: TrainConfig) -> Setting:
    """Returns the setting with each `auto` replaced by what needs least without offload."""
    return Setting(
        zero_stage=3 if config.zero_stage == "auto" else config.zero_stage,
        offload="none" if config.offload == "auto" else config.offload,
        checkpointing="full"
        if config.activation_checkpointing == "auto"
        else config.activation_checkpointing,
        hpz=config.hpz if isinstance(config.hpz, int) else 1,
    )


def _with(config: TrainConfig, setting: Setting) -> TrainConfig:
    values = {
        "zero_stage": setting.zero_stage,
        "offload": setting.offload,
        "activation_checkpointing": setting.checkpointing,
        "hpz": setting.hpz if setting.hpz > 1 else "off",
    }
    return config.model_copy(update=values)
