"""Compares a path's logits and gradients with the plain passes', up to measured rounding.

Logits are compared relative to the largest of their row, and a parameter's gradient relative to its
own largest element. A gradient that is mathematically 0, such as that of a key's bias, is nothing
but rounding: so no gradient is compared to less than the rounding of the plain passes allows.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE = 1e-5
"""Largest difference, relative to the largest number of the row of logits or of the gradient."""
# Where the plain passes themselves round more, this many times their rounding is allowed: up to a
# relative difference of LARGEST_ROUNDING, and, for small gradients, up to TOLERANCE times this
# share of the largest gradient of all parameters.
_ROUNDINGS, LARGEST_ROUNDING, _SMALL_GRADIENT = 5.0, 1e-4, 5e-2
_TINY = torch.finfo(torch.float32).tiny


class Results(NamedTuple):
    """The logits of each example's supervised rows, and all gradients by parameter name."""

    logits: list[Tensor]
    gradients: dict[str, Tensor]


class Expected(NamedTuple):
    """The plain passes' results. `sizes`: the number that a gradient's differences are relative to,
    by parameter name; `tolerance`: the largest relative difference. `evaluated`: the logits in
    evaluation mode; None if that changes the weights."""

    logits: list[Tensor]
    gradients: dict[str, Tensor]
    sizes: dict[str, float]
    tolerance: float
    evaluated: list[Tensor] | None

    @classmethod
    def of(
        cls, plain: Results, again: Sequence[Results], evaluated: list[Tensor] | None
    ) -> "Expected":
        """Returns the plain passes' results with their rounding.

        `again`: results that differ from `plain` by rounding only.
        """
        numbers = range(len(plain.logits))
        rounding = max(logits_differ(other.logits, plain.logits, numbers) for other in again)
        tolerance = max(TOLERANCE, min(_ROUNDINGS * rounding, LARGEST_ROUNDING))
        allowed = _allowed(plain.gradients, [other.gradients for other in again])
        sizes = {name: gap / tolerance for name, gap in allowed.items()}
        return cls(plain.logits, plain.gradients, sizes, tolerance, evaluated)

    def differences(self, found: Results, how: str) -> dict[str, float]:
        """Returns the largest differences of logits and gradients, by a description with `how`."""
        gaps = {
            name: _finite(_gap(found.gradients[name], gradient) / self.sizes[name])
            for name, gradient in self.gradients.items()
        }
        worst = max(gaps, key=lambda name: gaps[name])
        return {
            f"the logits differ{how}": logits_differ(
                found.logits, self.logits, range(len(self.logits))
            ),
            f"the gradient of {worst} differs{how}": gaps[worst],
        }


def difference(actual: Tensor, expected: Tensor) -> float:
    """Returns the largest difference of a row, relative to the row's largest number."""
    size = expected.abs().amax(-1).clamp(min=_TINY)
    return _finite(((actual - expected).abs().amax(-1) / size).max())


def logits_differ(
    actual: Sequence[Tensor], expected: Sequence[Tensor], numbers: Sequence[int]
) -> float:
    """Returns the largest difference of the examples with these numbers."""
    return max(difference(actual[number], expected[number]) for number in numbers)


def _allowed(
    gradients: Mapping[str, Tensor], again: Sequence[Mapping[str, Tensor]]
) -> dict[str, float]:
    """Returns the largest difference of each parameter's gradient."""
    largest = {name: float(gradient.abs().max()) for name, gradient in gradients.items()}
    small = TOLERANCE * _SMALL_GRADIENT * max(largest.values())
    allowed = {}
    for name, gradient in gradients.items():
        rounding = max(float(_gap(other[name], gradient)) for other in again)
        excused = min(_ROUNDINGS * rounding, max(small, LARGEST_ROUNDING * largest[name]))
        allowed[name] = max(TOLERANCE * largest[name], excused, _TINY)
    return allowed


def _gap(actual: Tensor, expected: Tensor) -> Tensor:
    return (actual - expected).abs().max()


def _finite(gap: Tensor) -> float:
    """Returns infinity for a gap that is not a number."""
    return float(gap.nan_to_num(torch.inf, torch.inf))
