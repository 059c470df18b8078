"""The checkpoint an arm resumes from, and exports in shards, one parameter at a time."""

import ast
import ctypes
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from ift_scale.errors import ArtifactError
from ift_scale.io.files import INCOMPLETE, remove_incomplete
from ift_scale.io.manifests import file_digest
from ift_scale.prompts.templates import TEMPLATES
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Arm
from ift_scale.train import job
from ift_scale.train.engine import checkpoint_manifest, export, safe_load
from ift_scale.train.engine.stored_names import stored_groups


def _arm(folder: Path, key: str = "key", **inputs: str) -> job.ArmJob:
    arm = Arm(domain="d", setting="harmonious", seed=0)
    return job.ArmJob(
        arm=arm,
        source="",
        tokens="",
        folder=str(folder / "arm"),
        key=key,
        inputs={"model": "m", "set": "s"} | inputs,
    )


def _save(arm: job.ArmJob, step: int, with_digests: bool = False) -> Path:
    folder = checkpoint_manifest.folder_of(Path(arm.folder)) / f"step-{step}"
    (folder / "state").mkdir(parents=True)
    path = folder / "state" / "a.pt"
    path.write_bytes(b"x" * 100)
    manifest = checkpoint_manifest.CheckpointManifest(
        progress=checkpoint_manifest.Progress(step=step),
        key=arm.key,
        inputs=arm.inputs,
        zero_stage=2,
        offload="none",
        world_size=2,
        versions={},
        files={"state/a.pt": 100},
        digests={"state/a.pt": file_digest(path)} if with_digests else {},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def test_the_newest_complete_checkpoint_is_used(tmp_path: Path) -> None:
    arm = _arm(tmp_path)
    assert checkpoint_manifest.latest(arm) is None
    folders = {step: _save(arm, step) for step in (2, 9, 10, 11, 12)}
    (folders[12] / "state" / "a.pt").write_bytes(b"x" * 99)  # truncated
    (folders[11] / "state" / "a.pt").unlink()
    (folders[10] / "manifest.json").unlink()  # killed before it was written
    found = checkpoint_manifest.latest(arm)
    assert found is not None and found[0] == folders[9] and found[1].progress.step == 9
    folders[9].rename(folders[9].with_name(f".step-9{INCOMPLETE}"))
    found = checkpoint_manifest.latest(arm)
    assert found is not None and found[0] == folders[2]
    remove_incomplete(tmp_path)
    assert sorted(path.name for path in folders[2].parent.iterdir()) == [
        "step-10",
        "step-11",
        "step-12",
        "step-2",
    ]


def _flip(folder: Path) -> Path:
    """Changes a byte of the checkpoint's state, not its size."""
    path = folder / "state" / "a.pt"
    path.write_bytes(b"x" * 50 + b"y" + b"x" * 49)
    return path


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = _arm(tmp_path)
    folders = {step: _save(arm, step, with_digests=True) for step in (2, 4, 6)}
    damaged = [_flip(folders[step]) for step in (4, 6)]
    for _ in range(2):  # also a second time
        found = checkpoint_manifest.latest(arm)
        assert found is not None and found[0] == folders[2]
    said = " ".join(capsys.readouterr().out.split())
    for path in damaged:
        assert said.count(f"{path}: damaged, its content is not what was saved") == 1
    assert {path.name for path in folders[2].parent.iterdir()} == {
        "step-2",
        "damaged-step-4",
        "damaged-step-6",
    }
    path = _flip(folders[2])
    with pytest.raises(ArtifactError, match=f"^{path}: damaged, .* remove {folders[2].parent} to"):
        checkpoint_manifest.latest(arm)


def test_a_checkpoint_of_a_version_without_digests_is_used(tmp_path: Path) -> None:
    arm = _arm(tmp_path)
    folder = _save(arm, 4)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["digests"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = checkpoint_manifest.latest(arm)
    assert found is not None and found[0] == folder


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (_arm(Path("/"), "b", model="n"), "a checkpoint with another base model,"),
        (
            _arm(Path("/"), "b", model="n", set="t"),
            "a checkpoint with another base model and another training set,",
        ),
        (_arm(Path("/"), "b"), "a checkpoint with other settings,"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    tmp_path: Path, changed: job.ArmJob, said: str
) -> None:
    path = _save(_arm(tmp_path), 4)
    asked = changed.model_copy(update={"folder": str(tmp_path / "arm")})
    with pytest.raises(ArtifactError, match=said) as caught:
        checkpoint_manifest.latest(asked)
    assert str(path.parent) in str(caught.value)


class _Layers(nn.Module):
    """Forty parameters of 4 MiB, one of them tied, and a persistent buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1024, 1024, bias=False) for _ in range(40))
        self.tied = self.layers[0].weight
        self.register_buffer("count", torch.arange(5))


def test_export_needs_the_memory_of_a_parameter(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not count a process's memory")
    model = _Layers()
    # Returns memory freed by earlier tests to the system: reusing it would hide the export's.
    ctypes.CDLL(None).malloc_trim(0)
    peak = export.write_weights(
        tmp_path, model, stored_groups(model), False, torch.bfloat16, 30 << 20
    )
    assert 0 < peak < 6 << 20  # of 80 MiB in shards of 30 MiB
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert (
        files
        == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
        == sorted(set(index["weight_map"].values()))
    )
    assert all((tmp_path / file).stat().st_size <= (30 << 20) + 10_000 for file in files)
    for file in files:
        for name, tensor in load_file(tmp_path / file).items():
            assert index["weight_map"].pop(name) == file
            expected = model.state_dict()[name]
            assert torch.equal(
                tensor, expected.bfloat16() if expected.is_floating_point() else expected
            )
    assert not index["weight_map"]
    assert index["metadata"]["total_size"] == 40 * (2 << 20) + 40


def test_one_shard_has_no_index(tmp_path: Path) -> None:
    model = nn.Module()
    model.a = nn.Parameter(torch.ones(2, 3))
    model.register_buffer("scalar", torch.tensor(4.0))
    export.write_weights(tmp_path, model, stored_groups(model), False, torch.float32, 1 << 20)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert (
        torch.equal(found["a"], torch.ones(2, 3))
        and found["scalar"].shape == ()
        and found["scalar"] == 4
    )


def test_transformers_loads_a_sharded_folder(world_model: Path, sharded_export: Path) -> None:
    assert len(list(sharded_export.glob("model-*.safetensors"))) > 3
    loaded = AutoModelForCausalLM.from_pretrained(sharded_export, dtype=torch.float32).state_dict()
    expected = AutoModelForCausalLM.from_pretrained(world_model, dtype=torch.float32).state_dict()
    assert set(loaded) == set(expected) and all(
        torch.equal(loaded[name], expected[name]) for name in loaded
    )
    assert PromptTokenizer(sharded_export).tokenizer.chat_template == TEMPLATES["chatml"]
    assert (sharded_export / "generation_config.json").read_text() == (
        world_model / "generation_config.json"
    ).read_text()


class _Payload:
    """What someone with write access to a shared folder would put into a checkpoint."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, zipped: bool) -> None:
    mark, path = tmp_path / "was-here", tmp_path / "mp_rank_00_model_states.pt"
    state = {"module": {"a": torch.zeros(2)}, "optimizer": _Payload(mark)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    # DeepSpeed's own loader, which asks for weights_only=False.
    loaders = [lambda: TorchCheckpointEngine().load(str(path), map_location="cpu")]
    loaders += [lambda: safe_load.mapped(path)] if zipped else []
    for load in loaders:
        refused = pytest.raises(
            ArtifactError, match=r"nothing of it was run.*Remove the checkpoint"
        )
        with refused, safe_load.restricted(tmp_path):
            load()
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # the payload works where nothing keeps it from it


def test_every_loader_refuses_pickles() -> None:
    """Nothing unpickles files: `weights_only=False` and `allow_pickle=True` stand nowhere."""
    for path in Path(safe_load.__file__).parents[2].rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name, set_to = ast.unparse(call.func), {k.arg: k.value for k in call.keywords}
            needed = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
            if name in needed:
                option, value = needed[name]
                assert ast.unparse(set_to[option]) == str(value), (path, call.lineno)
            assert name.rpartition(".")[2] not in _UNPICKLING, (path, call.lineno)


_UNPICKLING = {
    "read_pickle",
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "scatter_object_list",
    "Unpickler",
}
