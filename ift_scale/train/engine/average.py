"""Averages the weights of a trained arm with those of its base model, without training again.

A share s of the way from the base: (1 - s) * base + s * trained, for every weight (WiSE-FT,
Wortsman et al. 2022, arXiv 2109.01903, equation 1, whose alpha is s). Computed in float32 a piece
at a time from memory-mapped files, so memory does not grow with the model.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ift_scale.engines import model_folder
from ift_scale.errors import DataError, Place
from ift_scale.io.files import link_or_copy
from ift_scale.train.engine.export import PeakMemory
from ift_scale.train.engine.stored_names import stored_groups
from ift_scale.train.model.packed import read_weights

PIECE = 8 << 20
"""Elements that are computed at once, 96 MiB of temporary float32 memory."""
Values = Callable[[Tensor, Tensor], Iterator[Tensor]]
"""A tensor's new values in pieces, flat, from the base model's and the trained arm's. The pieces
have the dtype of the latter."""
_FLOATING = ("F32", "BF16", "F16")


def check(base: Path, model: torch.nn.Module) -> None:
    """Raises DataError if the base model does not store each tensor as its exports do.

    `model`: the base model's, on the meta device. Quantised weights are an example.
    """
    stored = model_folder.stored_tensors(base)
    for group in stored_groups(model):
        for name, tensor in group.stored.items():
            found = stored.get(name)
            floats = found is not None and (
                found.dtype in _FLOATING or not tensor.is_floating_point()
            )
            if found is None or not floats or tuple(found.shape) != tuple(tensor.shape):
                form = "not stored" if found is None else f"{found.dtype} {list(found.shape)}"
                raise DataError(
                    Place(base, field=name),
                    f"is {form} in the base model, but {list(tensor.shape)} in a trained arm, so "
                    "they cannot be combined",
                    "Leave out train.average and train.restore, or save the base model again in "
                    "bfloat16 or float32",
                )


def average(base: Path, trained: Path, folder: Path, share: float) -> dict[str, float]:
    """Writes to `folder` the model that is the share `share` of the way from `base` to `trained`.

    See `write`. Returns the manifest's counts.
    """
    return write(base, trained, folder, lambda start, end: _between(start, end, share))


def write(base: Path, trained: Path, folder: Path, values: Values) -> dict[str, float]:
    """Writes to `folder` the model with `values` of every floating-point tensor of both models.

    Both are model folders; `trained` is an export of this package. Weights have the names, files
    and dtypes of `trained`, whose other files are linked. `values` is called in the order of
    `tensors`. Returns the manifest's counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    of_base, of_trained, memory = read_weights(base), read_weights(trained), PeakMemory()
    files = model_folder.weight_files(trained)
    for file in files:
        with (folder / file.name).open("wb") as out:
            out.write(_header(file))
            for name in model_folder.read_header(file):
                end = of_trained[name]
                if not end.is_floating_point():
                    out.write(end.reshape(-1).view(torch.uint8).numpy().data)
                    continue
                for piece in values(of_base[name], end):
                    out.write(piece.view(torch.uint8).numpy().data)
                    memory.update()
    for other in sorted(path for path in trained.rglob("*") if path.is_file()):
        if other not in files:
            link_or_copy(other, folder / other.relative_to(trained))
    return {"tensors": len(of_trained), "export_peak_bytes": memory.bytes}


def tensors(base: Path, trained: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the floating-point tensors of both models, in the order of `trained`'s files."""
    of_base, of_trained = read_weights(base), read_weights(trained)
    for file in model_folder.weight_files(trained):
        for name in model_folder.read_header(file):
            if of_trained[name].is_floating_point():
                yield of_base[name], of_trained[name]


def pieces(start: Tensor, end: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields two tensors in flat pieces of at most PIECE elements."""
    yield from zip(start.reshape(-1).split(PIECE), end.reshape(-1).split(PIECE), strict=True)


def _header(file: Path) -> bytes:
    with file.open("rb") as stream:
        length = stream.read(8)
        return length + stream.read(int.from_bytes(length, "little"))


def _between(start: Tensor, end: Tensor, share: float) -> Iterator[Tensor]:
    for one, other in pieces(start, end):
        # start + share * (end - start) is exact where both are equal.
        yield torch.lerp(one.float(), other.float(), share).to(other.dtype)
