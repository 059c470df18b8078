"""Settings of the train stage."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ift_scale.config.keeping import average_problems, freeze_problems
from ift_scale.config.section import NonNegativeInt, PositiveInt, Section, Text
from ift_scale.ranks.environment import has_gpu

Precision = Literal["auto", "float32", "bfloat16"]


class CheckpointConfig(Section):
    """Checkpoints, from which an interrupted arm resumes."""

    every: NonNegativeInt = 0
    """Optimizer steps between checkpoints. 0: save only on SIGTERM and SIGUSR1."""
    keep_last: PositiveInt = 2
    """Number of checkpoints kept per arm. All are removed when the arm is finished."""


class StoppingRule(Section):
    """Rule that ends an arm before its last epoch."""

    patience: PositiveInt = 3
    """Number of consecutive measurements without an improvement after which the arm ends."""
    least_improvement: Annotated[float, Field(ge=0)] = 0.0
    """Smallest change of the metric that counts as an improvement."""


class EarlyStoppingConfig(StoppingRule):
    """Rule that ends an arm by a live metric."""

    metric: Literal["accuracy", "rank_correlation", "divergence"]
    """Live metric that must keep improving: `divergence` must fall, the others must rise."""


class LiveConfig(Section):
    """Live evaluation: the training ranks score the arm's held-out questions of its own domain
    (HOMO) while it trains."""

    every: Literal["auto"] | NonNegativeInt = "auto"
    """Optimizer steps between measurements; the arm is also measured before its first and after its
    last step. 0: never. `auto`: as often as possible at less than 2% of the arm's cost; for very
    short arms fewer questions are scored, or none, and the log reports it."""
    max_questions: PositiveInt | None = None
    """Maximum number of questions, the same at every measurement. Default: all."""
    early_stopping: EarlyStoppingConfig | None = None
    """End an arm when the metric stops improving; the arm keeps the weights of its last step.
    Default: never."""


class ValidationConfig(Section):
    """Loss on examples that are not trained on, measured while an arm trains. Set `share` or
    `path`; without either, there is no validation."""

    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the set to hold out, drawn by a hash of each example's messages: the same examples
    for every seed, and equal examples are held out together."""
    path: Text | None = None
    """Path of a file with the validation examples, in the format of the constructed sets."""
    every: Literal["auto"] | PositiveInt = "auto"
    """Optimizer steps between measurements; the arm is also measured before its first and after its
    last step. `auto`: as often as possible at less than 2% of the arm's cost, but at least once per
    epoch."""
    early_stopping: StoppingRule | None = None
    """End an arm when the validation loss stops falling. Default: never."""
    keep_best: bool = False
    """Export the weights of the measurement with the lowest validation loss, the one before the
    first step excluded, instead of those of the last step."""

    @property
    def is_on(self) -> bool:
        return self.share is not None or self.path is not None

    @property
    def selects(self) -> bool:
        """True if the validation loss affects the weights that are exported."""
        return self.is_on and (self.early_stopping is not None or self.keep_best)


def _off(value: object) -> object:
    """Restores `off`, which YAML reads as false."""
    return "off" if value is False else value


def _no_flag(value: object) -> object:
    """Refuses true and 1.0, which are equal to 1."""
    if isinstance(value, bool | float):
        raise ValueError("must be auto, 0, 1, 2 or 3")
    return value


