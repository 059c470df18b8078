"""Settings of the train stage."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ift_scale.config.section import NonNegativeInt, PositiveInt, Section
from ift_scale.ranks.environment import has_gpu


class CheckpointConfig(Section):
    every: NonNegativeInt = 0
    """Save after every so many optimizer steps; 0 saves on SIGTERM and SIGUSR1 only."""
    keep_last: PositiveInt = 2
    """Checkpoints kept of an arm; all are removed when it is trained."""


class EarlyStoppingConfig(Section):
    metric: Literal["accuracy", "rank_correlation", "divergence"]
    """Live measure that must go on improving: `divergence` falls, the others rise."""
    patience: PositiveInt = 3
    """Live measurements without an improvement until the arm ends."""
    least_improvement: Annotated[float, Field(ge=0)] = 0.0


class LiveConfig(Section):
    """The arm's own held-out questions (HOMO), asked on the training ranks while it trains."""

    every: Literal["auto"] | NonNegativeInt = "auto"
    """Optimizer steps between two measurements, beside those before the first step and after the last; 0: never. `auto`: as often
    as keeps the cost under 2% of the arm's; where an arm is too short, fewer questions are asked or none, and the run says so."""
    max_questions: PositiveInt | None = None
    """Ask at most this many of the questions, the same ones each time; all when left out."""
    early_stopping: EarlyStoppingConfig | None = None
    """End an arm when its live knowledge stops improving; never when left out. The arm's weights are those of its last step."""


def _off(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


class TrainConfig(Section):
    num_ranks: PositiveInt = 1
    """Processes that train together, one for each device."""
    launcher: Literal["deepspeed", "direct"] = "deepspeed"
    """`deepspeed`: its launcher, for one node or a hostfile; `direct`: plain processes on this machine, quicker to start."""
    hostfile: str | None = None
    """DeepSpeed hostfile for several nodes; it must exist."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 with float32 master weights on a GPU, float32 on a CPU."""
    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """`auto`: with `offload` and `activation_checkpointing`, the lightest that fits by the memory model; `plan` shows it."""
    offload: Literal["auto", "none", "optimizer", "all"] = "auto"
    """What lives in host memory: the optimizer's states, or with ZeRO-3 the weights too."""
    hpz: Annotated[Literal["auto", "off"] | Annotated[int, Field(ge=2)], BeforeValidator(_off)] = (
        "auto"
    )
    """ZeRO-3 over several nodes: each node also holds all weights among its ranks, so that most gathering stays inside it (ZeRO++'s
    hierarchical partition). `auto`: where it fits; a number: so many consecutive ranks hold a copy, instead of a node's."""
    activation_checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    """What is computed again in the backward pass: nothing, all but matrix products and attention, or whole layers."""
    compile: bool = False
    """Compile the decoder layers' own code with torch.compile; `kernels` then decides about the loss alone."""
    attention: Literal["auto", "flash_attn", "varlen", "sdpa"] = "auto"
    """Attention that keeps packed examples apart: flash-attn's or torch's variable-length kernels, or SDPA for each example."""
    prune_last_layer: bool = True
    """Compute the last layer on supervised rows only: exact."""
    kernels: Literal["auto", "pytorch", "triton", "liger"] = "auto"
    """Who computes norms, SwiGLU, rotary embedding and the loss. `auto`: what the stored figures show to be fastest on this device;
    without a figure Liger-Kernel on a GPU, if it is installed, else PyTorch."""
    optimizer: Literal["auto", "torch_fused", "fused_adam"] = "auto"
    """Whose AdamW: torch's fused one, which needs no compiler, or DeepSpeed's, which is compiled at its first use on a GPU. `auto`:
    torch's, unless a stored figure shows DeepSpeed's to be faster on this device."""
    epochs: PositiveInt = 3
    global_batch_size: PositiveInt = 256
    """Examples of one optimizer step, whatever the number of ranks."""
    tokens_per_micro_batch: PositiveInt = 8192
    """Tokens that one rank holds in one forward pass, at most; padding is never added."""
    packing: bool = True
    """False computes every example in a forward pass of its own: slower, for comparisons."""
    share_prefix: bool = True
    """Compute the tokens with which all examples of a micro-batch begin once: exact, and its keys serve every example."""
    max_length: PositiveInt = 2048
    """Longest example in tokens."""
    too_long: Literal["error", "truncate"] = "error"
    """What to do with an example over `max_length`; truncated ones are counted."""
    supervise: Literal["response", "all"] = "response"
    """Learn the assistant's turns, or every token."""
    loss_average: Literal["token", "example"] = "token"
    """The step's loss: mean over its supervised tokens, or over its examples' own means. Examples' weights count in both."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0 for none."""
    max_bad_steps: NonNegativeInt = 3
    """Steps with a loss or gradient that is no number: each is skipped and counted, one more than this ends the arm."""
    log_every: PositiveInt = 5
    """Optimizer steps between two reads of the metrics from the device."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """Dense bfloat16 TFLOPS of one device, for MFU; when left out, those of its data sheet, where it is known."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    """Where metrics go besides `metrics.jsonl`; docs/training.md says how each is told its server."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    live: LiveConfig = LiveConfig()


def precision_in_force(train: TrainConfig) -> str:
    """`auto` as this machine's ranks take it."""
    return (
        ("bfloat16" if has_gpu() else "float32") if train.precision == "auto" else train.precision
    )


OPERATIONAL = {
    "num_ranks", "launcher", "hostfile", "tokens_per_micro_batch", "packing", "share_prefix", "zero_stage", "offload",
    "hpz", "activation_checkpointing", "compile", "attention", "prune_last_layer", "kernels", "optimizer", "log_every",
    "peak_tflops", "trackers", "checkpoint",
}  # fmt: skip
"""Settings that do not change what is learnt."""


def settings_of_result(train: TrainConfig) -> dict[str, Any]:
    """The settings on which the trained weights depend. Live knowledge counts only if it may end an arm."""
    stops = train.live.early_stopping is not None
    return train.model_dump(exclude=OPERATIONAL if stops else OPERATIONAL | {"live"})
