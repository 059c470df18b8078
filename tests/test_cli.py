"""The command line: exit codes and messages."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ift_scale.cli import main
from ift_scale.config.file import from_dict
from ift_scale.errors import EnvironmentProblem
from ift_scale.io.files import write_jsonl
from ift_scale.io.manifests import write_manifest
from ift_scale.io.progress import Bar
from ift_scale.records import Example, ExampleMeta, Message
from ift_scale.stages import STAGES
from ift_scale.train import run as train


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def _config(tmp_path: Path, pool: Path, **train: object) -> str:
    path = tmp_path / "config.yaml"
    settings = {
        "output_dir": str(tmp_path / "run"),
        "questions": {"sources": [{"kind": "paper", "domain": "engineering", "path": str(pool)}]},
        "train": train,
    }
    path.write_text(json.dumps(settings))
    return str(path)


def test_every_stage_has_a_command_with_help() -> None:
    result = _run("--help")
    assert result.exit_code == 0
    for stage in (
        *(stage.name for stage in STAGES),
        "run",
        "plan",
        "doctor",
        "batch",
        "audit",
        "official",
        "init",
        "show",
        "completion",
    ):
        assert f"\n  {stage} " in result.output


def test_bad_settings_exit_with_2(tmp_path: Path, pool: Path) -> None:
    result = _run("run", _config(tmp_path, pool, epoch=3))
    assert result.exit_code == 2
    assert "train.epoch: unknown key (value: 3); did you mean 'epochs'?" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ('"answer": 2', "field 'answer': is out of range (value: 2)"),
        ('"answer": 0, "question": "\\ud800"', "field 'question': holds half of a surrogate pair"),
        (
            '"answer": 0, "explanation": NaN',
            "field 'explanation': must be a text or be omitted (value: nan)",
        ),
        (
            '"answer": 0, "choices": [1, 2]',
            "field 'choices': an option is empty or not a text (option A) (value: 1)",
        ),
        ('"answer": 0, "answer": 1', "field 'answer': duplicate key in the object"),
    ],
)
def test_bad_data_exits_with_2_and_leaves_nothing_incomplete(
    changes: str, problem: str, tmp_path: Path, pool: Path
) -> None:
    row = {"id": 1, "question": "q", "choices": ["a", "b"]}
    kept = {key: value for key, value in row.items() if f'"{key}"' not in changes}
    (pool / "train.jsonl").write_text(json.dumps(kept)[:-1] + f", {changes}}}\n")
    result = _run("questions", _config(tmp_path, pool))
    assert result.exit_code == 2
    assert f"train.jsonl:1: {problem}" in result.output
    assert not (tmp_path / "run" / "questions").exists()


def test_the_audit_is_printed(tmp_path: Path, pool: Path) -> None:
    (pool / "test.jsonl").write_text((pool / "train.jsonl").read_text().splitlines()[2] + "\n")
    output = _run("audit", _config(tmp_path, pool)).output
    assert (
        "1 of 1 pool/test/engineering in pool/train/engineering (1 exact, 0 near, 1 same text)"
        in output
    )


def test_finished_questions_are_skipped(tmp_path: Path, pool: Path) -> None:
    config = _config(tmp_path, pool)
    assert "pool/train/choice 6" in _run("questions", config).output
    assert "questions: done already" in _run("questions", config).output
    row = json.loads((pool / "test.jsonl").read_text().splitlines()[0]) | {"id": 99}
    with (pool / "test.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert "pool/test/choice 4" in _run("questions", config).output


def test_without_a_text_to_write_the_stage_finishes_at_once(tmp_path: Path, pool: Path) -> None:
    config = _config(tmp_path, pool)
    assert "write: no set needs a written text" in _run("write", config).output
    assert "write: done already" in _run("write", config).output
    assert (tmp_path / "run" / "write" / "texts.jsonl").read_text() == ""
    result = _run("write", config, "--set", "construct.response=letter_text_explanation")
    assert result.exit_code == 2 and "run `ift-scale questions`" in result.output


@pytest.mark.parametrize("stage", ["probe", "construct", "train", "evaluate", "analyse", "report"])
def test_a_stage_without_its_inputs_names_the_command_to_run(
    tmp_path: Path, pool: Path, stage: str
) -> None:
    result = _run(stage, _config(tmp_path, pool))
    assert result.exit_code == 2
    assert (
        "the questions stage's result does not exist yet; run `ift-scale questions` or "
        "`ift-scale run`" in result.output
    )


def test_a_stage_refuses_inputs_made_with_other_settings(tmp_path: Path, pool: Path) -> None:
    config = _config(tmp_path, pool)
    assert _run("questions", config).exit_code == 0
    result = _run("probe", config, "--set", "questions.sources.0.max_train=2")
    assert result.exit_code == 2
    assert (
        "the questions stage's result was made with other settings or inputs; run "
        "`ift-scale questions`" in result.output
    )


def test_a_model_folder_without_weights(tmp_path: Path, pool: Path) -> None:
    empty = tmp_path / "model"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    result = _run("run", _config(tmp_path, pool), "--set", f"model.path={empty}")
    assert result.exit_code == 2 and "contains no safetensors weights" in result.output


def test_an_unwritable_output_folder(tmp_path: Path, pool: Path) -> None:
    (tmp_path / "file").write_text("")
    result = _run("questions", _config(tmp_path, pool), "--set", f"output_dir={tmp_path}/file/run")
    assert result.exit_code == 2 and "output_dir: cannot be a folder" in result.output


def test_unknown_domain(tmp_path: Path, pool: Path) -> None:
    result = _run("plan", _config(tmp_path, pool), "--set", "construct.domains=[enginering]")
    assert result.exit_code == 2
    assert (
        "no source has train questions of this domain (value: 'enginering'). "
        "did you mean 'engineering'?" in result.output
    )


def test_plan_loads_no_model(tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(
        transformers.AutoModelForCausalLM,
        "from_pretrained",
        lambda *a, **k: pytest.fail("a model was loaded"),
    )
    optional = ("--set", "learnt.on=true", "--set", "hidden.max_fit_questions=7")
    result = _run("plan", _config(tmp_path, pool), *optional)
    assert result.exit_code == 0, result.output
    assert (
        "parameters" in result.output
        and "ZeRO" in result.output
        and "engineering-harmonious-seed0" in result.output
        and "\nlearnt     at most " in result.output
        and "\nhidden" not in result.output
    )


def test_plan_shows_the_setting_for_any_model_and_cluster() -> None:
    result = _run("plan", "--model", "llama-2-7b", "--gpu-memory", "141")
    assert result.exit_code == 0, result.output
    assert "6,738,415,616 parameters on 1 x 141 GB (131.3 GiB), bfloat16" in result.output
    assert "setting    ZeRO-2, full activation checkpointing, no offload: " in result.output
    assert max(map(len, result.output.splitlines())) <= 132
    marked = [
        line.split()[:3]
        for line in result.output.splitlines()
        if line.rstrip().endswith("<- chosen")
    ]
    assert marked == [["2", "full", "none"]]


def test_plan_lists_offload_only_if_nothing_else_fits(tmp_path: Path, pool: Path) -> None:
    arguments = ("--model", "configs/models/llama-2-70b.json", "--gpu-memory", "80", "--gpus", "8")
    assert "offload optimizer: " in _run("plan", *arguments).output
    without = _run("plan", _config(tmp_path, pool, offload="none"), *arguments)
    assert (
        without.exit_code == 0 and "no setting fits 68.98e9 parameters on 8 GPUs" in without.output
    )
    assert not any(line.split()[2:3] == ["optimizer"] for line in without.output.splitlines())


@pytest.mark.engine
@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ({"model_type": "gpt2"}, "124,439,808"),
        ({"model_type": "mixtral", "rope_theta": 1e6}, "46,702,792,704"),
        (
            {"model_type": "deepseek_v3"},
            "671,026,404,352",
        ),  # without its biases of experts, buffers
        ({"model_type": "falcon"}, "6,921,720,704"),
        (  # state-spaces/mamba-2.8b-hf
            {
                "model_type": "mamba",
                "hidden_size": 2560,
                "intermediate_size": 5120,
                "num_hidden_layers": 64,
                "vocab_size": 50280,
            },
            "2,768,345,600",
        ),
    ],
)
def test_plan_of_published_sizes(
    config: dict[str, object], parameters: str, tmp_path: Path
) -> None:
    """Of classes without formulas, by their defaults, which are those of published models."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    cluster = ("--gpu-memory", "80", "--gpus", "64", "--machine", "h100-sxm")
    result = _run("plan", "--model", str(tmp_path), *cluster)
    assert result.exit_code == 0, result.output
    assert f"{parameters} parameters on 64 x 80 GB" in result.output
    assert "predicted  on H100 SXM" in result.output


