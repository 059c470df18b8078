"""Loads a checkpoint of another world size or ZeRO stage: each rank reads only its own parts.

DeepSpeed's universal checkpoints (ds_to_universal, load_universal) write the whole checkpoint twice
more and cannot convert between stages 0, 1-2 and 3. Here nothing is written: the files of all old
ranks are memory-mapped, and each rank copies the span of every parameter that it owns. A
parameter's values are its float32 weights ("fp32") and AdamW's two moments, each flat, in the order
of the old ranks.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state
from torch import Tensor

from ift_scale.train.engine import safe_load

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("fp32", *MOMENTS)


class CheckpointTensors:
    """The values of every parameter in a checkpoint. `names`: the model's parameters, in order."""

    def __init__(self, folder: Path, zero_stage: int, world_size: int, names: list[str]):
        self.step = 0
        self._pieces: dict[tuple[str, str], list[Tensor]] = {}
        if zero_stage == 0:
            self._add_whole(safe_load.mapped(folder / "mp_rank_00_model_states.pt"), names)
        for rank in range(world_size if zero_stage else 0):
            state = safe_load.mapped(_optimizer_file(folder, rank))["optimizer_state_dict"]
            if zero_stage == 3:
                model = safe_load.mapped(folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
                self._add_stage3(state, model["param_shapes"], world_size)
            else:
                self._add_stage12(state)

    def _add(self, name: str, kind: str, flat: Tensor) -> None:
        self._pieces.setdefault((name, kind), []).append(flat)

    def _add_whole(self, state: dict[str, Any], names: list[str]) -> None:
        for number, name in enumerate(names):
            values = state["optimizer"]["state"][number]
            self.step = int(values["step"])
            self._add(name, "fp32", state["module"][name].flatten())
            for kind in MOMENTS:
                self._add(name, kind, values[kind].flatten())

    def _add_stage12(self, state: dict[str, Any]) -> None:
        """Add a rank's partition: one span of all parameters laid end to end.

        `param_slice_mappings` has the position of each parameter in it.
        """
        groups = state["single_partition_of_fp32_groups"]
        for number, (flat, slices) in enumerate(
            zip(groups, state["param_slice_mappings"], strict=True)
        ):
            values = state["base_optimizer_state"]["state"][number]
            self.step = int(values["step"])
            for name, span in slices.items():
                for kind, whole in _kinds(flat, values):
                    self._add(name, kind, whole[span.start : span.start + span.numel])

    def _add_stage3(
        self, state: dict[str, Any], shapes: list[dict[str, torch.Size]], world_size: int
    ) -> None:
        """Add a rank's partition: an equal span of every parameter, padded on the last rank."""
        for number, (flat, named) in enumerate(zip(state["fp32_flat_groups"], shapes, strict=True)):
            values = state["optimizer_state_dict"]["state"][number]
            self.step = int(values["step"])
            start = 0
            for name, shape in named.items():
                size = -(-shape.numel() // world_size)
                for kind, whole in _kinds(flat, values):
                    self._add(name, kind, whole[start : start + size])
                start += size

    def read(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """Returns the flat values [start, stop) of a parameter, float32."""
        spans, begin = [], 0
        for piece in self._pieces[name, kind]:
            spans.append(piece[max(0, start - begin) : max(0, stop - begin)])
            begin += len(piece)
        values = torch.cat(spans).float()
        assert len(values) == stop - start, (name, kind, len(values), start, stop)
        return values


def _kinds(weights: Tensor, state: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights and AdamW's moments with their kinds."""
    yield from zip(KINDS, (weights, *(state[moment] for moment in MOMENTS)), strict=True)


def _optimizer_file(folder: Path, rank: int) -> Path:
    name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    path = folder / name
    return path if path.exists() else folder / f"bf16_{name}"


def load(
    deepspeed: Any, named: dict[str, Any], folder: Path, zero_stage: int, world_size: int
) -> None:
    """Load DeepSpeed's files in `folder` into a fresh engine of any stage and world size.

    `zero_stage`, `world_size`: of the checkpoint. `named`: the model's parameters by name.
    """
    parts = CheckpointTensors(folder, zero_stage, world_size, list(named))
    stage = int(deepspeed.zero_optimization_stage())
    {0: _into_whole, 3: _into_stage3}.get(stage, _into_stage12)(deepspeed.optimizer, named, parts)


def _fresh_state(base: Any, parameter: Tensor, step: int) -> dict[str, Any]:
    """Returns a parameter's state as the optimizer would create it in its first step."""
    count: Any = step
    if isinstance(base, torch.optim.AdamW):  # counts steps in a tensor
        device = parameter.device if base.defaults["fused"] else None
        count = torch.tensor(float(step), device=device)
    base.state[parameter] = {
        "step": count,
        **{kind: torch.zeros_like(parameter) for kind in MOMENTS},
    }
    return base.state[parameter]


@torch.no_grad()
def _into_whole(optimizer: Any, named: dict[str, Any], parts: CheckpointTensors) -> None:
    for name, parameter in named.items():
        state = _fresh_state(optimizer, parameter, parts.step)
        for kind, target in _kinds(parameter, state):
            target.copy_(parts.read(name, kind, 0, parameter.numel()).view_as(target))


@torch.no_grad()
def _into_stage12(outer: Any, named: dict[str, Any], parts: CheckpointTensors) -> None:
    """Fill this rank's flat partition, using DeepSpeed's mapping of each parameter to its span."""
    for group in outer.optimizer.param_groups:
        _fresh_state(outer.optimizer, group["params"][0], parts.step)
    outer._lazy_init_hp_params_optimizer_state()
    for name, parameter in named.items():
        link = parameter._hp_mapping
        if link is not None:  # None if other ranks own the whole parameter
            span = link.lp_fragment_address
            for kind in KINDS:
                target = link.get_hp_fragment(None if kind == "fp32" else kind)
                target.copy_(parts.read(name, kind, span.start, span.start + span.numel))
    outer.update_lp_params()


@torch.no_grad()
def _into_stage3(outer: Any, named: dict[str, Any], parts: CheckpointTensors) -> None:
    """Fill this rank's equal span of each parameter, and the weights in the training dtype."""
    rank = torch.distributed.get_rank()
    outer.checkpoint_event_prologue()  # the epilogue gathers again what is kept unpartitioned
    for flat in outer.fp32_partitioned_groups_flat:
        _fresh_state(outer.optimizer, flat, parts.step)
    for name, parameter in named.items():
        size = parameter.partition_numel()
        start = min(rank * size, parameter.ds_numel)
        stop = min((rank + 1) * size, parameter.ds_numel)
        for kind in KINDS:
            values = torch.zeros(size)
            values[: stop - start] = parts.read(name, kind, start, stop)
            if kind == "fp32":
                safe_set_local_fp32_param(parameter, values)
                parameter.ds_tensor.copy_(values)
            else:
                safe_set_local_optimizer_state(parameter, values, kind)
    outer.checkpoint_event_epilogue()
