"""The trained model: takes a micro-batch and returns its part of the step's loss.

Head and loss are computed on the supervised rows only. Shapes: R supervised rows, D hidden size,
V vocabulary.
"""

import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ift_scale_kernels.linear_cross_entropy import kl
from torch import Tensor, nn

from ift_scale.config.train import TrainConfig
from ift_scale.engines import model_class
from ift_scale.engines.model_folder import weight_files
from ift_scale.engines.rope import RopeLimits
from ift_scale.errors import DataError, Place
from ift_scale.models import config_class
from ift_scale.train.data.micro_batch import MicroBatch
from ift_scale.train.model import attention, last_layer
from ift_scale.train.model.attention import PathNotSupported
from ift_scale.train.model.decoder import decoder_layers, decoder_of
from ift_scale.train.model.path import PRUNED, TrainingPath
from ift_scale.train.model.recompute import checkpoint_activations
from ift_scale.train.model.rows import select_rows

LossFunction = Callable[..., tuple[Tensor, Tensor]]

# A path raises one of these for a model that it does not support.
UNSUPPORTED = (TypeError, RuntimeError, AttributeError, ValueError, LookupError, AssertionError)


class PackedCausalLM(nn.Module):
    """Wraps a causal language model of transformers; computes micro-batches by one training path.

    Raises one of `UNSUPPORTED` for a model whose modules are not built as the path requires.
    """

    def __init__(
        self,
        model: Any,
        config: TrainConfig,
        device: torch.device,
        loss_function: LossFunction,
        path: TrainingPath = PRUNED,
    ):
        super().__init__()
        path = path.within(config)
        self.model, self.path = model, path
        self.pruned = path.name == "pruned"
        self.shares_prefix = path.shares_prefix(config)
        self.whole = path.name == "single"
        self._balance = RouterBalance(model) if config.router_aux_loss else None
        self._rope: RopeLimits | None = None
        self._base: tuple[Any] = (None,)
        self.attention = path.attention
        """Implementation: one of `attention.NAMES` if packed, else transformers' name or None."""
        if path.is_packed:
            widths = attention.head_widths(model)
            chosen = attention.implementation(config, device, model.dtype, path.terms, widths)
            model.set_attn_implementation(attention.NAMES[chosen])
            if model.config._attn_implementation != attention.NAMES[chosen]:
                raise PathNotSupported(
                    f"{type(model).__name__} does not use transformers' attention"
                )
            self.attention = chosen
        if self.pruned:
            try:
                last_layer.prune(decoder_layers(model)[-1])
            except UNSUPPORTED as error:
                raise PathNotSupported("its last layer is not built like Llama's") from error
        if path.head is None and path.name == "single":
            return
        if path.head is None:
            self._rows_R: Tensor | None = None
            model.get_output_embeddings().register_forward_pre_hook(self._select)
            return
        head = model.get_output_embeddings()
        # Replaces the head's own forward, so that under ZeRO-3 its module hooks gather the weight.
        head.forward = partial(_head_loss, head, head.forward, loss_function, path.head.softcap)

    def keep_base(self, base: "PackedCausalLM | None") -> None:
        """Compute the base model's distributions for `train.kl` with a frozen copy, in evaluation
        mode and without gradients."""
        self._base = (base,)  # in a tuple, so that its parameters are not this model's

    @property
    def vocabulary(self) -> int:
        """Rows of the head."""
        return int(self.model.config.vocab_size)

    def forward(
        self,
        batch: MicroBatch,
        logits: bool = False,
        example_weight: float = 0.0,
        top_k: int = 0,
    ) -> Any:
        """Returns (loss, losses_R).

        `loss` is the micro-batch's part of the step's loss, a float32 scalar with gradient;
        `losses_R` is the cross-entropy of each row in nats. `example_weight`: weight of each
        example's load-balancing loss, if it is enabled. If the micro-batch has a divergence from
        the base model, the loss includes it, and `divergences_R` has each row's in nats.

        With `logits`, returns `self.logits(batch)`, with `top_k` the `TopK` of the rows'
        distributions: a call of the module runs the hooks that start a ZeRO-3 pass.
        """
        if logits:
            return self.logits(batch)
        if top_k:
            return self._top_k(batch, top_k)
        output, rows_R = self._output(batch)
        if self.path.head is None:
            logits_RV = self._own_logits(output, batch, rows_R)
            losses_R = F.cross_entropy(logits_RV.float(), batch.labels_R, reduction="none")
            loss, losses_R = (losses_R * batch.weights_R).sum(), losses_R.detach()
            if batch.kl is not None:
                divergence_R = self._own_divergence(logits_RV.float(), batch)
                loss = loss + (divergence_R * batch.kl.weights_R).sum()
                self.divergences_R = divergence_R.detach()
        else:
            # The head sees supervised rows only: their logits are the largest tensor of a step.
            head = self.model.get_output_embeddings()
            rows = {"labels_R": batch.labels_R, "weights_R": batch.weights_R}
            if batch.kl is None:
                loss, losses_R = head(self._hidden(output, rows_R), **rows)
            else:
                rows |= {"kl_weights_R": batch.kl.weights_R, "base": self._base_rows(batch)}
                loss, losses_R, self.divergences_R = head(self._hidden(output, rows_R), **rows)
        if self._balance is not None:
            loss = loss + example_weight * self._balance(output, batch, self.path.is_packed)
        return loss, losses_R

    def _base_rows(self, batch: MicroBatch) -> kl.Base:
        """Returns the base's distributions at the rows: cached ones, or the frozen copy's."""
        assert batch.kl is not None
        if batch.kl.base is not None:
            return batch.kl.base
        (base,) = self._base
        with torch.no_grad():
            output, rows_R = base._output(batch)
            head = base.model.get_output_embeddings()
            return kl.HiddenRows(base._hidden(output, rows_R), head.weight, head.bias)

    def _own_divergence(self, logits_RV: Tensor, batch: MicroBatch) -> Tensor:
        """Returns each row's divergence for logits of the model's own forward pass."""
        assert batch.kl is not None
        if batch.kl.base is not None:
            return kl.divergence(logits_RV, batch.kl.base)
        (base,) = self._base
        base_RV = base.logits(batch).log_softmax(-1)
        return F.kl_div(logits_RV.log_softmax(-1), base_RV, reduction="none", log_target=True).sum(
            -1
        )

    @torch.no_grad()
    def _top_k(self, batch: MicroBatch, k: int) -> kl.TopK:
        if self.path.head is None:
            return kl.top_k_of(self.logits(batch), k)
        output, rows_R = self._output(batch)
        top: kl.TopK = self.model.get_output_embeddings()(self._hidden(output, rows_R), top_k=k)
        return top

    @torch.no_grad()
    def logits(self, batch: MicroBatch) -> Tensor:
        """Returns the logits of the supervised rows, (R, V), float32, without gradient."""
        output, rows_R = self._output(batch)
        rule = self.path.head
        if rule is None:
            return self._own_logits(output, batch, rows_R).float()
        head = self.model.get_output_embeddings()
        return rule.logits(head(self._hidden(output, rows_R)).float())

    def _output(self, batch: MicroBatch) -> tuple[Any, Tensor]:
        """Returns the output of the decoder, or of the whole model if the path has no head, and the
        supervised rows of the decoder's hidden states."""
        # At the first pass, when the model is in its place and its buffers are exact.
        self._rope = self._rope or RopeLimits(self.model)
        self._rope.reset()
        rows_R, inputs = batch.packed.rows_R, without_cache(self.model)
        if self.path.is_packed:
            inputs |= {"input_ids": batch.ids_1T, "position_ids": batch.positions_1T}
            inputs["packed"] = batch.packed
            attention.set_packed(batch.packed)
        else:
            inputs["input_ids"], rows_R = padded_on_the_right(batch)
        if self._balance is not None:
            inputs["output_router_logits"] = True
        if self.path.head is not None:
            return decoder_of(self.model)(**inputs), rows_R
        self._rows_R = rows_R
        return self.model(**inputs), rows_R

    def _hidden(self, output: Any, rows_R: Tensor) -> Tensor:
        """Returns the last hidden states of the supervised rows, (R, D)."""
        states = output.last_hidden_state.flatten(0, 1)
        return states if self.pruned else select_rows(states, rows_R, 0)

    def _own_logits(self, output: Any, batch: MicroBatch, rows_R: Tensor) -> Tensor:
        """Returns the supervised rows' logits from the model's own forward, (R, V)."""
        logits_RV = output.logits.flatten(0, 1)
        if self.path.name == "single":
            return select_rows(logits_RV, rows_R, 0)
        if len(logits_RV) != len(batch.labels_R):
            raise PathNotSupported("its head does not compute the selected rows only")
        return logits_RV

    def _select(self, module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The head's pre-hook: passes the supervised rows on, as one row of a batch."""
        assert self._rows_R is not None
        return select_rows(args[0].flatten(0, 1), self._rows_R, 0)[None], *args[1:]


class RouterBalance:
    """The load-balancing loss of a mixture-of-experts model, times its coefficient.

    Computed by the class' own function (Fedus et al. 2021, arXiv 2101.03961, equations 4 to 6) for
    each example alone: as a product of means it would otherwise depend on how examples are packed.
    Raises ValueError for a model without one.
    """

    def __init__(self, model: Any):
        function = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
        names = ("router_aux_loss_coef", "num_experts", "num_experts_per_tok")
        if function is None or not all(hasattr(model, name) for name in names):
            raise ValueError(f"{type(model).__name__} has no load-balancing loss")
        self._function = function
        self._coefficient, self._num_experts, self._top_k = (getattr(model, n) for n in names)

    def __call__(self, output: Any, batch: MicroBatch, is_packed: bool) -> Tensor:
        """Returns the sum over the micro-batch's examples, a scalar; 0 for a stand-in example."""
        lengths = batch.packed.whole.seqlens_q
        width = 0 if is_packed else max(lengths)
        starts = np.arange(len(lengths)) * width if width else np.cumsum([0, *lengths[:-1]])
        losses = [
            self._function(
                tuple(
                    layer.flatten(0, -2)[start : start + length] for layer in output.router_logits
                ),
                self._num_experts,
                self._top_k,
            )
            for start, length in zip(starts, lengths, strict=True)
        ]
        return self._coefficient * torch.stack(losses).sum() * bool(batch.examples)


def without_cache(model: Any) -> dict[str, Any]:
    """Returns the argument that keeps a forward pass from storing keys and values, if any."""
    parameters = inspect.signature(type(model).forward).parameters.values()
    takes_it = any(p.name == "use_cache" or p.kind is p.VAR_KEYWORD for p in parameters)
    return {"use_cache": False} if takes_it else {}


def padded_on_the_right(batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Returns a micro-batch as (ids_BL, rows_R): an example per row, without a mask.

    Padding follows every token of a row, so a causal model never reads it. `rows_R`: the
    supervised rows, in the flattened batch.
    """
    assert not batch.num_shared
    lengths = batch.packed.whole.seqlens_q
    ids_BL = torch.nn.utils.rnn.pad_sequence(batch.ids_1T[0].split(lengths), batch_first=True)
    moved_T = torch.arange(ids_BL.numel(), device=ids_BL.device).view(ids_BL.shape)
    indices_T = torch.cat([moved_T[row, :length] for row, length in enumerate(lengths)])
    return ids_BL, indices_T[batch.packed.rows_R]


def _head_loss(
    head: Any,
    plain: Callable[[Tensor], Tensor],
    loss: LossFunction,
    softcap: float | None,
    hidden_RD: Tensor,
    *,
    labels_R: Any = None,
    weights_R: Any = None,
    kl_weights_R: Any = None,
    base: kl.Base | None = None,
    top_k: int = 0,
) -> Any:
    """The head's forward: returns logits without labels, (loss, losses_R) with them, and the
    divergences from `base` if it is given; with `top_k`, a `TopK`."""
    weight, how = head.weight, {"bias_V": head.bias, "softcap": softcap}
    if top_k:
        return kl.linear_top_k(hidden_RD, weight, head.bias, softcap, top_k)
    if labels_R is None:
        return plain(hidden_RD)
    if base is None:
        return loss(hidden_RD, weight, labels_R, weights_R, **how)
    return kl.linear_cross_entropy_kl(
        hidden_RD, weight, labels_R, weights_R, kl_weights_R, base, **how
    )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors of a folder's weight files, memory-mapped: a node's ranks share them."""
    from safetensors import safe_open

    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            weights |= {name: tensors.get_tensor(name) for name in names}
    return weights


def class_and_config(folder: Path, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Returns the class and the config of a folder's model.

    Raises DataError if it has none, or contains more than a language model.
    """
    kind, settings = config_class.class_and_config(folder, trust_remote_code)
    text = settings.get_text_config()
    if text is not settings and kind.config_class is not type(text):
        problem = "is a multimodal model; only a language model alone can be trained"
        remedy = f"Save its language model ({text.model_type}) to a folder of its own and give that"
        raise DataError(
            Place(folder / "config.json", field="model_type"), problem, remedy, settings.model_type
        )
    return kind, text


def without_weights(folder: Path, trust_remote_code: bool = False) -> Any:
    """Returns a folder's model on the meta device, to inspect its modules."""
    kind, settings = class_and_config(folder, trust_remote_code)
    with torch.device("meta"):
        return kind(settings)


def build(
    kind: Any,
    settings: Any,
    weights: dict[str, Tensor],
    config: TrainConfig,
    dtype: torch.dtype,
    attention: str | None,
) -> Any:
    """Returns the base model, in training mode, from weights in host memory.

    `attention`: transformers' name of the attention implementation; None for its default. While an
    HfDeepSpeedConfig of ZeRO-3 is alive, the model is partitioned over the ranks.
    """
    model: Any = model_class.load(
        kind, None, settings, dtype, state_dict=dict(weights), attn_implementation=attention
    )
    keep_scale(model.train())
    checkpoint_activations(model, config)
    compile_layers(model, config)
    return model


def keep_scale(model: Any) -> None:
    """Keeps RWKV from dividing its weights in place when it is evaluated.

    It multiplies them again when it is trained (transformers 5.19). An export in between, and
    ZeRO-3, would keep them divided.
    """
    if hasattr(model.base_model, "_rescale_layers"):
        model.base_model._rescale_layers = lambda: None


def compile_layers(model: Any, config: TrainConfig) -> None:
    """Compile each decoder layer for dynamic lengths, without attention (a loop over examples)."""
    if config.compile:
        for layer in decoder_layers(model):
            layer.compile(dynamic=True)
