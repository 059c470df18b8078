"""A checkpoint of another world size or ZeRO stage: each rank reads just its own parts out of the files of all old ranks.

DeepSpeed's own way (ds_to_universal, load_universal) writes the whole checkpoint twice more and cannot cross between stages 0,
1-2 and 3. Here nothing is written: the files are mapped, and of every parameter the span that this rank owns is copied.
A parameter's values are its float32 weights ("fp32") and AdamW's two moments, each flat, in the order of the old ranks.
"""

from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state
from torch import Tensor

from ift_scale.train.engine.deepspeed import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("fp32", *MOMENTS)


class Parts:
    """The values of every parameter in the files of a checkpoint. `names`: of the model's parameters, in their order."""

    def __init__(self, folder: Path, zero_stage: int, world_size: int, names: list[str]):
        self.step = 0
        self._pieces: dict[tuple[str, str], list[Tensor]] = {}
        if zero_stage == 0:
            self._add_whole(_map(folder / "mp_rank_00_model_states.pt"), names)
        for rank in range(world_size if zero_stage else 0):
            state = _map(_optimizer_file(folder, rank))["optimizer_state_dict"]
            if zero_stage == 3:
                shapes = _map(folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")[
                    "param_shapes"
                ]
                self._add_stage3(state, shapes, world_size)
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
        """A rank's partition is one span of all parameters laid end to end; `param_slice_mappings` says where each lies in it."""
        groups = state["single_partition_of_fp32_groups"]
        for number, (flat, slices) in enumerate(
            zip(groups, state["param_slice_mappings"], strict=True)
        ):
            values = state["base_optimizer_state"]["state"][number]
            self.step = int(values["step"])
            for name, place in slices.items():
                for kind, whole in zip(
                    KINDS, (flat, *(values[moment] for moment in MOMENTS)), strict=True
                ):
                    self._add(name, kind, whole[place.start : place.start + place.numel])

    def _add_stage3(
        self, state: dict[str, Any], shapes: list[dict[str, torch.Size]], world_size: int
    ) -> None:
        """A rank has an equal span of every parameter, the last one's end padded."""
        for number, (flat, named) in enumerate(zip(state["fp32_flat_groups"], shapes, strict=True)):
            values = state["optimizer_state_dict"]["state"][number]
            self.step = int(values["step"])
            start = 0
            for name, shape in named.items():
                size = -(-shape.numel() // world_size)
                for kind, whole in zip(
                    KINDS, (flat, *(values[moment] for moment in MOMENTS)), strict=True
                ):
                    self._add(name, kind, whole[start : start + size])
                start += size

    def read(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """The flat values [start, stop) of a parameter, float32."""
        found, begin = [], 0
        for piece in self._pieces[name, kind]:
            found.append(piece[max(0, start - begin) : max(0, stop - begin)])
            begin += len(piece)
        values = torch.cat(found).float()
        assert len(values) == stop - start, (name, kind, len(values), start, stop)
        return values


def _map(path: Path) -> Any:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)


def _optimizer_file(folder: Path, rank: int) -> Path:
    name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    path = folder / name
    return path if path.exists() else folder / f"bf16_{name}"


def load(engine: Engine, folder: Path, zero_stage: int, world_size: int) -> None:
    """Put DeepSpeed's files in `folder`, of that stage and world size, into a fresh engine of any other."""
    named = dict(engine.packed.named_parameters())
    parts = Parts(folder, zero_stage, world_size, list(named))
    {0: _into_whole, 3: _into_stage3}.get(int(engine.config.zero_stage), _into_stage12)(
        engine, named, parts
    )


def _fresh_state(base: Any, parameter: Tensor, step: int) -> dict[str, Any]:
    """A parameter's state as the optimizer makes it in its first step; torch's own counts steps in a tensor."""
    counted: Any = step
    if isinstance(base, torch.optim.AdamW):
        counted = torch.tensor(
            float(step), device=parameter.device if base.defaults["fused"] else None
        )
    base.state[parameter] = {
        "step": counted,
        **{kind: torch.zeros_like(parameter) for kind in MOMENTS},
    }
    return base.state[parameter]


@torch.no_grad()
def _into_whole(engine: Engine, named: dict[str, Any], parts: Parts) -> None:
    for name, parameter in named.items():
        state = _fresh_state(engine.deepspeed.optimizer, parameter, parts.step)
        for kind, target in zip(
            KINDS, (parameter, *(state[moment] for moment in MOMENTS)), strict=True
        ):
            target.copy_(parts.read(name, kind, 0, parameter.numel()).view_as(target))


@torch.no_grad()
def _into_stage12(engine: Engine, named: dict[str, Any], parts: Parts) -> None:
    """Into this rank's flat partition, through DeepSpeed's link from each parameter to its span there."""
    outer = engine.deepspeed.optimizer
    for group in outer.optimizer.param_groups:
        _fresh_state(outer.optimizer, group["params"][0], parts.step)
    outer._lazy_init_hp_params_optimizer_state()
    for name, parameter in named.items():
        link = parameter._hp_mapping
        if link is not None:  # else other ranks have all of it
            span = link.lp_fragment_address
            for kind in KINDS:
                target = link.get_hp_fragment(None if kind == "fp32" else kind)
                target.copy_(parts.read(name, kind, span.start, span.start + span.numel))
    outer.update_lp_params()


@torch.no_grad()
def _into_stage3(engine: Engine, named: dict[str, Any], parts: Parts) -> None:
    """Into this rank's equal span of each parameter, padded at the end, and the weights computed with beside it."""
    outer, rank = engine.deepspeed.optimizer, engine.ranks.rank
    outer.checkpoint_event_prologue()  # parameters that are kept whole are put together again by the epilogue
    for flat in outer.fp32_partitioned_groups_flat:
        _fresh_state(outer.optimizer, flat, parts.step)
    for name, parameter in named.items():
        size = parameter.partition_numel()
        start, stop = (min(place, parameter.ds_numel) for place in (rank * size, (rank + 1) * size))
        for kind in KINDS:
            values = torch.zeros(size)
            values[: stop - start] = parts.read(name, kind, start, stop)
            if kind == "fp32":
                safe_set_local_fp32_param(parameter, values)
                parameter.ds_tensor.copy_(values)
            else:
                safe_set_local_optimizer_state(parameter, values, kind)
    outer.checkpoint_event_epilogue()
