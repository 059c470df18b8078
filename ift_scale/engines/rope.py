"""Rotary frequencies that depend on the longest row of a forward pass: which rows may share one.

LongRoPE (arXiv 2402.13753) uses one set of frequencies up to `original_max_position_embeddings` and
another one beyond. Dynamic NTK scaling uses new frequencies for every length beyond
`max_position_embeddings`. transformers decides by the largest position of the batch, so a long row
would change the short rows next to it, and a cached prefix of one class is wrong before a row of
another class.
"""

from typing import Any, NamedTuple

from torch import nn

# Types whose frequencies never depend on the length.
_FIXED = {"default", "linear", "llama3", "yarn", "proportional", "mrope"}


class LengthClass(NamedTuple):
    """Rows of one class use the same frequencies and may share a forward pass.

    `beyond`: for each limit of the model, True if the row is longer. `own`: the row's length if its
    frequencies apply to exactly this length, else 0.
    """

    beyond: tuple[bool, ...]
    own: int = 0


class RopeLimits:
    """The lengths at which a model's rotary frequencies change, and the rotary modules."""

    def __init__(self, model: nn.Module):
        self.modules = [m for m in model.modules() if getattr(m, "rope_type", None) is not None]
        self.switches = tuple(sorted({n for m in self.modules for n in _switches(m)}))
        self.scaled_beyond = min((n for m in self.modules for n in _scaled_beyond(m)), default=None)
        if not self.switches and self.scaled_beyond is None:
            self.modules = []
        self._fresh = [dict(vars(m)) | {"_buffers": dict(m._buffers)} for m in self.modules]

    @property
    def lengths(self) -> tuple[int, ...]:
        """All lengths beyond which frequencies change, ascending."""
        return tuple(
            sorted({*self.switches, *([self.scaled_beyond] if self.scaled_beyond else [])})
        )

    def class_of(self, length: int) -> LengthClass:
        """Returns the class of a row of `length` tokens."""
        is_scaled = self.scaled_beyond is not None and length > self.scaled_beyond
        return LengthClass(
            tuple(length > switch for switch in self.switches), length if is_scaled else 0
        )

    def reset(self) -> None:
        """Restores the modules' initial state, so that no forward pass depends on earlier ones.

        Dynamic NTK keeps the frequencies of the longest row until a much shorter one comes.
        """
        for module, fresh in zip(self.modules, self._fresh, strict=True):
            vars(module).clear()
            vars(module).update(fresh, _buffers=dict(fresh["_buffers"]))


def _parameters(module: Any) -> list[tuple[str, dict[str, Any]]]:
    """Returns (type, parameters) of each kind of layer that the rotary module serves."""
    parameters = getattr(module.config, "rope_parameters", None) or {}
    if isinstance(module.rope_type, dict):
        return [
            (str(kind), parameters.get(layer) or {}) for layer, kind in module.rope_type.items()
        ]
    return [(str(module.rope_type), parameters)]


def _switches(module: Any) -> list[int]:
    """Returns the lengths at which two-sided types switch.

    An unknown type that names an original length counts as two-sided.
    """
    lengths = []
    for kind, parameters in _parameters(module):
        is_two_sided = any(str(key).startswith(("long_", "short_")) for key in parameters)
        if "dynamic" not in kind and (is_two_sided or kind not in _FIXED):
            limit = parameters.get("original_max_position_embeddings")
            lengths.append(int(limit or module.config.max_position_embeddings))
    return lengths


def _scaled_beyond(module: Any) -> list[int]:
    """Returns the lengths beyond which dynamic NTK scaling begins.

    At the limit itself scaling changes nothing.
    """
    kinds = [kind for kind, _ in _parameters(module)]
    return (
        [int(module.config.max_position_embeddings)]
        if any("dynamic" in kind for kind in kinds)
        else []
    )
