"""One rank's micro-batch: examples laid end to end without padding, positions restarting at each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ift_scale.train.data import TokenizedSet


@dataclass(frozen=True)
class MicroBatch:
    """T tokens of which R predict a supervised token. `rows_R` are the places whose next token is supervised."""

    ids_1T: Tensor
    positions_1T: Tensor
    rows_R: Tensor
    labels_R: Tensor


def collate(examples: Sequence[int], tokens: TokenizedSet, device: torch.device) -> MicroBatch:
    """The examples as one packed sequence; a lone padding token and no rows where there are none, so that every rank takes part."""
    if not examples:
        zero, none = torch.zeros(1, 1, dtype=torch.long, device=device), torch.zeros(0, dtype=torch.long, device=device)
        return MicroBatch(zero, zero, none, none)
    spans = [(tokens.offsets[i], tokens.offsets[i + 1]) for i in examples]
    ids = np.concatenate([tokens.ids[a:b] for a, b in spans]).astype(np.int64)
    positions = np.concatenate([np.arange(b - a) for a, b in spans])
    supervised = np.concatenate([tokens.supervised[a:b] for a, b in spans])
    supervised[positions == 0] = False  # an example's first token is predicted by nothing
    labelled = np.flatnonzero(supervised)

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return MicroBatch(put(ids)[None], put(positions)[None], put(labelled - 1), put(ids[labelled]))