def test_plan_of_a_folder_and_of_invalid_models(world_model: Path, tmp_path: Path) -> None:
    cluster = ("--gpu-memory", "80", "--gpus", "4")
    assert (
        "529,920 parameters on 4 x 80 GB"
        in _run("plan", "--model", str(world_model), *cluster).output
    )
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    for model, message in [
        ("llama-2-7", "did you mean 'llama-2-7b'?"),
        (str(tmp_path / "config.json"), "not a JSON object"),
        (str(tmp_path), "not a JSON object"),
        (str(tmp_path / "empty"), "config.json: is missing"),
    ]:
        result = _run("plan", "--model", model)
        assert result.exit_code == 2 and message in result.output, result.output


def test_plan_predicts_a_described_machine() -> None:
    result = _run("plan", "--model", "llama-2-70b", "--gpus", "512", "--machine", "h100-sxm")
    assert result.exit_code == 0, result.output
    assert (
        "predicted  on H100 SXM, not measured. Rates from data sheets and estimates"
        in result.output
    )
    assert max(map(len, result.output.splitlines())) <= 132
    sizes = [
        line.split()[0] for line in result.output.splitlines() if "%" in line and line[0].isdigit()
    ]
    assert sizes == [str(size) for size in (8, 16, 32, 64, 128, 256, 512, 1024)] * 2


