"""Compares weights that were trained alike, whose gradients may differ by rounding."""

import torch

RATE = 1e-3
"""The learning rate of the tests that compare weights."""


def assert_trained_alike(
    found: dict[str, torch.Tensor], right: dict[str, torch.Tensor], share: float = 1e-4
) -> None:
    """Asserts that all but a share of the weights are equal up to rounding.

    AdamW's first step moves each weight by the rate times its gradient's sign. For the few
    gradients near its epsilon (1e-8), rounding changes that, at most to the other sign.
    """
    assert found.keys() == right.keys()
    differences = torch.cat([(found[name] - one).abs().flatten() for name, one in right.items()])
    assert float(differences.max()) < 2 * RATE
    assert float((differences > RATE / 100).float().mean()) < share