class TrainConfig(Section):
    """Training of every arm with DeepSpeed ZeRO."""

    num_ranks: PositiveInt = 1
    """Number of processes that train one arm, one per device."""
    launcher: Literal["deepspeed", "direct"] = "deepspeed"
    """`deepspeed`: DeepSpeed's launcher, for one node or a hostfile. `direct`: plain processes on
    this machine, which start faster."""
    hostfile: str | None = None
    """Path of an existing DeepSpeed hostfile, for several nodes."""
    precision: Precision = "auto"
    """`auto`: bfloat16 with float32 master weights on a GPU, float32 on a CPU."""
    zero_stage: Annotated[Literal["auto", 0, 1, 2, 3], BeforeValidator(_no_flag)] = "auto"
    """ZeRO stage. `auto`: the cheapest combination with `offload` and `activation_checkpointing`
    that fits in memory according to the memory model. `ift-scale plan` shows the choice."""
    offload: Literal["auto", "none", "optimizer", "all"] = "auto"
    """State kept in host memory. `optimizer`: the optimizer's state. `all`: the weights too, with
    ZeRO-3."""
    hpz: Annotated[Literal["auto", "off"] | Annotated[int, Field(ge=2)], BeforeValidator(_off)] = (
        "auto"
    )
    """Secondary partition for ZeRO-3 over several nodes (hpZ in ZeRO++): each node also keeps a
    full copy of the weights, partitioned among its ranks, so that most all-gathers stay inside the
    node. `auto`: if it fits in memory. A number: that many consecutive ranks share a copy, instead
    of a node's ranks."""
    activation_checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    """Activations recomputed in the backward pass. `selective`: all except those of matrix products
    and attention. `full`: whole layers."""
    compile: bool = False
    """Compile the decoder layers with torch.compile. `kernels` then applies to the loss only."""
    attention: Literal["auto", "flash_attn", "varlen", "sdpa"] = "auto"
    """Attention kernel for packed examples, which never attend to each other: variable-length
    kernels of flash-attn or torch (`varlen`), or SDPA per example."""
    prune_last_layer: bool = True
    """Compute the last layer for supervised tokens only. The result is exact."""
    kernels: Literal["auto", "pytorch", "triton", "liger"] = "auto"
    """Implementation of norms, SwiGLU, rotary embedding and the loss. `auto`: the fastest on this
    device according to stored benchmark results; without results, Liger-Kernel on a GPU if it is
    installed, otherwise PyTorch."""
    optimizer: Literal["auto", "torch_fused", "fused_adam"] = "auto"
    """AdamW implementation. `torch_fused`: PyTorch's, which needs no compiler. `fused_adam`:
    DeepSpeed's, which is compiled at its first use on a GPU. `auto`: PyTorch's unless stored
    benchmark results show that DeepSpeed's is faster on this device."""
    epochs: PositiveInt = 3
    """Number of passes over the set."""
    global_batch_size: PositiveInt = 256
    """Examples per optimizer step, summed over all ranks."""
    tokens_per_micro_batch: PositiveInt = 8192
    """Maximum number of tokens per rank and forward pass, including padding where the model's
    training path has any."""
    packing: bool = True
    """Pack several examples into a forward pass. False: one forward pass per example, which is
    slower; for comparisons."""
    share_prefix: bool = True
    """Compute the tokens that all examples of a micro-batch start with only once, and reuse their
    keys and values. The result is exact."""
    max_length: PositiveInt = 2048
    """Maximum length of an example in tokens."""
    too_long: Literal["error", "truncate"] = "error"
    """Treatment of examples longer than `max_length`. Truncated examples are counted."""
    supervise: Literal["response", "all"] = "response"
    """Tokens that contribute to the loss: the assistant's turns, or all."""
    loss_average: Literal["token", "example"] = "token"
    """Loss of a step: the mean over its supervised tokens, or the mean over its examples of each
    example's own mean. Example weights apply to both."""
    router_aux_loss: bool = False
    """Add the load-balancing loss of a mixture-of-experts model, times the model's
    `router_aux_loss_coef`. It is computed for each example alone, as the model defines it, and
    averaged over the examples of the step, so that packing does not change it. Off by default, as
    in transformers: it pulls the router towards equal use of all experts, whatever the set."""
    freeze: list[Text] = []
    """Parameters that are not trained, as groups or as patterns of parameter names. Groups:
    `embeddings`, `head`, `norms`, `attention`, `mlp`, `layers`; the last four also of a range of
    layers, counted from 0: `mlp:3`, `mlp:0-5`, `mlp:6-`. In patterns, `*` stands for any
    characters: `model.layers.*.mlp.down_proj.weight`."""
    average: list[Annotated[float, Field(ge=0.0001, lt=1)]] = []
    """Shares of the way from the base model to the trained arm. Each gives a further arm without
    training, whose weights are (1 - share) * base + share * trained (WiSE-FT). It is evaluated and
    reported next to the trained arm."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    """Peak learning rate."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps with a rising learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's decay rate of the second moment."""
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0
    """Maximum norm of the gradient. 0 disables clipping."""
    max_bad_steps: NonNegativeInt = 3
    """Maximum number of steps with a non-finite loss or gradient. Such steps are skipped and
    counted; one more ends the arm with an error."""
    log_every: PositiveInt = 5
    """Optimizer steps between reads of the metrics from the device."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """Dense bfloat16 peak of one device in TFLOPS, for MFU. Default: the data sheet's value if the
    device is known."""
    hang_timeout: Annotated[float, Field(ge=0)] = 900.0
    """Seconds without progress on any rank after which the ranks print their Python stacks and end.
    Progress is a micro-batch, a collective phase or an exported tensor. Phases that may be slow
    (start, the first step of an arm, checkpoints, export) have four times as long, and reading or
    writing a disk counts as progress in them. 0: never."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    """Trackers that receive the metrics in addition to `metrics.jsonl`. docs/training.md describes
    how to set each tracker's server."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    live: LiveConfig = LiveConfig()
    validation: ValidationConfig = ValidationConfig()


def precision_in_force(train: TrainConfig) -> str:
    """Returns the precision, with `auto` resolved for this machine."""
    if train.precision != "auto":
        return train.precision
    return "bfloat16" if has_gpu() else "float32"


OPERATIONAL = {
    "num_ranks",
    "launcher",
    "hostfile",
    "tokens_per_micro_batch",
    "packing",
    "share_prefix",
    "zero_stage",
    "offload",
    "hpz",
    "activation_checkpointing",
    "compile",
    "attention",
    "prune_last_layer",
    "kernels",
    "optimizer",
    "log_every",
    "peak_tflops",
    "trackers",
    "checkpoint",
    "average",
    "hang_timeout",
}
"""Settings that do not change what is learnt. Averages are arms of their own."""


