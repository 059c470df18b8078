"""Users' own sets: arms next to those of pools, or alone; written once; mixed by weight."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ift_scale.cli import main
from ift_scale.commands.sft import config_of
from ift_scale.config.file import from_dict
from ift_scale.config.instructions import InstructionSource
from ift_scale.construct.arms import arms_of
from ift_scale.errors import ConfigError, DataError
from ift_scale.instructions.mixing import mixed, num_copies
from ift_scale.instructions.read import Skipped
from ift_scale.io.manifests import read_manifest
from ift_scale.pipeline import Pipeline
from ift_scale.scoring.question_file import GroupKey
from ift_scale.treatments import in_order, treatment


def _data(path: Path, num: int, word: str = "Say", **columns: object) -> Path:
    rows = [{"instruction": f"{word} {i}.", "output": str(i)} | columns for i in range(num)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _config(folder: Path, sets: list[dict[str, Any]], **construct: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "run"),
        "questions": {"sources": []},
        "construct": {"settings": [], "sets": sets} | construct,
    }


def test_the_stages_run_without_questions_and_the_file_is_written_once(tmp_path: Path) -> None:
    path = _data(tmp_path / "own.jsonl", 40, weight=0.5)
    sets = [{"name": "mine", "path": str(path), "domain": "law"}]
    pipeline = Pipeline(from_dict(_config(tmp_path, sets, seeds=[0, 7])))
    pipeline.make("construct")
    files = [tmp_path / f"run/construct/law-mine-seed{seed}.jsonl" for seed in (0, 7)]
    assert files[0].samefile(files[1])
    (first, *_), count = (lines := files[0].read_text().splitlines()), len(lines)
    assert count == 40 and [arm.name for arm in pipeline.context.arms()] == [f.stem for f in files]
    example = json.loads(first)
    assert [message["role"] for message in example["messages"]] == ["user", "assistant"]
    assert example["meta"]["setting"] == "mine" and example["meta"]["weight"] == 0.5
    assert example["meta"]["source"] == f"{path}:1"
    manifest = read_manifest(tmp_path / "run/construct")
    assert manifest is not None and manifest.counts == {"law/mine/examples": 40}
    with pytest.raises(ConfigError, match=r"questions.sources: empty, but .*probe.* needs questio"):
        pipeline.make("probe")
    key = pipeline.context.task("construct").key
    _data(path, 41)
    other = Pipeline(from_dict(_config(tmp_path, sets, seeds=[0, 7])))
    assert other.context.task("construct").key != key


def test_weights_mix_sources_by_a_draw_of_the_examples(tmp_path: Path) -> None:
    a, b = _data(tmp_path / "a.jsonl", 400), _data(tmp_path / "b.jsonl", 400, "Tell")

    def ids(*weights: float) -> list[str]:
        sources = [
            InstructionSource(path=str(path), weight=weight)
            for path, weight in zip((a, b), weights, strict=True)
        ]
        return [example.id for example in mixed(sources, [Skipped(), Skipped()])]

    assert len(set(ids(1, 1))) == 800 and ids(1, 1) == ids(1, 1)
    assert len(ids(2, 1e-9)) == 800 and len(set(ids(2, 1e-9))) == 400
    low, high = ids(0.25, 0.5), ids(0.5, 0.5)
    assert 60 < len(low) - len(high) + 200 < 140 and set(low) < set(high)
    drawn = [num_copies(1.5, str(i)) for i in range(1000)]
    assert set(drawn) == {1, 2} and 1440 < sum(drawn) < 1560


GROUPS = [GroupKey("choice", "pool", "law", "law", split, 4) for split in ("train", "test")] + [
    GroupKey("choice", "benchmark", "sea", "sea", "test", 4)
]


def test_own_arms_come_after_those_of_the_pools(tmp_path: Path) -> None:
    raw = {
        "output_dir": str(tmp_path),
        "construct": {
            "settings": ["harmonious"],
            "sets": [{"name": "mine", "path": "x"}, {"name": "b", "path": "x", "domain": "sea"}],
        },
    }
    arms = arms_of(from_dict(raw), GROUPS)
    assert [arm.name for arm in arms] == [
        "law-harmonious-seed0",
        "pooled-mine-seed0",
        "sea-b-seed0",
    ]
    # Without a domain, the held-out questions of all pools measure it.
    assert [arm.test_group("law", "pool") for arm in arms] == ["HOMO", "HOMO", None]
    assert in_order(["mine", "harmonious", "mixture-0.2"])[-1] == "mine"
    assert treatment("mine").label == "mine"


def test_sets_of_several_domains_share_a_name(tmp_path: Path) -> None:
    sizes = {"law": 3, "sea": 5}
    entries = [
        {"name": "mine", "domain": domain, "path": str(_data(tmp_path / f"{domain}.jsonl", size))}
        for domain, size in sizes.items()
    ]
    config = _config(tmp_path, entries)
    config["construct"]["seeds"] = [0, 1]
    pipeline = Pipeline(from_dict(config))
    pipeline.make("construct")
    manifest = read_manifest(tmp_path / "run/construct")
    assert manifest is not None
    assert manifest.counts == {f"{domain}/mine/examples": size for domain, size in sizes.items()}
    for domain, size in sizes.items():
        for seed in (0, 1):
            lines = (tmp_path / f"run/construct/{domain}-mine-seed{seed}.jsonl").read_text()
            assert len(lines.splitlines()) == size


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sets": []}, "construct.settings: empty"),
        ({"sets": [{"name": "harmonious", "path": "x"}]}, "names a setting of construct.settings"),
        ({"sets": [{"name": "mixture-2", "path": "x"}]}, "names a setting of construct.settings"),
        ({"sets": [{"name": "a b", "path": "x"}]}, "must be letters, digits"),
        ({"sets": [{"name": "a"}]}, "set either path or sources"),
        ({"sets": [{"name": "a", "path": "x", "sources": [{"path": "x"}]}]}, "either path or sou"),
        ({"sets": [{"name": "a", "sources": [{"path": "x", "weight": 0.0}]}]}, "weight"),
        ({"sets": [{"name": "a", "sources": [{"path": "x", "format": "alpacka"}]}]}, "'alpaca'"),
        ({"sets": [{"name": "a", "path": "x"}] * 2}, "construct.sets: duplicate name"),
        (
            {"sets": [{"name": "a", "path": "x", "domain": "d"}] * 2},
            r"construct.sets: duplicate name \(value: \['d/a', 'd/a'\]\)",
        ),
        ({"settings": ["harmonious"]}, "none of them is a pool to train on"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    raw = _config(tmp_path, [{"name": "a", "path": "x"}])
    raw["construct"] |= changes
    with pytest.raises(ConfigError, match=problem):
        from_dict(raw)


def test_a_source_that_cannot_be_read_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "q"}\n')
    pipeline = Pipeline(from_dict(_config(tmp_path, [{"name": "a", "path": str(bad)}])))
    with pytest.raises(DataError, match=r"bad.jsonl:1: has no known format"):
        pipeline.run()
    assert not (tmp_path / "run" / "construct").exists()


def test_sft_takes_weights_and_settings(tmp_path: Path) -> None:
    config = config_of("world", ["a", "b"], str(tmp_path), [1.0, 0.5], ("train.epochs=2",))
    assert [source.weight for source in config.construct.sets[0].all_sources] == [1.0, 0.5]
    assert config.train.epochs == 2
    run = CliRunner().invoke(main, ["sft", "world", "a", "b", "--output", "x", "--weight", "2"])
    assert run.exit_code == 2 and "--weight: 1 for 2 DATA; give one for each" in run.output
    set_epoch = ["--set", "train.epoch=2"]
    run = CliRunner().invoke(main, ["sft", "world", "a", "--output", "x", *set_epoch])
    assert run.exit_code == 2 and "did you mean 'epochs'" in run.output


def test_sft_takes_the_models_own_chat_template(tmp_path: Path, world_model: Path) -> None:
    def template(**files: str) -> str:
        model = tmp_path / "-".join(files or {"none": ""})
        shutil.copytree(world_model, model)
        for name, content in files.items():
            (model / name.replace("__", ".")).write_text(content)
        config = config_of(str(model), ["a"], str(tmp_path), [], ())
        return config.evaluate.template

    assert template() == "vicuna"
    assert template(chat_template__jinja="{{ messages }}") == "model"
    assert template(tokenizer_config__json='{"chat_template": "{{ messages }}"}') == "model"
    chosen = ("evaluate.template=chatml",)
    assert config_of("world", ["a"], str(tmp_path), [], chosen).evaluate.template == "chatml"


def test_a_run_of_own_sets_shows_its_two_stages(tmp_path: Path) -> None:
    config = _config(tmp_path, [{"name": "a", "path": str(_data(tmp_path / "d.jsonl", 9))}])
    pipeline = Pipeline(from_dict(config))
    pipeline.make("construct")
    (tmp_path / "run/config.yaml").write_text(json.dumps(config))
    shown = CliRunner().invoke(main, ["show", str(tmp_path / "run")]).output
    assert "construct   done" in shown and "train" in shown and "0 of 1" in shown
    assert "probe" not in shown
