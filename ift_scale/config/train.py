"""Settings of the train stage."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

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


class KLTextConfig(Section):
    """General text in every optimizer step, on which the model stays close to the base. Nothing is
    learnt from it otherwise."""

    path: Text
    """Path of a file: instructions in any format of construct.sets, whose responses count; texts in
    the field `text` of JSON rows, or the paragraphs of a .txt file, whose every token counts."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the mean divergence over the text's rows in the loss."""
    batch_size: PositiveInt = 64
    """Texts per optimizer step, in addition to `global_batch_size`."""


class KLConfig(Section):
    """Divergence from the base model, KL(base || model), as part of the loss: a step's loss is its
    cross-entropy + weight * the mean divergence over the same rows. Off by default."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean divergence over the set's supervised rows."""
    base: Literal["cache", "copy"] = "cache"
    """`cache`: the base's distributions are computed once, and their `top_k` most probable tokens
    are stored. `copy`: a frozen copy on every rank computes them in every step, whole."""
    top_k: PositiveInt = 64
    """Tokens of a row's distribution in the cache. All others count as one; the divergence is at
    most lowered by that, by a bounded amount (docs/training.md)."""
    text: KLTextConfig | None = None
    """Divergence on general text, too. Default: none."""

    @property
    def is_on(self) -> bool:
        return self.weight > 0 or self.text is not None

    @property
    def copies_base(self) -> bool:
        """True if every rank holds a frozen copy of the base model."""
        return self.is_on and self.base == "copy"


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
    restore: list[Annotated[float, Field(ge=0.0001, lt=1)]] = []
    """Shares of the parameters to restore. Each gives a further arm without training: the trained
    arm, in which this share of all parameters, those with the largest absolute change, has the base
    model's values again."""
    export_epochs: list[PositiveInt] = []
    """Epochs, counted from 1, after which the weights are kept too. Each gives a further arm
    without training: the trained arm as it was then, with the learning-rate schedule of all
    `epochs`."""
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
    kl: KLConfig = KLConfig()
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
    "restore",
    "hang_timeout",
}
"""Settings that do not change what is learnt. Averages and restored models are arms of their
own."""


_ADDED = {"router_aux_loss", "freeze", "kl", "export_epochs"}
"""Settings that were added after results existed."""


def settings_of_result(train: TrainConfig) -> dict[str, Any]:
    """Returns the settings on which the trained weights depend.

    Settings of live evaluation are included only if early stopping may end an arm. Of validation,
    the share is included, because the rest of the set is trained on, and all settings if they
    select the weights. Files, that of `kl` too, enter the key by their content. Settings that were
    added after results existed are included only if they are not at their default, so that those
    results keep their keys.
    """
    excluded = OPERATIONAL | {"validation"}
    if train.live.early_stopping is None:
        excluded |= {"live"}
    defaults = type(train).model_fields
    unchanged = {name for name in _ADDED if getattr(train, name) == defaults[name].default}
    settings = train.model_dump(exclude=excluded | unchanged) | _of_validation(train.validation)
    if train.kl.text is not None:
        settings["kl"]["text"].pop("path")
    return settings


def _of_validation(validation: ValidationConfig) -> dict[str, Any]:
    if validation.selects:
        return {"validation": validation.model_dump(exclude={"path"})}
    return {} if validation.share is None else {"validation": {"share": validation.share}}
