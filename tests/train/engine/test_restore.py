"""Restored parameters: exactly the most changed ones of the whole model, streamed in pieces."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ift_scale.engines import model_folder
from ift_scale.train.engine import average as averages
from ift_scale.train.engine.restore import restore


def _write(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A model folder of two weight files."""
    folder.mkdir()
    names, index = list(tensors), {}
    for number, own in enumerate((names[::2], names[1::2]), 1):
        file = folder / f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in own}, file, metadata={"format": "pt"})
        index |= dict.fromkeys(own, file.name)
    (folder / model_folder.INDEX).write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text("{}")
    return folder


def _flat(folder: Path) -> torch.Tensor:
    """All floating-point weights, in the order of files and headers."""
    found = []
    for file in model_folder.weight_files(folder):
        tensors = load_file(file)
        found += [tensors[n] for n in model_folder.read_header(file) if "count" not in n]
    return torch.cat([tensor.flatten() for tensor in found])


def _models(tmp_path: Path, dtype: torch.dtype, same: bool = False) -> tuple[Path, Path]:
    draw = torch.Generator().manual_seed(1)
    base = {
        name: torch.randn(n, 7, generator=draw) for name, n in zip("abc", (5, 60, 3), strict=True)
    }
    # Few distinct changes: many are equal, and those of `b` are zero.
    sizes = torch.tensor([0.5, 0.25, -0.25, 1e-3, -3.0])
    steps = {n: torch.randint(0, 5, t.shape, generator=draw) for n, t in base.items()}
    moved = {n: t + (0 if n == "b" or same else 1) * sizes[steps[n]] for n, t in base.items()}
    count = {"count": torch.tensor([3])}
    trained = {n: t.to(dtype) for n, t in moved.items()}
    return _write(tmp_path / "base", base | count), _write(tmp_path / "trained", trained | count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0001, 0.03, 0.06, 0.5])
def test_the_most_changed_parameters_get_the_base_models_values(
    tmp_path: Path, share: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(averages, "PIECE", 11)  # no tensor is held as a whole
    base, trained = _models(tmp_path, dtype)
    counts = restore(base, trained, tmp_path / "out", share)
    start, end, found = _flat(base).to(dtype), _flat(trained), _flat(tmp_path / "out")
    change = (end.float() - start.float()).abs()
    # A stable sort: among equal changes, the first ones come first.
    order = change.sort(descending=True, stable=True).indices[: round(share * len(change))]
    expected = end.clone()
    expected[order] = start[order]
    assert found.dtype == dtype and torch.equal(found, expected)
    assert counts["parameters"] == len(change) == 68 * 7
    assert counts["changed"] == int((change > 0).sum())
    assert counts["restored"] == int((change[order] > 0).sum())
    if len(order):
        assert counts["threshold"] == float(change[order[-1]])
    squares = change.double() ** 2
    part = float(squares[order].sum() / squares.sum())
    assert counts["restored_change"] == pytest.approx(part, rel=1e-6)
    assert (share == 0.5) == torch.equal(found, start), "half is more than what changed"
    assert load_file(tmp_path / "out" / "model-00002-of-00002.safetensors")["count"].item() == 3
    assert (tmp_path / "out" / "config.json").samefile(trained / "config.json")


def test_a_model_that_did_not_change_stays(tmp_path: Path) -> None:
    base, trained = _models(tmp_path, torch.float32, same=True)
    counts = restore(base, trained, tmp_path / "out", 0.3)
    assert torch.equal(_flat(tmp_path / "out"), _flat(base))
    assert counts["restored"] == counts["restored_change"] == 0
