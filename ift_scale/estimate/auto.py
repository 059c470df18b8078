"""`auto`: the first setting, in order of what it costs, that the memory model says fits. What the user set stays as it is.

The order, cheapest first (offload none, then optimizer, then all):

1. ZeRO-2 without recomputation; 2. with selective checkpointing, which computes norms, rotary embedding and SwiGLU again: no matrix
product, so a few per cent; 3. and 4. the same with ZeRO-3, which gathers every weight twice a micro-batch where ZeRO-2 gathers it
once a step; within a node, and over a fast network at thousands of tokens a micro-batch, most of that hides behind computing;
5. ZeRO-2 and 6. ZeRO-3 with full checkpointing, which computes every layer's forward pass again: a third more work whatever the
network. Offload comes after all of these, since every step then waits for the host to update its part of the weights. The order is
reasoned, not measured; a run on a slow network may set the stage by hand.

On a CPU the order is the same, without offload, and what counts is a node's memory: all of its ranks' bytes against what is left.

Stages 0 and 1 are never chosen. In bfloat16 DeepSpeed 0.19.8 does not implement stage 0 with float32 accumulation, and turns stage
1 into BF16_Optimizer, which holds 4 + 2 bytes a parameter of gradients on every rank and overlaps nothing: stage 2 is lighter and
no slower. On one rank stage 3 saves nothing unless the weights are offloaded, and is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ift_scale.config import TrainConfig
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
    """A setting, what it takes, and whether that fits (None: the device's memory is not known)."""

    setting: Setting
    memory: Memory
    fits: bool | None


@dataclass(frozen=True)
class Plan:
    """All options in order of cost, and the one to use: the first that fits."""

    work: Workload
    options: tuple[Option, ...]
    chosen: Option


def candidates(
    config: TrainConfig, world_size: int, on_gpu: bool = True, per_node: int = 8
) -> list[Setting]:
    """The settings that the user's own leave open, cheapest first. A CPU offloads nothing by itself: its memory is the host's.

    ConfigError if their own cannot go together. A stage 0 or 1 that they set takes stage 2's place. With ZeRO-3 over several whole
    nodes, `train.hpz: auto` puts a setting that holds the weights once per node before the same one without: it sends less.
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
    found = []
    offloads = _OFFLOADS if on_gpu else _OFFLOADS[:1]
    for moved in offloads if offload == "auto" else (offload,):
        for at, how in order:
            if config.compile and (how == "selective" or at == 3):
                continue  # a compiled layer shows the checkpoint none of its operations; ZeRO-3's hooks lie inside it
            if isinstance(config.hpz, int) and (at != 3 or moved == "all"):
                continue
            possible = (
                at == 3 if moved == "all" else at > 0 or moved == "none"
            ) and checkpointing in ("auto", how)
            idle = stage == "auto" and at == 3 and world_size == 1 and moved != "all"
            if possible and not idle:
                grouped = group if at == 3 and moved != "all" else 1
                sizes = [grouped] if grouped == 1 or config.hpz == group else [grouped, 1]
                found += [Setting(at, moved, how, size) for size in sizes]
    if not found:
        reason = (
            "needs ZeRO-3, where weights are sharded"
            if offload == "all"
            else "needs ZeRO-1, 2 or 3"
        )
        raise ConfigError(
            "settings",
            [
                f"train.offload: {offload} {reason} (train.zero_stage = {stage}); set one of them to auto"
            ],
        )
    return found


def hpz_group(config: TrainConfig, world_size: int, gpus_per_node: int) -> int:
    """Ranks that hold the weights among them a second time, 1 for none. ConfigError where a set number is impossible.

    `auto` takes a node's ranks, where there are several nodes of as many. DeepSpeed 0.19.8 holds copies in ZeRO-3 only, in equal
    groups of consecutive ranks. With offloaded weights the copies would be in host memory too; the configuration refuses that.
    """
    if isinstance(config.hpz, int):
        if world_size % config.hpz or world_size == config.hpz:
            problem = f"train.hpz: {config.hpz} must divide the number of ranks and be less than it ({world_size} ranks)"
            raise ConfigError("settings", [f"{problem}; set it to auto"])
        return config.hpz
    several = 1 < gpus_per_node < world_size and world_size % gpus_per_node == 0
    return gpus_per_node if config.hpz == "auto" and several else 1


def whole_nodes(hosts: Sequence[str]) -> bool:
    """True if the ranks, given by their hosts in their order, fill one equal node after another."""
    size = hosts.count(hosts[0])
    nodes = [set(hosts[start : start + size]) for start in range(0, len(hosts), size)]
    return (
        len(hosts) % size == 0
        and all(len(node) == 1 for node in nodes)
        and len(nodes) == len(set(hosts))
    )


@dataclass(frozen=True)
class Room:
    """What there is for the ranks. `gpu_bytes`: of one GPU; None is training on a CPU. `host_bytes`: of a node's memory, for all of
    its `per_node` ranks together; None where it is not known."""

    gpu_bytes: float | None
    world_size: int
    per_node: int
    host_bytes: float | None = None

    @property
    def on_gpu(self) -> bool:
        return self.gpu_bytes is not None

    @property
    def ranks_here(self) -> int:
        """Ranks that share a node's memory."""
        return min(self.world_size, self.per_node)

    def host_need(self, memory: Memory) -> float:
        """Bytes that a node's ranks take of its memory together."""
        return self.ranks_here * (memory.host if self.on_gpu else memory.total + memory.host)

    def fits(self, memory: Memory) -> bool | None:
        if self.gpu_bytes is None and self.host_bytes is None:
            return None
        host_fits = self.host_bytes is None or self.host_need(memory) <= self.host_bytes
        return host_fits and (self.gpu_bytes is None or memory.total <= self.gpu_bytes)


def weigh(shape: ModelShape, room: Room, config: TrainConfig) -> Plan:
    """Every candidate with what it takes. The chosen one is the first that fits, where none does the one that takes least."""
    work = Workload.of(config, shape, room.world_size, room.on_gpu)
    found = []
    for setting in candidates(config, room.world_size, room.on_gpu, room.per_node):
        memory = estimate(work, setting)
        found.append(Option(setting, memory, room.fits(memory)))
    if found[0].fits is None:
        return Plan(work, tuple(found), found[0])
    least = min(
        found, key=lambda option: option.memory.total + (0 if room.on_gpu else option.memory.host)
    )
    return Plan(work, tuple(found), next((option for option in found if option.fits), least))


def choose(shape: ModelShape, room: Room, config: TrainConfig) -> Plan:
    """As `weigh`. EnvironmentProblem where nothing fits: by how much, and what to change."""
    plan = weigh(shape, room, config)
    if plan.chosen.fits is False:
        raise EnvironmentProblem(nothing_fits(plan, room, config))
    return plan


def nothing_fits(plan: Plan, room: Room, config: TrainConfig) -> str:
    """What is missing, and what would help."""
    least, smaller = plan.chosen, "lower train.tokens_per_micro_batch (and train.max_length)"
    remedies = [
        f"train on more {'GPUs' if room.on_gpu else 'nodes, or with fewer ranks on each'}",
        smaller,
    ]
    if room.on_gpu and config.offload not in ("auto", "all"):
        remedies.append("set train.offload to auto")
    if config.activation_checkpointing in ("none", "selective"):
        remedies.append("set train.activation_checkpointing to auto")
    if config.zero_stage not in ("auto", 3):
        remedies.append("set train.zero_stage to auto")
    need, have = least.memory.total / GIB, (room.gpu_bytes or 0.0) / GIB
    if not room.on_gpu:
        problem = f"the lightest ({least.setting}) needs {_on_host(least.memory, room)}"
    elif need <= have:
        problem = f"{least.setting} would need {least.memory.host / GIB:.1f} GiB of host memory for each GPU, more than there is"
    else:
        problem = f"the lightest ({least.setting}) needs {need:.1f} GiB a GPU, {need - have:.1f} GiB more than its {have:.1f} GiB"
    parameters, devices = (
        f"{plan.work.shape.parameters / 1e9:.2f}e9 parameters",
        "GPUs" if room.on_gpu else "ranks on CPUs",
    )
    return (
        f"no setting fits {parameters} on {room.world_size} {devices}, with {plan.work.tokens:,} tokens a micro-batch: {problem}. "
        f"One of these helps: {'; '.join(remedies)}."
    )


def _on_host(memory: Memory, room: Room) -> str:
    need, have = room.host_need(memory) / GIB, (room.host_bytes or 0.0) / GIB
    each = (memory.total + memory.host) / GIB
    return f"{each:.2f} GiB a rank, {need:.2f} of a node's {have:.2f} GiB for its {room.ranks_here} ranks"


def told(plan: Plan, room: Room) -> str:
    """What was chosen on CPUs and why, in a line."""
    first, chosen = plan.options[0], plan.chosen
    text = f"{chosen.setting}: {_on_host(chosen.memory, room)}"
    if first is not chosen:
        each = (first.memory.total + first.memory.host) / GIB
        text += f"; {first.setting} would take {each:.2f} GiB a rank, which does not fit"
    return text


def resolve(
    config: TrainConfig, shape: ModelShape, room: Room, tokens: int | None = None
) -> tuple[TrainConfig, str | None]:
    """(the configuration with values for every `auto` of stage, offload and activation checkpointing, what to say of them).

    `tokens`: most that a micro-batch of the arms' sets has, where that is less than the cap. Errors as in `choose`; what is wholly
    set by hand is not held against the memory model, which may err.
    """
    if "auto" not in (config.zero_stage, config.offload, config.activation_checkpointing):
        return _with(config, weigh(shape, room, config).chosen.setting), None
    weighed = (
        config if tokens is None else config.model_copy(update={"tokens_per_micro_batch": tokens})
    )
    plan = choose(shape, room, weighed)
    said = None if room.on_gpu or room.host_bytes is None else told(plan, room)
    return _with(config, plan.chosen.setting), said


def _with(config: TrainConfig, setting: Setting) -> TrainConfig:
    values = {
        "zero_stage": setting.zero_stage,
        "offload": setting.offload,
        "activation_checkpointing": setting.checkpointing,
        "hpz": setting.hpz if setting.hpz > 1 else "off",
    }
    return config.model_copy(update=values)
