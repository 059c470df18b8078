"""A folder's own code is tried in a child process before a command runs it in its own."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ift_scale.cli import main
from ift_scale.io.manifests import write_manifest
from ift_scale.plan import num_parameters
from ift_scale.plan.memory import read_shape
from tests.train import own_experts

pytestmark = pytest.mark.engine
_ENDED = "the folder's own code ended the process of the proof with exit code 7"
_IN = {
    "config.json": {"AutoModelForCausalLM": "own.Own"},
    "tokenizer_config.json": {"AutoTokenizer": ["own.Own", None]},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _folder(path: Path, world_model: Path, file: str) -> Path:
    """The world's model with own code, named in `file`, that ends every process but this one."""
    shutil.copytree(world_model, path)
    fields = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps(fields | {"auto_map": _IN[file]}))
    (path / "own.py").write_text(
        f"import os\nif os.getpid() == {os.getpid()}:\n"
        "    raise ValueError('run before it was tried')\nos._exit(7)\n"
    )
    return path


def _experts(folder: Path) -> Path:
    """A model with experts in a list, all of which run, so that its sizes can be traced."""
    own_experts.write(folder)
    code = (folder / "modeling_own.py").read_text()
    start, end = code.index("            rows = "), code.index("        return out")
    step = "            out = out + expert(hidden) * shares[..., number, None]\n"
    (folder / "modeling_own.py").write_text(code[:start] + step + code[end:])
    return folder


def _config(tmp_path: Path, pool: Path, **sections: Any) -> str:
    path = tmp_path / "config.json"
    source = {"kind": "paper", "domain": "engineering", "path": str(pool)}
    fields = {"output_dir": str(tmp_path / "run"), "questions": {"sources": [source]}}
    path.write_text(json.dumps(fields | sections))
    return str(path)


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("plan", "config.json"),
        ("plan --model", "tokenizer_config.json"),
        ("batch", "tokenizer_config.json"),
        ("doctor", "config.json"),
    ],
)
def test_code_that_ends_its_process_does_not_end_the_command(
    command: str, file: str, tmp_path: Path, pool: Path, world_model: Path
) -> None:
    folder = _folder(tmp_path / "model", world_model, file)
    model = {"path": str(folder), "trust_remote_code": True}
    arguments = [_config(tmp_path, pool, model=model)]
    if command in ("plan --model", "doctor"):
        arguments = [str(folder), "--trust-remote-code"]
    elif command == "batch":
        made = tmp_path / "run" / "construct"
        made.mkdir(parents=True)
        (made / "engineering-harmonious-seed0.jsonl").touch()
        write_manifest(made, "construct", "key", {}, {}, {}, {"total": 0.0})
    result = CliRunner().invoke(main, [*command.split(), *arguments])
    assert result.exit_code == 2 and _ENDED in result.output, result.output


@pytest.mark.parametrize(
    ("stage", "gpus", "expected"),
    [
        ("auto", "2", "           ZeRO-3, because the model's experts are a list of modules"),
        ("2", "8", "train.zero_stage: the model's experts are a list of modules, whose gradients"),
    ],
)
def test_plan_takes_the_stage_of_the_trainer(
    stage: str, gpus: str, expected: str, tmp_path: Path, pool: Path, world_model: Path
) -> None:
    folder = _experts(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(world_model / name, folder)
    model = {"path": str(folder), "trust_remote_code": True}
    train = {"zero_stage": stage if stage == "auto" else int(stage)}
    config = _config(tmp_path, pool, model=model, train=train)
    result = CliRunner().invoke(main, ["plan", config, "--gpus", gpus, "--gpu-memory", "80"])
    assert expected in result.output, result.output
    assert (result.exit_code == 0) == (stage == "auto")
    if stage == "auto":
        setting = result.output.split("setting    ")[1].splitlines()[0]
        assert setting.startswith("ZeRO-3"), setting


def test_plan_of_a_model_keeps_its_stage_on_one_gpu(tmp_path: Path) -> None:
    folder = str(_experts(tmp_path / "model"))
    arguments = ["plan", "--trust-remote-code", "--gpu-memory", "80", "--model", folder]
    by_gpus = [CliRunner().invoke(main, [*arguments, "--gpus", gpus]).output for gpus in ("1", "4")]
    assert ["ZeRO-3, because" in output for output in by_gpus] == [False, True], by_gpus
    # The sizes are those of the folder's class, not of the Llama whose config it uses.
    shape = read_shape(folder, trust_remote_code=True)
    assert shape.parameters == num_parameters(Path(folder)), by_gpus