def test_plan_of_a_study_shows_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rates.yaml").write_text(
        "source: a test\ntrain: {per_second: 10.0, arm_seconds: 2.0}\n", encoding="utf-8"
    )
    study = (
        "configs/world_study.yaml",
        "--set",
        f"output_dir={tmp_path}/study",
        "--set",
        "construct.seeds=[0]",
    )
    result = _run("plan", *study, "--rates", str(tmp_path / "rates.yaml"))
    assert result.exit_code == 0, result.output
    (line,) = (
        line.split()
        for line in result.output.splitlines()
        if line.startswith("paper") and " train " in line
    )
    assert line[:7] == [
        "paper",
        "train",
        "40",
        "at",
        "most",
        "19,200",
        "examples",
    ] and "10/s given: a test" in " ".join(line)
    assert line[-3:-1] == ["17.3", "min"]  # 40 arms of 2 s, 19,200 examples over two ranks
    assert max(map(len, result.output.splitlines())) <= 132 and "WARNING" not in result.output
    monkeypatch.setattr("ift_scale.plan.disk.free_bytes", lambda folder: 1e3)
    assert "GiB free, less than that" in _run("plan", *study).output


def test_plan_needs_a_configuration_or_a_model() -> None:
    assert "give CONFIG, or --model" in _run("plan").output
    assert (
        "give CONFIG, which --set changes"
        in _run("plan", "--model", "llama-1b", "--set", "train.epochs=1").output
    )


def _constructed(tmp_path: Path) -> None:
    """Writes two sets like the construct stage."""
    folder = tmp_path / "run" / "construct"
    folder.mkdir(parents=True)
    for arm in ("engineering-harmonious-seed0", "engineering-harmonious-seed1"):
        examples = [
            Example(
                messages=[
                    Message(role="user", content=f"Say {i}."),
                    Message(role="assistant", content="copper"),
                ],
                meta=ExampleMeta(setting="general", wording="general", weight=1 + i),
            )
            for i in range(5)
        ]
        write_jsonl(folder / f"{arm}.jsonl", examples)
    write_manifest(folder, "construct", "key", {}, {}, {}, {"total": 0.0})


