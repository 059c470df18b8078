"""Traces a model's training forward and backward pass on the meta device: no weights, no memory.

Every operation is dispatched with shapes only. Recorded for each decoder layer, and for what is
outside of them: products with weights, other products of activations, attention's heads, and the
bytes that are alive after the forward pass. Attention is replaced by an operation that saves what
flash attention saves: its inputs, its output, and a float32 number per head and token.
"""

import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

_ATEN = torch.ops.aten
_PRODUCTS = {_ATEN.mm, _ATEN.addmm, _ATEN.bmm, _ATEN.baddbmm}
_RECORDER = "ift_scale_recorder_of_shapes"
# Modules whose outputs transformers computes from inputs elementwise.
_ACTIVATIONS = ("transformers.activations", "torch.nn.modules.activation")


@dataclass
class Scope:
    """Operations inside one decoder layer, or outside of all (bytes and FLOPs in total)."""

    weights: dict[int, list[tuple[int, int, int, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """By the weight's id: (rows, inputs, outputs, matrices) of each product."""
    mixing_flops: int = 0
    """Of products of activations with each other, apart from attention, and of convolutions."""
    attention: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(heads, key heads, size of keys, size of values) of each call."""
    kept: int = 0
    """Bytes of the tensors that the backward pass needs and no scope before has saved."""
    outputs: int = 0
    """Bytes of the outputs of matrix products and attention."""
    entering: int = 0
    """Bytes of the inputs that have not entered a layer before."""
    normed: int = 0
    activated: int = 0


class _Flash(torch.autograd.Function):
    """Attention as (batch, heads, tokens, size) that saves what a flash kernel saves. A mask is
    saved in the queries' type."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        # As torch's kernels, with the strides of the queries.
        out = torch.empty_like(query[..., : value.shape[3]])
        sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        added = () if mask is None else (mask.to(query.dtype),)
        ctx.save_for_backward(query, key, value, out, sums, *added)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return *(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3]), None


class _Grouped(torch.autograd.Function):
    """A product of each expert's rows with its matrix; `outputs` is the size of its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, outputs: int) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return rows.new_empty(len(rows), outputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return *(torch.empty_like(tensor) for tensor in ctx.saved_tensors), None


class Trace(TorchDispatchMode):
    """Records operations by scope.

    `peak` is the maximum of live bytes in the backward pass of the layers, and `peak_of_ends` in
    what comes before them (final norm).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        parameters = list(model.parameters())
        self._weights = {p.untyped_storage()._cdata: p for p in parameters}
        self._shapes = {p.shape for p in parameters}
        self._shapes |= {p.mT.shape for p in parameters if p.dim() > 1}
        self._held: dict[int, Any] = {}
        self._saved: dict[int, tuple[Any, Scope]] = {}
        self._stack: list[Scope] = [Scope()]
        self.backward = False
        self.now = self.peak = 0
        self.peak_of_ends: int | None = None

    @property
    def scope(self) -> Scope:
        """The innermost scope."""
        return self._stack[-1]

    def save(self, tensor: Tensor) -> Tensor:
        """Notes a tensor that autograd saves for the backward pass, and returns it."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            known = self._saved.get(storage._cdata)
            if known is None or known[0]() is not storage:  # freed, and its address used again
                self._saved[storage._cdata] = weakref.ref(storage), self.scope
        return tensor.detach()

    def settle(self) -> None:
        """Adds what is still saved after the forward pass to the scopes that saved it."""
        for reference, scope in self._saved.values():
            storage = reference()
            scope.kept += 0 if storage is None else storage.nbytes()

    def reach_layers(self, gradient: Tensor) -> None:
        """Ends the part of the backward pass that comes before all layers."""
        if self.peak_of_ends is None:
            self.peak_of_ends, self.peak = self.peak, self.now

    def enter(self, scope: Scope) -> None:
        self._stack.append(scope)

    def leave(self) -> None:
        self._stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _ATEN._local_scalar_dense.default:
            # Meta tensors have no values. False for conditions: no layer is dropped.
            return 1.0 if args[0].is_floating_point() else args[0].dtype is not torch.bool
        result = func(*args, **kwargs)
        tensors = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        for tensor in tensors:
            self._hold(tensor)
        if self.backward:
            self.peak = max(self.peak, self.now)
        else:
            self._count(func, args, kwargs, result, tensors)
        return result

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        # A weight's gradient is not an activation; ZeRO takes it as soon as it exists.
        gradient = self.backward and tensor.shape in self._shapes
        if key in self._held or key in self._weights or gradient:
            return

        def freed(_: Any) -> None:
            del self._held[key]
            self.now -= size

        self._held[key] = weakref.ref(storage, freed)
        self.now += size

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any, outputs: list[Tensor]) -> None:
        packet = func._overloadpacket
        if packet not in flop_registry:
            return
        flops = flop_registry[packet](*args, **kwargs, out_val=result)
        if packet in _PRODUCTS:
            self.scope.outputs += sum(x.untyped_storage().nbytes() for x in outputs)
            left, right = [x for x in args if isinstance(x, Tensor)][-2:]
            groups = left.shape[0] if left.dim() == 3 else 1
            inputs = left.shape[-1]
            if self._is_weight(right):
                rows = groups * left.shape[-2]
                return self._product(right, rows, inputs, right.shape[-1], groups)
            if self._is_weight(left):
                rows = groups * right.shape[-1]
                return self._product(left, rows, inputs, left.shape[-2], groups)
        self.scope.mixing_flops += flops

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._weights

    def _product(self, weight: Tensor, rows: int, inputs: int, outputs: int, groups: int) -> None:
        found = self._weights[weight.untyped_storage()._cdata]
        self.scope.weights[id(found)].append((rows, inputs, outputs, groups))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Any = None) -> Tensor:
        """Records a call of attention; tensors are (batch, heads, tokens, size)."""
        self.scope.attention.append((query.shape[1], key.shape[1], query.shape[3], value.shape[3]))
        out: Tensor = _Flash.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
        self.scope.outputs += out.nbytes + 4 * out[..., 0].numel()
        return out

    def multiply_grouped(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Records a product of (rows, inputs) with the (experts, inputs, outputs) of `weight`."""
        experts, inputs, outputs = weight.shape
        self._product(weight, len(rows), inputs, outputs, experts)
        result: Tensor = _Grouped.apply(rows, weight, outputs)  # type: ignore[no-untyped-call]
        return result


_running: list[Trace] = []


def _recorded_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **how: Any
) -> tuple[Tensor, None]:
    return _running[-1].attend(query, key, value).transpose(1, 2), None


def _recorded_sdpa(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *rest: Any, **how: Any
) -> Tensor:
    return _running[-1].attend(query, key, value, attn_mask)


def _recorded_grouped(rows: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    return _running[-1].multiply_grouped(rows.to(weight.dtype), weight)


def _mask_of_no_size(
    batch_size: int, q_length: int, kv_length: int, dtype: torch.dtype = torch.float32, **how: Any
) -> Tensor:
    """Returns a mask for models that index it. Flash attention needs none."""
    return torch.empty((), dtype=dtype, device="meta").expand(batch_size, 1, q_length, kv_length)


AttentionInterface.register(_RECORDER, _recorded_attention)
AttentionMaskInterface.register(_RECORDER, _mask_of_no_size)


@contextmanager
def _replaced(model: Any) -> Iterator[None]:
    """Replaces attention by the recorder and experts by a grouped product for any type of element,
    and removes the head of a model that has no module without it.

    Models with attention of their own keep it.
    """
    from transformers.integrations import moe

    with ExitStack() as stack:
        if model.base_model is model:
            stack.callback(model.set_output_embeddings, model.get_output_embeddings())
            model.set_output_embeddings(nn.Identity())
        if model._can_set_attn_implementation() and model._supports_attention_backend:
            model.set_attn_implementation(_RECORDER)
        if model._can_set_experts_implementation():
            model.set_experts_implementation("grouped_mm")
        for place, name, replaced in (
            (moe, "_grouped_mm", _recorded_grouped),
            (nn.functional, "scaled_dot_product_attention", _recorded_sdpa),
            # These read values, which meta tensors do not have. The example is not packed.
            (masking_utils, "find_packed_sequence_indices", lambda *_: None),
            (torch.distributions.Distribution, "_validate_args", False),
        ):
            stack.enter_context(patch.object(place, name, replaced))
        yield


@dataclass
class Recorded:
    """The result of `run`. `ends`: outside of the layers. `working`: bytes that the backward pass
    adds at its peak to what is kept, in the layers; `working_of_ends`: before them."""

    layers: list[Scope]
    ends: Scope
    working: int
    working_of_ends: int


def run(model: Any, layers: list[nn.Module], tokens: int) -> Recorded:
    """Runs an example of `tokens` forward and backward through the model without its head.

    `model` is on the meta device and in training mode, and `layers` are some of its modules.
    """
    base = model.base_model
    scopes = {id(layer): Scope() for layer in layers}
    ends = Scope()
    hooks = []
    with _replaced(model), Trace(model) as trace:
        entered: dict[int, Any] = {}
        trace.enter(ends)
        _running.append(trace)

        def enters(module: nn.Module, args: Any, kwargs: Any) -> None:
            scope = scopes[id(module)]
            trace.enter(scope)
            inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            for storage in (x.untyped_storage() for x in inputs):
                known = entered.get(storage._cdata)
                if known is None or known() is not storage:
                    entered[storage._cdata] = weakref.ref(storage)
                    scope.entering += storage.nbytes()

        def leaves(module: nn.Module, args: Any, output: Any) -> None:
            trace.leave()
            first = next(x for x in tree_leaves(output) if isinstance(x, Tensor))
            if first.requires_grad:
                first.register_hook(trace.reach_layers)

        def passes(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    setattr(trace.scope, name, getattr(trace.scope, name) + output.numel())

            return hook

        for layer in layers:
            hooks.append(layer.register_forward_pre_hook(enters, with_kwargs=True))
            hooks.append(layer.register_forward_hook(leaves))
        for module in base.modules():
            if "Norm" in type(module).__name__ and not list(module.children()):
                hooks.append(module.register_forward_hook(passes("normed")))
            elif type(module).__module__ in _ACTIVATIONS:
                hooks.append(module.register_forward_hook(passes("activated")))
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            drop = parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
            hooks.append(drop)
        try:
            ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
            with torch.device("meta"), saved_tensors_hooks(trace.save, lambda saved: saved):
                hidden = base(input_ids=ids, use_cache=False)[0]
            kept = trace.now
            trace.settle()
            ends.kept = kept - sum(scope.kept for scope in scopes.values())
            trace.backward, trace.peak = True, kept
            hidden.backward(torch.ones_like(hidden))
        finally:
            _running.pop()
            for handle in hooks:
                handle.remove()
    before_layers = (trace.peak_of_ends or kept) - kept
    return Recorded([scopes[id(one)] for one in layers], ends, trace.peak - kept, before_layers)
