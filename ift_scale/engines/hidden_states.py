"""States of the residual stream at the last token of each prompt, and the logit lens on them.

Layer 0 is the embedding's output and layer l the output of decoder layer l, before the final norm.
The strategies of the log-probabilities compute them (`strategies`, `selector`), so every state
equals that of a plain forward pass of the row alone within the engine's tolerance.

Logit lens (nostalgebraist 2020; Belrose et al. 2023, arXiv 2303.08112): the final norm and the head
applied to the state of each layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ift_scale.engines import shared_prefix
from ift_scale.engines.strategies import (
    ForwardPasses,
    PaddedBatches,
    ScoredSuffix,
    SharedPrefix,
    SingleRows,
    Strategy,
)
from ift_scale.errors import DataError, Place


class StatePasses(ForwardPasses):
    """Forward passes that return states in place of logits.

    Shape (num_scored, (num_layers + 1) * width), float32. Raises DataError if the model does not
    return its layers' states.
    """

    def __init__(self, passes: ForwardPasses):
        vars(self).update(vars(passes))  # the same model with the same hooks
        self.use_attention()
        self.final_norm = _final_norm(self.model, self.plain_options)
        states_1F, out = self.logits([[1, 2, 3]], [0], [2], **self.plain_options)
        self.num_layers = len(out.hidden_states)
        self.width = states_1F.shape[1] // self.num_layers

    @torch.inference_mode()
    def logits(
        self, ids_BT: list[list[int]], rows: list[int], positions: list[int], **options: Any
    ) -> tuple[Tensor, Any]:
        with _inputs_of(self.final_norm) as before_norm:
            _, out = super().logits(ids_BT, rows, positions, output_hidden_states=True, **options)
        shape = (len(ids_BT), len(ids_BT[0]))
        layers = getattr(out, "hidden_states", None)
        if not layers or any(state is None or state.shape[:2] != shape for state in layers):
            name = type(self.model).__name__
            problem = f"{name} does not return the states of its layers (output_hidden_states)"
            remedy = "Set hidden.on to false, or use a model whose class returns them"
            raise DataError(Place("model"), problem, remedy)
        # transformers returns the last state after the final norm.
        states = [*layers[:-1], before_norm[-1] if before_norm else layers[-1]]
        if any(state.shape != states[0].shape for state in states):
            raise DataError(
                Place("model"),
                f"{type(self.model).__name__} has layers of several widths",
                "Set hidden.on to false, or use a model whose layers have one width",
            )
        return torch.stack([s[rows, positions] for s in states], 1).flatten(1).float(), out

    @torch.inference_mode()
    def lens(self, states_RLH: Tensor, options: Sequence[Sequence[int]]) -> Tensor:
        """Returns the option whose token has the highest logit at each layer, shape (R, L).

        -1 if the model has no final norm, if options begin with the same token, or without options.
        """
        head = self.model.get_output_embeddings()
        found_RL = torch.full(states_RLH.shape[:2], -1)
        if self.final_norm is None or getattr(head, "weight", None) is None:
            return found_RL
        for row, ids in enumerate(options):
            if ids and len(set(ids)) == len(ids):
                weight_CH = head.weight[list(ids)]
                normed_LH = self.final_norm(states_RLH[row].to(weight_CH.dtype))
                bias = getattr(head, "bias", None)
                logits_LC = nn.functional.linear(
                    normed_LH, weight_CH, None if bias is None else bias[list(ids)]
                )
                found_RL[row] = logits_LC.argmax(1).cpu()
        return found_RL


class SharedStates(SharedPrefix):
    """`SharedPrefix` that returns the states of each suffix's last token."""

    def __init__(self, used: SharedPrefix, passes: StatePasses):
        vars(self).update(vars(used))
        self.passes = passes

    def logprobs(
        self, prefix: list[int], prepared: Any, items: Sequence[ScoredSuffix]
    ) -> list[Tensor]:
        counts = [1] * len(items)
        suffixes = [item.suffix for item in items]
        packed = shared_prefix.PackedSuffixes(suffixes, counts, prepared.prefix, len(prefix))
        self.passes.use_attention(shared_prefix.NAME)
        states_RF, _ = self.passes.logits(
            [packed.ids_N],
            [0] * len(items),
            packed.rows_R.tolist(),
            position_ids=packed.positions_N[None],
            use_cache=False,
            shared=packed,
        )
        return list(states_RF)


class StateBatches(PaddedBatches):
    """`PaddedBatches` that returns the states of each row's last token."""

    def logprobs(
        self, prefix: list[int], prepared: Any, items: Sequence[ScoredSuffix]
    ) -> list[Tensor]:
        before = [] if prepared is not None else prefix
        rows = [before + item.suffix for item in items]
        return list(self._logits(rows, [1] * len(items), prepared).cpu())


class StateRows(SingleRows):
    """`SingleRows` that returns the states of the row's last token."""

    def row(self, prefix: list[int], item: ScoredSuffix, copies: int = 1) -> Tensor:
        ids = prefix + item.suffix
        self.passes.use_attention()
        states_1F, _ = self.passes.logits(
            [ids] * copies, [0], [len(ids) - 1], **self.passes.plain_options
        )
        return states_1F[0].cpu()


def state_strategies(used: Sequence[Strategy], passes: StatePasses) -> list[Strategy]:
    """Returns the counterparts of the strategies of the log-probabilities, fastest first."""
    shared = [SharedStates(s, passes) for s in used if isinstance(s, SharedPrefix)]
    batches = [StateBatches(passes, caches) for caches in (True, False)] if used else []
    return [*shared, *batches]


@contextmanager
def _inputs_of(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """Yields a list that receives the module's input of every call."""
    inputs: list[Tensor] = []
    if module is None:
        yield inputs
        return
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        yield inputs
    finally:
        handle.remove()


@torch.inference_mode()
def _final_norm(model: Any, options: dict[str, Any]) -> nn.Module | None:
    """Returns the last module without matrices that computes the head's input, or None."""
    head = model.get_output_embeddings()
    if head is None:
        return None
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []  # kept, so that no memory is used twice

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            calls.append((module, args[0], output))

    candidates = [
        module
        for module in model.modules()
        if sum(1 for _ in module.parameters()) > 0 and all(p.dim() < 2 for p in module.parameters())
    ]
    handles = [module.register_forward_hook(record) for module in candidates]
    try:
        with _inputs_of(head) as inputs:
            model(torch.tensor([[1, 2, 3]], device=model.device), **options)
    finally:
        for handle in handles:
            handle.remove()
    for module, before, after in reversed(calls):
        is_heads_input = inputs and after.data_ptr() == inputs[-1].data_ptr()
        if is_heads_input and before.shape == after.shape == inputs[-1].shape:
            return module
    return None
