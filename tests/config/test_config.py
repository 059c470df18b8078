from pathlib import Path
from typing import Any

import pytest
import yaml

from ift_scale import config
from ift_scale.config import file
from ift_scale.config.file import from_dict, load, load_study
from ift_scale.errors import ConfigError
from ift_scale.treatments import BY_NAME

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(
    path
    for path in (ROOT / "configs").rglob("*.yaml")
    if path.parent.name not in ("machines", "rates")
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_configuration_loads(path: Path) -> None:
    loaded = file.load(path)
    assert loaded.output_dir


@pytest.mark.parametrize(
    "path",
    [p for p in SHIPPED if p.name != "engineering_cpu.yaml" and p.parent.name == "paper"],
    ids=lambda p: p.stem,
)
def test_every_treatment_is_an_arm_of_the_papers_configurations(path: Path) -> None:
    variants = load_study(path).variants.values()
    assert {setting for variant in variants for setting in variant.construct.all_settings()} >= set(
        BY_NAME
    )
    ratios = [0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1]
    assert ratios in [variant.construct.consistency_ratios for variant in variants]


def test_the_sources_of_the_documentation_load() -> None:
    text = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    raw = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    kinds = {source.kind for source in file.from_dict({"output_dir": "x", **raw}).questions.sources}
    assert kinds == set(file._SOURCES)
    assert all(f"| `{kind}` |" in text for kind in kinds)


def test_resolved_settings_read_back_the_same(tmp_path: Path) -> None:
    loaded = file.load(ROOT / "configs" / "demo.yaml")
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.resolved_yaml(loaded))
    assert file.load(copy) == loaded


