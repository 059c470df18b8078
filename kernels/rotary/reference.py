"""The rotation in plain PyTorch, without a rotated copy of its input."""

from functools import partial

from ift_scale_kernels.rotary import autograd
from torch import Tensor


def rotate(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, back: bool) -> Tensor:
    """Implements `autograd.Rotate`."""
    cos_B1TD, sin_B1TD = cos_BTD[:, None], sin_BTD[:, None]
    out_BHTD = x_BHTD * cos_B1TD
    half = x_BHTD.shape[-1] // 2
    sign = -1 if back else 1
    out_BHTD[..., :half].addcmul_(x_BHTD[..., half:], sin_B1TD[..., :half], value=-sign)
    out_BHTD[..., half:].addcmul_(x_BHTD[..., :half], sin_B1TD[..., half:], value=sign)
    return out_BHTD


rotary = partial(autograd.rotary, rotate)
