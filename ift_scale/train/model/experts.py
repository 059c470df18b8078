"""Which modules of a model are experts of a mixture."""

import re
from collections.abc import Iterable

from torch import nn


def expert_modules(model: nn.Module) -> list[nn.Module]:
    """Returns the modules whose parameters are all experts of a layer.

    transformers 5 holds them as tensors over all experts; a folder's own code may have a module for
    each (`_lists_experts`), whose owner is returned.
    """
    return [
        module
        for name, module in model.named_modules()
        if _lists_experts(module)
        or (
            name.rpartition(".")[2] == "experts"
            and any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))
        )
    ]


def has_listed_experts(model: nn.Module) -> bool:
    """True if each expert is a module of its own, of which a pass may run some only."""
    return any(_lists_experts(module) for module in model.modules())


def _lists_experts(module: nn.Module) -> bool:
    """True if the module owns several experts: in a list or dict that is named after them or has
    modules of a class named after them, or as children with a number each (`expert_0`)."""
    if isinstance(module, _CONTAINERS):
        return False
    numbered = [name for name, _ in module.named_children() if _NUMBERED_EXPERT.fullmatch(name)]
    return len(numbered) > 1 or any(
        isinstance(part, _CONTAINERS)
        and ("expert" in name.lower() or _are_experts(part.children()))
        for name, part in module.named_children()
    )


def _are_experts(modules: Iterable[nn.Module]) -> bool:
    names = [type(module).__name__.lower() for module in modules]
    return len(names) > 1 and all(re.search(r"expert(?!s)", name) for name in names)


_CONTAINERS = (nn.ModuleList, nn.ModuleDict)
_NUMBERED_EXPERT = re.compile(r"\w*experts?_?\d+")