def test_a_batch_is_shown_as_text(tmp_path: Path, pool: Path) -> None:
    _constructed(tmp_path)
    config = _config(
        tmp_path, pool, global_batch_size=4, num_ranks=2, tokens_per_micro_batch=64, max_length=64
    )
    result = _run("batch", config, "engineering-harmonious-seed1", "--step", "2")
    assert result.exit_code == 0, result.output
    assert (
        "engineering-harmonious-seed1: step 2 of 6, rank 0 of 2, micro-batch 1 of 1, "
        "template vicuna" in result.output
    )
    assert (
        "The step has 1 examples with 2 supervised tokens; its loss is the mean over tokens."
        in result.output
    )
    assert "ASSISTANT:[[ copper</s>]]" in result.output and "2 supervised, weight " in result.output
    assert (
        "computes one token of weight 0"
        in _run("batch", config, "--step", "2", "--rank", "1").output
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["nosuch"],
            "has no set of this arm (value: 'nosuch'). Available: engineering-harmonious-seed0, "
            "engineering-harmonious-seed1",
        ),
        (["--step", "7"], "--step: out of range (value: 7). Choose a number from 1 to 6"),
        (["--rank", "2"], "--rank: out of range (value: 2). Choose a number from 0 to 1"),
        (
            ["--micro-batch", "9"],
            "--micro-batch: out of range (value: 9). Choose a number from 1 to ",
        ),
    ],
)
def test_a_batch_that_does_not_exist(
    tmp_path: Path, pool: Path, options: list[str], message: str
) -> None:
    _constructed(tmp_path)
    config = _config(
        tmp_path, pool, global_batch_size=4, num_ranks=2, tokens_per_micro_batch=64, max_length=64
    )
    result = _run("batch", config, *options)
    assert result.exit_code == 2 and message in result.output


def test_a_batch_without_its_set(tmp_path: Path, pool: Path) -> None:
    result = _run("batch", _config(tmp_path, pool))
    assert result.exit_code == 2 and "run `ift-scale construct` or `ift-scale run`" in result.output


def test_a_missing_tracker_is_reported_before_anything_starts(
    tmp_path: Path, world_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name)
    )
    config = from_dict({"output_dir": str(tmp_path), "train": {"trackers": ["wandb"]}})
    with pytest.raises(EnvironmentProblem, match="wandb cannot be imported; pip install wandb"):
        train.train(
            config, tmp_path / "train", world_model, [], tmp_path / "logs", Bar("t", 1, None)
        )


def test_doctor_prints_versions() -> None:
    result = _run("doctor")
    assert "deepspeed" in result.output and "torch loads" in result.output
    assert result.exit_code == 0


def test_version() -> None:
    assert _run("--version").output.startswith("ift-scale, version 0.")


def test_plan_shows_if_the_ranks_fit_into_this_nodes_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ift_scale.ranks.environment.has_gpu", lambda: False)
    monkeypatch.setattr("ift_scale.plan.memory.gpu_bytes_here", lambda: None)
    arguments = "plan", "--model", "llama-1b", "--gpus", "2"
    monkeypatch.setattr("ift_scale.estimate.host.available", lambda: 200.0 * 2**30)
    output = _run(*arguments).output
    assert re.search(
        r"setting    ZeRO-2, none .*: [\d.]+ GiB per rank, [\d.]+ of a node's 200.00 GiB for its "
        r"2 ranks",
        output,
    )
    assert re.search(r"fits <- chosen", output)
    monkeypatch.setattr("ift_scale.estimate.host.available", lambda: 2.0 * 2**30)
    output = _run(*arguments).output
    assert (
        re.search(r"setting    no setting fits 1.24e9 parameters on 2 ranks on CPUs", output)
        and "too much" in output
    )
