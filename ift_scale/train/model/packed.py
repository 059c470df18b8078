"""The trained model: takes a packed micro-batch and returns its part of the step's loss.

Head and loss are computed on the supervised rows only. Shapes: R supervised rows, D hidden size,
V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from ift_scale.config.train import TrainConfig
from ift_scale.engines.model_folder import weight_files
from ift_scale.estimate.shape import require_proven
from ift_scale.train.data.micro_batch import MicroBatch
from ift_scale.train.model import attention, last_layer
from ift_scale.train.model.rows import select_rows

LossFunction = Callable[..., tuple[Tensor, Tensor]]

# Outputs kept by selective checkpointing: expensive to recompute. All others are cheap and large.
_KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}
# flash-attn's and torch's variable-length attention, whose operations exist only on a GPU.
_KEPT_NAMES = ("flash_attn", "varlen_attn")


class PackedCausalLM(nn.Module):
    """Wraps a causal language model of transformers for packed micro-batches.

    Raises DataError for a model type that is not proven.
    """

    def __init__(
        self, model: Any, config: TrainConfig, device: torch.device, loss_function: LossFunction
    ):
        super().__init__()
        require_proven(model.config.to_dict())
        self.model = model
        settings = model.config
        softcap = getattr(settings, "attn_logit_softcapping", None)
        chosen = attention.implementation(config, device, model.dtype, bool(softcap))
        settings._attn_implementation = attention.NAMES[chosen]
        self.attention = chosen
        self.pruned = config.prune_last_layer
        if self.pruned:
            last_layer.prune(model.model.layers[-1])
        # Replaces the head's own forward, so that under ZeRO-3 its module hooks gather the weight.
        head = model.lm_head
        loss = partial(loss_function, softcap=getattr(settings, "final_logit_softcapping", None))
        head.forward = partial(_head_loss, head, head.forward, loss)

    def forward(self, batch: MicroBatch, logits: bool = False) -> Any:
        """Returns (loss, losses_R).

        `loss` is the micro-batch's part of the step's loss, a float32 scalar with gradient;
        `losses_R` is the cross-entropy of each row in nats. With `logits`, returns
        `self.logits(batch)`: a call of the module runs the hooks that start a ZeRO-3 pass.
        """
        if logits:
            return self.logits(batch)
        # The head sees supervised rows only: their logits are the largest tensor of a step.
        return self.model.lm_head(
            self.hidden(batch), labels_R=batch.labels_R, weights_R=batch.weights_R
        )

    def hidden(self, batch: MicroBatch) -> Tensor:
        """Returns the last hidden states of the supervised rows, (R, D)."""
        output = self.model.model(
            input_ids=batch.ids_1T,
            position_ids=batch.positions_1T,
            packed=batch.packed,
            use_cache=False,
        )
        states = output.last_hidden_state[0]
        return states if self.pruned else select_rows(states, batch.packed.rows_R, 0)

    def logits(self, batch: MicroBatch) -> Tensor:
        """Returns the logits of the supervised rows, (R, V), float32, without gradient."""
        with torch.no_grad():
            logits_RV = self.model.lm_head(self.hidden(batch)).float()
        softcap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits_RV if not softcap else torch.tanh(logits_RV / softcap) * softcap


def _head_loss(
    head: Any,
    plain: Callable[[Tensor], Tensor],
    loss: LossFunction,
    hidden_RD: Tensor,
    *,
    labels_R: Any = None,
    weights_R: Any = None,
) -> Any:
    """The head's forward: returns logits without labels, (loss, losses_R) with them."""
    if labels_R is None:
        return plain(hidden_RD)
    return loss(hidden_RD, head.weight, labels_R, weights_R, bias_V=head.bias)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors of a folder's weight files, memory-mapped: a node's ranks share them."""
    from safetensors import safe_open

    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            weights |= {name: tensors.get_tensor(name) for name in names}
    return weights


def class_and_config(folder: Path) -> tuple[Any, Any]:
    """Returns the class and the config of a folder's model."""
    settings = AutoConfig.from_pretrained(folder, local_files_only=True)
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)], settings


def without_weights(folder: Path) -> Any:
    """Returns a folder's model on the meta device, to inspect its modules."""
    kind, settings = class_and_config(folder)
    with torch.device("meta"):
        return kind(settings)


def build(
    kind: Any, settings: Any, weights: dict[str, Tensor], config: TrainConfig, dtype: torch.dtype
) -> Any:
    """Returns the base model, in training mode, from weights in host memory.

    While an HfDeepSpeedConfig of ZeRO-3 is alive, the model is partitioned over the ranks.
    """
    model: Any = kind.from_pretrained(
        None, config=settings, state_dict=dict(weights), dtype=dtype, attn_implementation="sdpa"
    )
    model.train()
    checkpoint_activations(model, config)
    compile_layers(model, config)
    return model


def compile_layers(model: Any, config: TrainConfig) -> None:
    """Compile each decoder layer for dynamic lengths, without attention (a loop over examples)."""
    if config.compile:
        for layer in model.get_decoder().layers:
            layer.compile(dynamic=True)


def checkpoint_activations(model: Any, config: TrainConfig) -> None:
    if config.activation_checkpointing == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if config.activation_checkpointing == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = op in _KEPT or any(name in str(op) for name in _KEPT_NAMES)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
