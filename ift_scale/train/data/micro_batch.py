"""What one rank computes in one forward pass: a packed row of tokens, and where its examples lie in it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class VarlenMetadata:
    """Which keys each run of queries attends to, causally, the last query seeing all of its keys.

    `*_starts`: the runs' first places, and the end, as int32 on the device, as variable-length kernels want them. Where
    `num_shared` tokens of all examples stand first, `keys` says where the runs' keys, one after another, lie when these are
    repeated `times` times and the examples' own tokens follow; each of those is read once.
    """

    query_lengths: list[int]
    key_lengths: list[int]
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    keys: Tensor | None = None
    num_shared: int = 0
    times: int = 0


@dataclass(frozen=True)
class Packed:
    """Where the examples of a packed row of T tokens lie, and its R wanted rows: what attention and the last layer need.

    `whole`: of a layer that computes every row. `last`: of one that computes the wanted rows only; its queries are each example's
    rows from its first wanted one to its end. `row_places_R`: where the wanted rows lie among these; None where they are all of
    them (always so in a single turn).
    """

    rows_R: Tensor
    whole: VarlenMetadata
    last: VarlenMetadata
    row_places_R: Tensor | None


@dataclass(frozen=True)
class MicroBatch:
    """T tokens of which R predict a supervised token; `packed.rows_R` are the places whose next token is supervised.

    `weights_R`: the factor of each row's cross-entropy in the loss of the whole optimizer step, float32. `starts`: where each
    example's own tokens begin, behind `num_shared` tokens of all.
    """

    examples: list[int]
    ids_1T: Tensor
    positions_1T: Tensor
    labels_R: Tensor
    weights_R: Tensor
    packed: Packed
    starts: list[int]
    num_shared: int
