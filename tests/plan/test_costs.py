"""A study's cost: shared work counts once, rates have precedence, sizes are bounded or counted."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ift_scale.config import Config, TrainConfig
from ift_scale.config.file import from_dict
from ift_scale.errors import ConfigError
from ift_scale.estimate.machine import read_machine
from ift_scale.estimate.scaling import Examples
from ift_scale.io.files import write_json
from ift_scale.io.manifests import write_manifest
from ift_scale.plan import amounts, disk
from ift_scale.plan.amounts import Amounts, amounts_of, largest_set
from ift_scale.plan.costs import Devices, arm_costs, perhaps_shared, stage_costs
from ift_scale.plan.disk import disk_of
from ift_scale.plan.memory import read_shape
from ift_scale.plan.questions import PlannedQuestions, Prompts, prompts_of
from ift_scale.plan.rate import STAGES, Rate
from ift_scale.plan.rates import RateSources, find, measured, read_rates
from ift_scale.probe.run import asker_of
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.questions import world
from ift_scale.scoring.question_file import GroupKey

PROMPTS = Prompts(tokens=200, own=50, views=2)
RATE = Rate(10.0, 5.0, 1.0, "test")


def _config(root: Path, name: str, **sections: object) -> Config:
    return from_dict(
        {"output_dir": str(root / name), "train": {"global_batch_size": 8}, **sections}
    )


def _amounts(root: Path, name: str, **sections: object) -> Amounts:
    """Two domains with 100 and 40 train questions and 30 test questions each."""
    groups: Counter[GroupKey] = Counter()
    for domain, size in (("engineering", 100), ("medicine", 40)):
        for split, count in (("train", size), ("test", 30)):
            groups[GroupKey("choice", "pool", domain, domain, split, 4)] = count
    return amounts_of(
        name, _config(root, name, **sections), 1000, PlannedQuestions(groups=groups), PROMPTS
    )


def _rates(*study: Amounts, rate: Rate | None = RATE) -> dict[tuple[str, str], Rate | None]:
    return {(one.name, stage): rate for one in study for stage in STAGES}


def test_sizes_are_bounded_by_the_pools(tmp_path: Path) -> None:
    """Two halves of right and wrong questions, as many general instructions, three epochs."""
    one = _amounts(tmp_path, "a")
    assert [work.examples for work in one.arms] == [3 * 2 * 50] * 3 + [3 * 2 * 20] * 3 and not any(
        work.exact for work in one.arms
    )
    config = one.config.construct
    assert largest_set(config.model_copy(update={"settings": ["harmonious"]}), 100) == 200
    assert largest_set(config.model_copy(update={"size": 10}), 100) == 20
    assert (
        largest_set(config.model_copy(update={"settings": ["highly_known", "unknown"]}), 100) == 100
    )


def test_doses_are_counted(tmp_path: Path) -> None:
    """A smaller set is trained on its own; epochs and restored models are not trained."""
    one = _amounts(
        tmp_path,
        "a",
        construct={"sizes": [10], "settings": ["natural"], "domains": ["engineering"]},
        train={"export_epochs": [1], "restore": [0.1], "global_batch_size": 8},
    )
    found = {work.arm.setting.removeprefix("natural"): work for work in one.arms}
    derived = {"": None, "-epoch-1": "epoch", "-restored-0.1": "restored"}
    kinds = {size + name: kind for size in ("", "-size-10") for name, kind in derived.items()}
    assert {name: work.derived for name, work in found.items()} == kinds
    examples = {name: work.examples for name, work in found.items() if work.examples}
    assert examples == {"": 3 * 2 * 100, "-size-10": 3 * 2 * 10}
    assert all(work.asked == {"evaluate": 30} for work in found.values())
    assert disk_of([one], 4, 100).models == 6 * 1000 * 4
    (train,) = (r for r in stage_costs([one], _rates(one), Devices(1, 1, 2)) if r.stage == "train")
    assert (train.arms, train.items) == (2, 660)


def test_sizes_are_counted_after_construct(tmp_path: Path) -> None:
    names = [work.arm.name for work in _amounts(tmp_path, "a").arms]
    folder = tmp_path / "a" / "construct"
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}.jsonl").write_text("{}\n" * 7, encoding="utf-8")
    write_manifest(folder, "construct", "key", {}, {}, {}, {"total": 0.0})
    one = _amounts(tmp_path, "a")
    assert {work.examples for work in one.arms} == {21} and all(work.exact for work in one.arms)
    (row,) = (
        row for row in stage_costs([one], _rates(one), Devices(1, 1, 2)) if row.stage == "train"
    )
    assert row.exact and row.items == 6 * 21


def test_a_stage_costs_its_start_its_arms_and_its_items(tmp_path: Path) -> None:
    one = _amounts(tmp_path, "a")
    found = {
        row.stage: row
        for row in stage_costs([one], _rates(one), Devices(engines=8, ranks=8, cores=None))
    }
    assert found["probe"].items == one.num_probed * 2 * 200
    assert found["probe"].seconds == pytest.approx(5 + found["probe"].items / 80)
    assert found["train"].seconds == pytest.approx(5 + 6 * 1 + 1260 / 80)
    assert found["train"].hours == pytest.approx(8 * found["train"].seconds / 3600)  # type: ignore[operator]
    assert found["write"].items == 0 == found["write"].seconds
    on_cpu = {
        row.stage: row
        for row in stage_costs([one], _rates(one), Devices(engines=1, ranks=2, cores=2))
    }
    assert on_cpu["evaluate"].hours == pytest.approx(2 * (5 + 6 + 6 * 30 / 10) / 3600)


def test_free_questions_cost_their_own_prompts(tmp_path: Path, world_model: Path) -> None:
    """The planned tokens are those that the probe counts."""
    questions = [q for q in world.load() if q.domain == "medicine"]
    config = _config(tmp_path, "a", probe={"free": {"ask": True}, "reliability": {"cloze": "sum"}})
    tokenizer = PromptTokenizer(world_model)
    tally = PlannedQuestions.of(config, questions)
    planned = amounts_of("a", config, 1000, tally, prompts_of(config, tally, tokenizer))
    asked = [q for q in questions if q.split != "dev"]
    demonstrations = Demonstrations(questions, 5, config.probe.demonstration_seed)
    asker = asker_of(config.probe, tokenizer, demonstrations)
    tokens = sum(
        asker.write([q for q in asked if q.kind == kind]).tokens  # type: ignore[attr-defined]
        for kind in ("choice", "free")
    )
    assert planned.num_free > 50
    assert planned.prompt_tokens == pytest.approx(tokens, rel=0.02)


def test_arms_add_up_to_their_stages_without_the_start(tmp_path: Path) -> None:
    one, devices = _amounts(tmp_path, "a"), Devices(4, 4, None)
    arms = sum(row.hours or 0 for row in arm_costs([one], _rates(one), devices))
    stages = sum(
        row.hours or 0
        for row in stage_costs([one], _rates(one), devices)
        if row.stage in ("train", "evaluate")
    )
    assert stages - arms == pytest.approx(2 * 4 * 5.0 / 3600)


def test_what_variants_share_is_paid_once(tmp_path: Path) -> None:
    """The same settings in another order share all arms; another learning rate only the probe."""
    first = _amounts(tmp_path, "a")
    same = _amounts(
        tmp_path, "b", construct={"settings": ["self_aligning", "incompatible", "harmonious"]}
    )
    other = _amounts(tmp_path, "c", train={"learning_rate": 1e-4, "global_batch_size": 8})
    study = [first, same, other]
    rows = {
        (row.variant, row.stage): row
        for row in stage_costs(study, _rates(*study), Devices(1, 1, 2))
    }
    assert rows["b", "probe"].items == 0 and rows["b", "probe"].shared == 1
    assert (rows["b", "train"].arms, rows["b", "train"].shared, rows["b", "train"].seconds) == (
        0,
        6,
        0,
    )
    assert (rows["c", "train"].arms, rows["c", "probe"].items) == (6, 0)
    assert disk.disk_of(study, 4, 100).models == 12 * 1000 * 4


def test_the_base_model_is_evaluated_once_by_the_variants_that_ask_it(tmp_path: Path) -> None:
    """It is asked the test questions of both domains, an arm those of its own."""
    asked = {"evaluate": {"base": True}, "construct": {"settings": ["natural"]}}
    study = [
        _amounts(tmp_path, "a"),
        _amounts(tmp_path, "b", **asked),
        _amounts(tmp_path, "c", **asked, train={"global_batch_size": 8, "learning_rate": 1e-4}),
    ]
    rows = [
        row
        for row in stage_costs(study, _rates(*study), Devices(1, 1, 2))
        if row.stage == "evaluate"
    ]
    assert [row.items for row in rows] == [6 * 30, 2 * 30 + 60, 2 * 30]
    assert [one.base_asked for one in study] == [{}, {"evaluate": 60}, {"evaluate": 60}]


def test_items_and_probed_questions_are_bounded_and_shared(tmp_path: Path) -> None:
    """Sets have at most 50 and 20 questions, the pools 140 train and 30 test questions each."""
    on = {"learnt": {"on": True, "max_items": 30}, "hidden": {"on": True, "max_fit_questions": 90}}
    construct = {"settings": ["harmonious", "incompatible", "general_only"], "seeds": [0]}
    study = [
        _amounts(tmp_path, "a", construct=construct),
        _amounts(tmp_path, "b", construct=construct, **on),
        _amounts(
            tmp_path,
            "c",
            construct=construct,
            **on,
            train={"global_batch_size": 8, "learning_rate": 1e-4},
        ),
    ]
    rows = stage_costs(study, _rates(*study), Devices(1, 1, 2))
    found = {(row.variant, row.stage): row for row in rows if row.stage in ("learnt", "hidden")}
    items = 2 * (30 + 20)
    probed, of_base = 6 * (90 + 30), 140 + 2 * 30
    # The base model is asked once: its answers do not depend on the learning rate.
    assert {key: row.items for key, row in found.items()} == {
        ("b", "learnt"): items + items,
        ("c", "learnt"): items,
        ("b", "hidden"): probed + of_base,
        ("c", "hidden"): probed,
    }
    assert found["b", "learnt"].arms == 4 and found["b", "hidden"].arms == 6
    assert not any(row.exact for row in found.values())
    # Another setting changes the questions that probes may be fitted on, and no arm's items.
    more = {**construct, "settings": [*construct["settings"], "natural"]}
    longer = [study[1], _amounts(tmp_path, "d", construct=more, **on)]
    again = stage_costs(longer, _rates(*longer), Devices(1, 1, 2))
    shared = {row.stage: row.shared for row in again if row.variant == "d"}
    assert shared["hidden"] == 0
    of_arms = arm_costs(study, _rates(*study), Devices(1, 1, 2))
    hours = {(row.variant, row.setting): row.hours for row in of_arms}
    seconds = 4 * 1 + (items / 2 + probed / 3) / 10  # two arms, started and asked in two stages
    assert hours["b", "harmonious"] == pytest.approx(2 * seconds / 3600)  # trained by the first
    known = {
        key: rate for key, rate in _rates(*study).items() if key[1] not in ("learnt", "hidden")
    }
    (first, *_) = arm_costs(study[1:], known, Devices(1, 1, 2))
    assert first.hours == arm_costs(study[:1], known, Devices(1, 1, 2))[0].hours


def test_arms_that_may_turn_out_equal_are_reported(tmp_path: Path) -> None:
    """Without wrong questions the harmonious set may be larger, so equality is not yet known."""
    study = [
        _amounts(tmp_path, "a"),
        _amounts(tmp_path, "b", construct={"settings": ["harmonious"]}),
    ]
    assert perhaps_shared(study) == 2 and perhaps_shared(study[:1]) == 0
    sized = [
        _amounts(tmp_path, "a", construct={"size": 5}),
        _amounts(tmp_path, "b", construct={"size": 5, "settings": ["harmonious"]}),
    ]
    rows = {
        (row.variant, row.stage): row
        for row in stage_costs(sized, _rates(*sized), Devices(1, 1, 2))
    }
    assert rows["b", "train"].shared == 2 and perhaps_shared(sized) == 0


def _trained(root: Path, name: str, seconds: float) -> None:
    folder = root / "train" / name
    folder.mkdir(parents=True)
    config = {"train": {"global_batch_size": 8, "epochs": 2, "num_ranks": 2}}
    counts = {"steps": 10, "examples": 40}
    write_manifest(
        folder,
        "train",
        "key",
        config,
        {},
        counts,
        {"build": 1.0, "export": 2.0, "steps": seconds, "live": 0.0},
    )
    write_json(root / "logs" / "train-seconds.json", {"launch_and_imports": 9.0, "tokenise": 1.0})


def test_a_measured_rate_is_per_device(tmp_path: Path) -> None:
    assert measured("train", tmp_path, "here") is None
    _trained(tmp_path, "one", 4.0)
    _trained(tmp_path, "two", 6.0)
    assert measured("train", tmp_path, "here") == Rate(160 / 10 / 2, 10.0, 3.0, "here")
    # An average has no training; each earlier epoch is one more export.
    write_manifest(tmp_path / "train" / "average", "train", "key", {"average": 0.5}, {}, {}, {})
    assert measured("train", tmp_path, "here", models=3) == Rate(8.0, 10.0, 7.0, "here")


def test_given_rates_precede_predictions_which_precede_measurements(
    tmp_path: Path,
) -> None:
    one, other = _amounts(tmp_path, "a"), _amounts(tmp_path, "b")
    _trained(tmp_path / "b", "arm", 4.0)
    (tmp_path / "rates.yaml").write_text(
        yaml.safe_dump({"source": "a table", "train": {"per_second": 3.0}}), encoding="utf-8"
    )
    rates, machine, shape = (
        read_rates(tmp_path / "rates.yaml"),
        read_machine("h100-sxm"),
        read_shape("llama-2-7b"),
    )
    given = RateSources(None, None, 8, Examples())

    def source(given: RateSources, stage: str = "train", here: bool = True) -> str | None:
        found = find(stage, one, [one, other], given, shape, here)
        return None if found is None else found.source

    assert source(replace(given, rates=rates, machine=machine)) == "given: a table"
    assert (
        source(replace(given, rates=rates, machine=machine), "probe")
        == "predicted for H100 SXM, not measured"
    )
    assert source(replace(given, machine=machine), "write") is None
    assert source(given) == "measured in b" and source(given, here=False) is None
    _trained(tmp_path / "a", "arm", 4.0)
    assert source(given) == "measured here"


def test_the_shipped_rates_are_read() -> None:
    for path in (Path(__file__).parents[2] / "configs" / "rates").glob("*.yaml"):
        found = read_rates(path)
        assert found.probe and found.train and found.evaluate, path


def test_a_bad_file_of_rates(tmp_path: Path) -> None:
    (tmp_path / "rates.yaml").write_text(
        json.dumps({"source": "x", "trian": {"per_second": 1.0}}), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="trian: unknown key; did you mean 'train'"):
        read_rates(tmp_path / "rates.yaml")


def test_checkpoints_of_the_arm_in_training(tmp_path: Path) -> None:
    """One if a run is stopped; keep_last plus the one being written if they are periodic."""
    assert disk.disk_of([_amounts(tmp_path, "a")], 2, 100).checkpoints == 1000 * 14
    saving = _amounts(
        tmp_path, "a", train={"checkpoint": {"every": 5, "keep_last": 3}, "global_batch_size": 8}
    )
    assert disk.disk_of([saving], 2, 100).checkpoints == 4 * 1000 * 14
    assert disk.free_bytes(tmp_path / "not" / "there" / "yet") > 0


def test_validation_is_work_and_leaves_fewer_examples_to_train_on(tmp_path: Path) -> None:
    """A measured example costs a forward pass, a third of a trained one."""
    train = {"epochs": 2, "global_batch_size": 10, "max_length": 64, "tokens_per_micro_batch": 64}
    plain, share, file = (
        TrainConfig.model_validate(train | {"validation": validation})
        for validation in ({}, {"share": 0.25, "every": 4}, {"path": __file__, "every": "auto"})
    )
    assert amounts.validation_work(plain, 40, 0) == (40, 0)
    # 30 examples in 3 steps, twice: measured after the steps 0, 4 and 6.
    assert amounts.validation_work(share, 40, 0) == (30, 3 * 10)
    # Too expensive to be within 2%: once per epoch, after the steps 0, 4 and 8.
    assert amounts.validation_work(file, 40, 20) == (40, 3 * 20)
    assert amounts.validation_work(share, 0, 0) == (0, 0)

    whole, held_out = (
        _amounts(tmp_path, name, train={"global_batch_size": 10, "validation": validation})
        for name, validation in (("a", {}), ("b", {"share": 0.25, "keep_best": True}))
    )
    for one, other in zip(whole.arms, held_out.arms, strict=True):
        assert other.examples == 0.75 * one.examples
        assert other.train_items == other.examples + other.validated / 3
        assert other.validated > 0 and other.key != one.key
    extra = (disk.disk_of([one], 2, 100).checkpoints for one in (held_out, whole))
    assert next(extra) - next(extra) == 2 * 1000 * 2
