"""Averages of a trained arm with its base model: exact, shard by shard, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ift_scale.engines.model_folder import read_header
from ift_scale.errors import DataError
from ift_scale.models import config_class
from ift_scale.models.config_file import model_config
from ift_scale.train.engine import average as averages
from ift_scale.train.engine.average import average


def _all(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for f in sorted(folder.glob("*.safetensors")) for n, t in load_file(f).items()}


def _trained(export: Path, folder: Path, dtype: torch.dtype) -> Path:
    """An export in three shards whose weights differ from the base's, except the norms."""
    shutil.copytree(export, folder)
    generator = torch.Generator().manual_seed(0)
    for file in folder.glob("*.safetensors"):
        moved = {
            name: (t if "norm" in name else t + torch.randn(t.shape, generator=generator)).to(dtype)
            for name, t in load_file(file).items()
        }
        save_file(moved, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.25, 0.9])
def test_every_weight_is_the_share_of_the_way_from_the_base(
    tmp_path: Path,
    sharded_export: Path,
    world_model: Path,
    share: float,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(averages, "PIECE", 1000)  # no tensor is held as a whole
    trained, mix = _trained(sharded_export, tmp_path / "trained", dtype), tmp_path / "mix"
    counts = average(world_model, trained, mix, share)
    start, end, found = _all(world_model), _all(trained), _all(mix)
    assert found.keys() == end.keys() and counts["tensors"] == len(end)
    for name, tensor in end.items():
        one, other = start[name].double(), tensor.double()
        right = (1 - share) * one + share * other
        assert found[name].dtype == dtype
        # Computed in float32, and rounded once.
        rounding = 2e-7 if dtype is torch.float32 else 2**-8
        torch.testing.assert_close(found[name].double(), right, rtol=rounding, atol=2e-7)
        if torch.equal(start[name].to(dtype), tensor):
            assert torch.equal(found[name], tensor), name
    names = {path.name for path in trained.iterdir()}
    assert {path.name for path in mix.iterdir()} == names and len(names) > 4


def test_tensors_keep_their_places_whatever_their_order(
    tmp_path: Path, sharded_export: Path, world_model: Path
) -> None:
    """The export is the base model's; its files have the order of the model, not of names."""
    orders = [list(read_header(file)) for file in sorted(sharded_export.glob("*.safetensors"))]
    assert any(order != sorted(order) for order in orders)
    average(world_model, sharded_export, tmp_path / "mix", 0.5)
    assert _files(tmp_path / "mix") == _files(sharded_export)


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def _check(base: Path) -> None:
    averages.check(base, config_class.build(model_config(base)))


def test_a_base_that_is_stored_in_another_form_is_refused(
    tmp_path: Path, world_model: Path
) -> None:
    _check(world_model)
    base = shutil.copytree(world_model, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    for other, form in ((weights[name].to(torch.float8_e4m3fn), "F8_E4M3"), (None, "not stored")):
        changed = {n: t for n, t in (weights | {name: other}).items() if t is not None}
        save_file(changed, base / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            DataError, match=f"{form}.*so they cannot be combined. Leave out train.av"
        ):
            _check(base)
    config = json.loads((base / "config.json").read_text())
    assert config["tie_word_embeddings"], "the tied head is not stored, and not missed"