def test_all_problems_are_reported_together() -> None:
    raw = {
        "output_dir": 3,
        "trian": {},
        "train": {"learnin_rate": 2e-5, "epochs": "3", "global_batch_size": 1, "num_ranks": 2},
        "questions": {"sources": [{"kind": "paper", "path": "x", "domian": "y"}]},
        "construct": {"settings": ["harmonius"]},
    }
    with pytest.raises(ConfigError) as caught:
        file.from_dict(raw)
    message = "\n".join(caught.value.problems)
    assert "trian: unknown key (value: {}); did you mean 'train'?" in message
    assert (
        "train.learnin_rate: unknown key (value: 2e-05); did you mean 'learning_rate'?" in message
    )
    assert "train.epochs: input should be a valid integer (value: '3')" in message
    assert "questions.sources.0.domian: unknown key (value: 'y'); did you mean 'domain'?" in message
    assert "questions.sources.0.domain: missing" in message
    assert (
        "construct.settings.0: no such setting; did you mean 'harmonious'? "
        "(R: a ratio such as 0.2) (value: 'harmonius')" in message
    )
    assert "output_dir: input should be a valid string (value: 3)" in message
    # An impossible combination of valid settings is reported with the invalid ones.
    assert "train.global_batch_size: 1 examples are fewer than train.num_ranks = 2" in message
    assert len(caught.value.problems) == 8


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"train": {"max_length": 4096, "tokens_per_micro_batch": 2048}},
            "train.tokens_per_micro_batch: 2048 cannot hold",
        ),
        (
            {"train": {"precision": "bfloat16", "zero_stage": 0}},
            r"train.zero_stage: 0 with train.precision = bfloat16",
        ),
        (
            {"train": {"hpz": 8, "zero_stage": 2}},
            r"train.hpz: 8 needs ZeRO-3, .* = 2\); set one of them to auto",
        ),
        (
            {"train": {"hpz": 8, "offload": "all"}},
            "train.hpz: 8 keeps a second copy .* train.offload = all moves them",
        ),
        ({"train": {"hpz": 1}}, "train.hpz"),
        (
            {"train": {"hpz": 2, "compile": True}},
            "train.compile: not verified with ZeRO-3, which train.hpz = 2 needs",
        ),
        (
            {"train": {"offload": "all", "compile": True}},
            "train.compile: .* which train.offload = all needs",
        ),
        (
            {"train": {"hpz": 2, "zero_stage": 3, "compile": True}},
            "train.compile: not verified .* train.zero_stage = 3",
        ),
        ({"train": {"hostfile": "/no/such/hostfile"}}, "train.hostfile: no such file"),
        (
            {"train": {"hostfile": "/dev/null", "launcher": "direct"}},
            "only the deepspeed launcher reads it",
        ),
        ({"construct": {"general": {"path": None}}}, "construct.general.share: must be 0"),
        (
            {"construct": {"seeds": [-1]}},
            "construct.seeds.0: input should be greater than or equal to 0",
        ),
        (
            {"questions": {"sources": [{"kind": "paper", "domain": "all", "path": "x"}]}},
            "questions.sources.0.domain: 'all' names the row over all domains",
        ),
        (
            {"questions": {"sources": [{"kind": "paper", "domain": "a/b", "path": "x"}]}},
            "sources.0.domain: must be letters",
        ),
        (
            {"questions": {"sources": [{"kind": "papre"}]}},
            r"questions.sources.0.kind: not one of .*did you mean 'paper'",
        ),
        ({"questions": {"sources": [{"domain": "x"}]}}, r"questions.sources.0.kind: missing"),
        ({"mmlu": 1}, "mmlu: unknown key"),
        (
            {"train": {"learning_rate": float("inf")}},
            "train.learning_rate: input should be a finite number",
        ),
        ({"construct": {"seeds": [1, 1]}}, "construct.seeds: duplicate value"),
        ({"questions": {"sources": [{"kind": "mmlu", "path": "x"}]}}, "none of them is a pool"),
        ({"questions": {"sources": [{"kind": "truthfulqa"}]}}, "none of them is a pool"),
        (
            {
                "questions": {
                    "sources": [{"kind": "entity_questions", "path": "x", "collection": "pool"}]
                }
            },
            "none of them is a pool",
        ),
        (
            {"questions": {"sources": [{"kind": "medmca"}]}},
            r"sources.0.kind: not one of .*did you mean 'medmcqa'",
        ),
        (
            {"questions": {"sources": [{"kind": "medqa", "max_tran": 3}]}},
            r"sources.0.max_tran: unknown .*mean .max_train.",
        ),
        (
            {"questions": {"sources": [{"kind": "cmmlu", "domains": {"law": "a/b"}}]}},
            r"sources.0.domains.law: must be letters",
        ),
        (
            {"questions": {"sources": [{"kind": "xiezhi", "path": "x"}]}},
            r"sources.0.domain: missing",
        ),
    ],
)
def test_impossible_combinations(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        file.from_dict({"output_dir": "x", **settings})


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("output_dir: a\nquestions: {sources: [{kind: paper, domain: d, path: p}]}\n")
    overrides = (
        "train.learning_rate=1e-5",
        "construct.seeds=[1, 2]",
        "questions.sources.0.path=q",
        "output_dir=b",
    )
    loaded = file.load(path, overrides)
    assert loaded.train.learning_rate == 1e-5
    assert loaded.construct.seeds == [1, 2]
    assert loaded.questions.sources[0].path == "q"  # type: ignore[union-attr]
    assert loaded.output_dir == "b"


@pytest.mark.parametrize(
    "override",
    ["train", "=3", "a..b=1", "output_dir.x=1", "questions.sources.7=1", "train.epochs=[1"],
)
def test_bad_overrides(tmp_path: Path, override: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("output_dir: a\nquestions: {sources: [{kind: world}]}\n")
    with pytest.raises(ConfigError, match=r"--set"):
        file.load(path, (override,))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a\n", "must be a mapping"),
        ("a: [\n", "not valid YAML"),
        ("output_dir: a\noutput_dir: b\n", "duplicate key 'output_dir'"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        file.load(path)


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match="no such file"):
        file.load("/no/such.yaml")


def test_a_float_without_a_point_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("output_dir: a\ntrain: {learning_rate: 2e-5}\n")
    assert file.load(path).train.learning_rate == 2e-5


def test_a_file_extends_others_and_has_variants(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "output_dir: runs/base\ntrain: {epochs: 5, global_batch_size: 64}\nvariants: {plain: }\n"
    )
    study = tmp_path / "study.yaml"
    study.write_text(
        "extends: base.yaml\ntrain: {epochs: 2}\n"
        "variants:\n  matched: {construct: {matching: {letters: reorder}}}\n"
    )
    loaded = load_study(study, ("train.learning_rate=1e-4",))
    assert (loaded.config.train.epochs, loaded.config.train.global_batch_size) == (2, 64)
    assert {name: config.output_dir for name, config in loaded.variants.items()} == {
        "plain": "runs/base/plain",
        "matched": "runs/base/matched",
    }
    assert [config.construct.matching.letters for config in loaded.variants.values()] == [
        "none",
        "reorder",
    ]
    assert {config.train.learning_rate for config in loaded.variants.values()} == {1e-4}
    assert load(study).train.epochs == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: study.yaml\n", "extends: forms a cycle"),
        ("extends: {a: b}\n", "extends: must be a path or a list of paths"),
        ("extends: nowhere.yaml\n", "no such file"),
        ("output_dir: a\nvariants: [b]\n", "variants: must be a mapping"),
        ("output_dir: a\nvariants: {b/c: {}}\n", "variants: 'b/c' must be letters"),
        (
            "output_dir: a\nvariants: {report: {}}\n",
            "variants: 'report' is the name of the study's own report",
        ),
        (
            "output_dir: a\nvariants: {b: {train: {epoch: 1}}}\n",
            "variant b: \n  train.epoch: unknown key",
        ),
    ],
)
def test_mistakes_in_studies(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_study(tmp_path / "study.yaml")
    assert message.split("\n")[-1].strip() in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"settings": ["harmonius"]}, "did you mean 'harmonious'?"),
        ({"settings": ["mixture-2"]}, "no such setting"),
        (
            {"settings": ["unknown"]},
            "sets by grade need the grades of questions; set probe.reliability.grades",
        ),
        (
            {"settings": ["self_distilled"]},
            "self_distilled needs explanations; set construct.response",
        ),
        ({"matching": {"author": "external"}}, "construct.matching.author: needs"),
        ({"settings": ["natural"], "matching": {"letters": "selection"}}, "must include both"),
        (
            {"matching": {"letters": "reorder"}, "response": "letter_text_explanation"},
            "reorder changes the letters of options, which explanations name",
        ),
        ({"consistency_ratios": [0.1, 0.1]}, "consistency_ratios: duplicate value"),
        (
            {"official": "x", "size": 5},
            "construct.official: the authors' sets cannot be changed; remove size",
        ),
    ],
)
def test_sets_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_dict({"output_dir": "run", "construct": settings})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("variants", "problem"),
    [
        ("{1: {}}", "the name 1 is not a text; put it in quotes"),
        ("{a: {output_dir: b}}", r"variants.a.output_dir: cannot be set \(value: 'b'\)"),
        ("{a: {train: {zero_stage: true}}}", "zero_stage: must be auto, 0, 1, 2 or 3"),
    ],
)
def test_variants_that_would_be_read_otherwise(tmp_path: Path, variants: str, problem: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"output_dir: {tmp_path}/run\nvariants: {variants}\n")
    with pytest.raises(ConfigError, match=problem):
        file.load_study(path)


@pytest.mark.parametrize("name", ["file", "file/run", "loop", "dangling", "x" * 300, "a/" * 1500])
def test_an_output_folder_that_cannot_be_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("absent")
    with pytest.raises(ConfigError, match="output_dir: cannot be a folder"):
        file.from_dict({"output_dir": str(tmp_path / name)})


def test_few_shot_answers_of_arms_need_those_of_the_base_model_0_shot() -> None:
    with pytest.raises(ConfigError, match=r"evaluate.few_shot: .* set evaluate.base to true"):
        from_dict({"output_dir": "runs/x", "evaluate": {"few_shot": True}})
