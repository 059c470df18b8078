"""`auto`: the first setting, in order of what it costs, that the memory model says fits. What the user set stays as it is.

The order, cheapest first (offload none, then optimizer, then all):

1. ZeRO-2 without recomputation; 2. with selective checkpointing, which computes norms, rotary embedding and SwiGLU again: no matrix
product, so a few per cent; 3. and 4. the same with ZeRO-3, which gathers every weight twice a micro-batch where ZeRO-2 gathers it
once a step; within a node, and over a fast network at thousands of tokens a micro-batch, most of that hides behind computing;
5. ZeRO-2 and 6. ZeRO-3 with full checkpointing, which computes every layer's forward pass again: a third more work whatever the
network. Offload comes after all of these, since every step then waits for the host to update its part of the weights. The order is
reasoned, not measured; a run on a slow network may set the stage by hand.

Stages 0 and 1 are never chosen. In bfloat16 DeepSpeed 0.19.8 does not implement stage 0 with float32 accumulation, and turns stage
1 into BF16_Optimizer, which holds 4 + 2 bytes a parameter of gradients on every rank and overlaps nothing: stage 2 is lighter and
no slower. On one rank stage 3 saves nothing unless the weights are offloaded, and is left out.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ift_scale.config import TrainConfig
from ift_scale.errors import ConfigError, EnvironmentProblem
from ift_scale.train.activations import Checkpointing
from ift_scale.train.memory import GIB, Memory, Offload, Setting, Workload, estimate
from ift_scale.train.shape import ModelShape

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


def candidates(config: TrainConfig, world_size: int, gpus_per_node: int = 8) -> list[Setting]:
    """The settings that the user's own leave open, cheapest first.

    ConfigError if their own cannot go together. A stage 0 or 1 that they set takes stage 2's place. With ZeRO-3 over several whole
    nodes, `train.hpz: auto` puts a setting that holds the weights once per node before the same one without: it sends less.
    """
    group = hpz_group(config, world_size, gpus_per_node)
    stage, offload, checkpointing = config.zero_stage, config.offload, config.activation_checkpointing
    order = _STAGES_AND_CHECKPOINTING
    if stage != "auto":
        order = tuple((stage, how) for at, how in order if at == 2)
    found = []
    for moved in _OFFLOADS if offload == "auto" else (offload,):
        for at, how in order:
            if config.compile and (how == "selective" or at == 3):
                continue  # a compiled layer shows the checkpoint none of its operations; ZeRO-3's hooks lie inside it
            if isinstance(config.hpz, int) and (at != 3 or moved == "all"):
                continue
            possible = (at == 3 if moved == "all" else at > 0 or moved == "none") and checkpointing in ("auto", how)
            idle = stage == "auto" and at == 3 and world_size == 1 and moved != "all"
            if possible and not idle:
                grouped = group if at == 3 and moved != "all" else 1
                sizes = [grouped] if grouped == 1 or config.hpz == group else [grouped, 1]
                found += [Setting(at, moved, how, size) for size in sizes]
    if not found:
        reason = "needs ZeRO-3, where weights are sharded" if offload == "all" else "needs ZeRO-1, 2 or 3"
        raise ConfigError("settings", [f"train.offload: {offload} {reason} (train.zero_stage = {stage}); set one of them to auto"])
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


def whole_nodes(places: Sequence[tuple[int, int]]) -> bool:
    """True if the ranks, given in their order by (rank on its node, ranks on its node), fill one equal node after another."""
    return all(local == rank % size and size == places[0][1] for rank, (local, size) in enumerate(places))


def host_memory() -> float:
    """Bytes of this node's memory."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def weigh(
    shape: ModelShape,
    gpu_bytes: float | None,
    world_size: int,
    gpus_per_node: int,
    config: TrainConfig,
    host_bytes: float | None = None,
) -> Plan:
    """Every candidate with what it takes. The chosen one is the first that fits, where none does the one that takes least.

    `gpu_bytes` of one GPU; None is training on a CPU, where the first candidate is chosen. `host_bytes` of a node, where known.
    """
    work = Workload.of(config, shape, world_size, on_gpu=gpu_bytes is not None)
    found = []
    for setting in candidates(config, world_size, gpus_per_node):
        memory = estimate(work, setting)
        host_fits = host_bytes is None or min(world_size, gpus_per_node) * memory.host <= host_bytes
        fits = None if gpu_bytes is None else memory.total <= gpu_bytes and host_fits
        found.append(Option(setting, memory, fits))
    if gpu_bytes is None:
        return Plan(work, tuple(found), found[0])
    least = min(found, key=lambda option: option.memory.total)
    return Plan(work, tuple(found), next((option for option in found if option.fits), least))


def choose(
    shape: ModelShape,
    gpu_bytes: float | None,
    world_size: int,
    gpus_per_node: int,
    config: TrainConfig,
    host_bytes: float | None = None,
) -> Plan:
    """As `weigh`. EnvironmentProblem where nothing fits: by how much, and what to change."""
    plan = weigh(shape, gpu_bytes, world_size, gpus_per_node, config, host_bytes)
    if gpu_bytes is not None and not plan.chosen.fits:
        raise EnvironmentProblem(nothing_fits(plan, gpu_bytes, config))
    return plan


def nothing_fits(plan: Plan, gpu_bytes: float, config: TrainConfig) -> str:
    """What is missing, and what would help."""
    least = plan.chosen
    remedies = ["train on more GPUs", "lower train.tokens_per_micro_batch (and train.max_length)"]
    if config.offload not in ("auto", "all"):
        remedies.append("set train.offload to auto")
    if config.activation_checkpointing in ("none", "selective"):
        remedies.append("set train.activation_checkpointing to auto")
    if config.zero_stage not in ("auto", 3):
        remedies.append("set train.zero_stage to auto")
    need, have = least.memory.total / GIB, gpu_bytes / GIB
    if need <= have:
        problem = f"{least.setting} would need {least.memory.host / GIB:.1f} GiB of host memory for each GPU, more than there is"
    else:
        problem = f"the lightest ({least.setting}) needs {need:.1f} GiB a GPU, {need - have:.1f} GiB more than its {have:.1f} GiB"
    return (
        f"no setting fits {plan.work.shape.parameters / 1e9:.2f}e9 parameters on {plan.work.world_size} GPUs: {problem}. "
        f"One of these helps: {'; '.join(remedies)}."
    )


def resolve(
    config: TrainConfig,
    shape: ModelShape,
    gpu_bytes: float | None,
    world_size: int,
    gpus_per_node: int = 8,
    host_bytes: float | None = None,
) -> TrainConfig:
    """The configuration with every `auto` of stage, offload and activation checkpointing replaced by a value.

    Errors as in `choose`; what is wholly set by hand is not held against the memory model, which may err.
    """
    decide = choose if "auto" in (config.zero_stage, config.offload, config.activation_checkpointing) else weigh
    setting = decide(shape, gpu_bytes, world_size, gpus_per_node, config, host_bytes).chosen.setting
    return _with(config, setting)


def _with(config: TrainConfig, setting: Setting) -> TrainConfig:
    values = {
        "zero_stage": setting.zero_stage,
        "offload": setting.offload,
        "activation_checkpointing": setting.checkpointing,
        "hpz": setting.hpz if setting.hpz > 1 else "off",
    }
    return config.model_copy(update=values)