_ADDED = {"router_aux_loss", "freeze"}
"""Settings that were added after results existed."""


def settings_of_result(train: TrainConfig) -> dict[str, Any]:
    """Returns the settings on which the trained weights depend.

    Settings of live evaluation are included only if early stopping may end an arm. Of validation,
    the share is included, because the rest of the set is trained on, and all settings if they
    select the weights; its file enters the key by its content. Settings that were added after
    results existed are included only if they are not at their default, so that those results keep
    their keys.
    """
    excluded = OPERATIONAL | {"validation"}
    if train.live.early_stopping is None:
        excluded |= {"live"}
    defaults = type(train).model_fields
    unchanged = {name for name in _ADDED if getattr(train, name) == defaults[name].default}
    return train.model_dump(exclude=excluded | unchanged) | _of_validation(train.validation)


def _of_validation(validation: ValidationConfig) -> dict[str, Any]:
    if validation.selects:
        return {"validation": validation.model_dump(exclude={"path"})}
    return {} if validation.share is None else {"validation": {"share": validation.share}}


def train_problems(train: TrainConfig) -> list[str]:
    """Returns one message per impossible combination of the train settings."""
    return [
        *_batch_problems(train),
        *_zero_problems(train),
        *_launch_problems(train),
        *_validation_problems(train.validation),
        *freeze_problems(train.freeze),
        *average_problems(train.average),
    ]


def _batch_problems(train: TrainConfig) -> list[str]:
    problems = []
    if train.global_batch_size < train.num_ranks:
        problems.append(
            f"train.global_batch_size: {train.global_batch_size} examples are fewer than "
            f"train.num_ranks = {train.num_ranks}; raise it to at least {train.num_ranks}"
        )
    if train.tokens_per_micro_batch < train.max_length:
        problems.append(
            f"train.tokens_per_micro_batch: {train.tokens_per_micro_batch} cannot hold an example "
            f"of train.max_length = {train.max_length}; raise the first or lower the second"
        )
    if train.live.early_stopping is not None and train.live.every == 0:
        problems.append(
            "train.live.early_stopping: needs measurements; set train.live.every to auto or a "
            "number of steps"
        )
    return problems


def _zero_problems(train: TrainConfig) -> list[str]:
    problems, has_hpz = [], isinstance(train.hpz, int)
    if train.zero_stage == 0 and precision_in_force(train) == "bfloat16":
        problems.append(
            f"train.zero_stage: 0 with train.precision = {train.precision} (bfloat16 here) keeps "
            "no float32 gradients in DeepSpeed; use stage 1, 2 or 3"
        )
    if train.compile and train.zero_stage == 3:
        problems.append(
            "train.compile: not verified with the hooks that train.zero_stage = 3 places inside "
            "the layers; set train.compile to false or train.zero_stage to auto"
        )
    elif train.compile and (has_hpz or train.offload == "all"):
        needs_zero3 = f"train.hpz = {train.hpz}" if has_hpz else "train.offload = all"
        problems.append(
            f"train.compile: not verified with ZeRO-3, which {needs_zero3} needs; set that to "
            "auto, or train.compile to false"
        )
    if train.compile and train.activation_checkpointing == "selective":
        problems.append(
            "train.compile: selective checkpointing does not apply to compiled layers; set "
            "train.activation_checkpointing to full or none"
        )
    if has_hpz and train.zero_stage not in ("auto", 3):
        problems.append(
            f"train.hpz: {train.hpz} needs ZeRO-3, which partitions the weights "
            f"(train.zero_stage = {train.zero_stage}); set one of them to auto"
        )
    if has_hpz and train.offload == "all":
        problems.append(
            f"train.hpz: {train.hpz} keeps a second copy of the weights on the devices, but "
            "train.offload = all moves them to the host; set one of them to auto"
        )
    return problems


def _launch_problems(train: TrainConfig) -> list[str]:
    problems = []
    if train.hostfile is not None and train.launcher != "deepspeed":
        problems.append(
            "train.hostfile: only the deepspeed launcher reads it; set train.launcher to deepspeed"
        )
    if train.hostfile is not None and not Path(train.hostfile).is_file():
        problems.append(
            f"train.hostfile: no such file (value: {train.hostfile!r}); without it DeepSpeed would "
            "silently run on this node only"
        )
    return problems


def _validation_problems(validation: ValidationConfig) -> list[str]:
    problems = []
    if validation.share is not None and validation.path is not None:
        problems.append(
            f"train.validation: share = {validation.share} and path = {validation.path!r} are "
            "both set; remove one of them"
        )
    for name in ("keep_best", "early_stopping"):
        if getattr(validation, name) and not validation.is_on:
            problems.append(
                f"train.validation.{name}: needs validation examples; set train.validation.share "
                "or train.validation.path"
            )
    if validation.path is not None and not Path(validation.path).is_file():
        problems.append(
            f"train.validation.path: no such file (value: {validation.path!r}); give the path of "
            "an existing file"
        )
    return problems
