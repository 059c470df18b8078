"""Live knowledge without ranks: schedule, questions, answers and measures."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ift_scale_kernels.linear_cross_entropy.reference import linear_cross_entropy
from transformers import AutoModelForCausalLM

from ift_scale.analyse.answers import answers_of, compare, table_of
from ift_scale.config import Config, EngineConfig, LiveConfig, TrainConfig
from ift_scale.config.file import from_dict
from ift_scale.engines.protocol import EngineSpec
from ift_scale.engines.transformers import TransformersEngine
from ift_scale.errors import ConfigError
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.ranks.environment import Ranks
from ift_scale.records import GRADES, Arm, Score
from ift_scale.scoring.letters import Chat, LetterAsker
from ift_scale.train.data import dataset, packing
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.job import ArmJob, Events, LiveJob, trained_lengths
from ift_scale.train.live import questions as live_questions
from ift_scale.train.live import tokens as live_tokens
from ift_scale.train.live.evaluator import LiveEvaluator, measures
from ift_scale.train.live.tokens import first
from ift_scale.train.measurement import schedule
from ift_scale.train.measurement.evaluator import Measurements
from ift_scale.train.model.packed import PackedCausalLM
from tests.prompts import vocabularies
from tests.train import homo
from tests.train.alone import Alone

ALONE = Ranks(rank=0, world_size=1, local_rank=0)


@given(st.integers(1, 400), st.integers(1, 300), st.integers(1, 10**6))
def test_automatic_is_the_shortest_interval_within_the_budget(
    num_steps: int, num_questions: int, arm_cost: int
) -> None:
    costs = np.full(num_questions, 60.0)
    found = schedule.automatic(costs, arm_cost, num_steps)
    if found is None:
        fewest = min(schedule.MIN_MEASUREMENTS, 1 + num_steps) * min(
            schedule.MIN_QUESTIONS, num_questions
        )
        assert fewest * 60 > schedule.BUDGET * 3 * arm_cost
        return
    assert found.share <= schedule.BUDGET * (1 + 1e-9)
    asked = [step for step in range(num_steps + 1) if schedule.due(step, found.every, num_steps)]
    assert asked[0] == 0 and asked[-1] == num_steps
    assert found.share == pytest.approx(len(asked) * found.num_questions * 60 / (3 * arm_cost))
    if found.num_questions == num_questions and found.every > 1:
        assert schedule.fixed(
            found.every - 1, costs, arm_cost, num_steps
        ).share > schedule.BUDGET or (
            schedule.num_measurements(found.every - 1, num_steps) == len(asked)
        )


def test_a_short_arm_is_asked_fewer_questions_and_a_very_short_one_none() -> None:
    costs = np.full(100, 60.0)
    assert schedule.automatic(costs, 3 * 100 * 60 / (3 * 0.02), 47) == schedule.Schedule(
        24, 100, pytest.approx(0.02)
    )  # type: ignore[arg-type]
    fewer = schedule.automatic(costs, 3 * 70 * 60 / (3 * 0.02), 47)
    assert fewer is not None and (fewer.num_questions, fewer.every) == (70, 24)
    assert schedule.automatic(costs, 3 * 49 * 60 / (3 * 0.02), 47) is None


def test_never_is_never_due() -> None:
    assert not any(schedule.due(step, 0, 7) for step in range(8))


@pytest.mark.parametrize(
    ("values", "rises", "least", "since"),
    [
        ([0.5], True, 0, 0),
        ([0.5, 0.6, 0.6, 0.55], True, 0, 2),
        ([0.5, 0.6, 0.61, 0.62], True, 0.05, 2),
        ([0.3, 0.2, 0.25, 0.1], False, 0, 0),
        ([0.3, float("nan"), 0.3], False, 0, 2),
    ],
)
def test_measurements_since_the_best(
    values: list[float], rises: bool, least: float, since: int
) -> None:
    assert schedule.since_best(values, rises, least) == since


def test_questions_are_asked_with_the_tokens_of_the_evaluation(
    tmp_path: Path, world_model: Path
) -> None:
    source, tokenizer = homo.source(tmp_path), PromptTokenizer(world_model)
    found = live_questions.prepare(source, (homo.DOMAIN,), tokenizer, "vicuna")
    assert found is not None
    rows = source.questions.select(lambda group: live_questions.is_homo((homo.DOMAIN,), group))
    questions = {question.id: question for question in source.questions.read(rows)}
    asked = LetterAsker(Chat(tokenizer, "vicuna"), plain).write(list(questions.values()))
    requests = dict(zip(questions, asked.requests, strict=True))
    assert set(found.ids_Q) == set(questions) and len(questions) == 24
    base = live_questions.base_answers(source.probe, (homo.DOMAIN,))
    tokens = found.tokens
    for i, id in enumerate(found.ids_Q):
        row = tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist()
        count = len(questions[id].choices)
        assert row[: tokens.computed_lengths[i]] == requests[id].prefix + requests[id].suffix
        assert (
            found.letters_PC[i, :count].tolist() == requests[id].options
            and (found.letters_PC[i, count:] == -1).all()
        )
        assert row[-1] == requests[id].options[questions[id].answer or 0]
        assert (
            found.base_QC[i, :count].tolist() == base[id][0]
            and GRADES[found.grades_Q[i]] == base[id][1]
        )
    assert (
        set(found.num_choices_Q.tolist()) == {3, 4}
        and tokens.supervised_counts.tolist() == [1] * 24
    )


def test_a_file_is_made_once_for_the_same_inputs(tmp_path: Path, world_model: Path) -> None:
    source, tokenizer = homo.source(tmp_path), PromptTokenizer(world_model)
    path = live_questions.cached(source, (homo.DOMAIN,), tokenizer, "vicuna", tmp_path / "cache")
    assert path is not None
    made = path.stat().st_mtime_ns
    assert (
        live_questions.cached(source, (homo.DOMAIN,), tokenizer, "vicuna", tmp_path / "cache")
        == path
    )
    assert path.stat().st_mtime_ns == made
    assert (
        live_questions.cached(source, (homo.DOMAIN,), tokenizer, "chatml", tmp_path / "cache")
        != path
    )
    assert (
        live_questions.cached(source, ("nowhere",), tokenizer, "vicuna", tmp_path / "cache") is None
    )


def test_a_damaged_file_is_made_again(
    tmp_path: Path, world_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, tokenizer = homo.source(tmp_path), PromptTokenizer(world_model)
    path = live_questions.cached(source, (homo.DOMAIN,), tokenizer, "vicuna", tmp_path / "cache")
    assert path is not None
    before, whole = path.read_bytes(), live_tokens.load(path)
    flipped = bytearray(before)
    flipped[before.index(b"NUMPY") + 200] ^= 1
    for damaged in (bytes(flipped), before[:-30], before[30:], b""):
        path.write_bytes(damaged)
        live_questions.cached(source, (homo.DOMAIN,), tokenizer, "vicuna", tmp_path / "cache")
        said = " ".join(capsys.readouterr().out.split())
        assert f"{path}: damaged live questions; they are prepared again" in said
        assert np.array_equal(live_tokens.load(path).tokens.ids, whole.tokens.ids)


def _config(tmp_path: Path, **live: Any) -> Config:
    return from_dict(
        {"output_dir": str(tmp_path), "train": {"global_batch_size": 4, "epochs": 2, "live": live}}
    )


def _arm(tmp_path: Path, num_tokens: int, domain: str = homo.DOMAIN) -> ArmJob:
    path = tmp_path / "tokens.npz"
    supervised = np.arange(num_tokens * 8) % num_tokens == num_tokens - 1
    ids = np.zeros(num_tokens * 8, dtype=np.int32)
    dataset.save(TokenizedSet(ids, supervised, np.arange(9) * num_tokens, np.ones(8), 0), path)
    arm = Arm(domain=domain, setting="harmonious", seed=0)
    return ArmJob(arm=arm, source="set", tokens=str(path), folder="folder", key="key", inputs={})


def test_the_schedule_is_reported(
    tmp_path: Path, world_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, tokenizer = homo.source(tmp_path), PromptTokenizer(world_model)

    def jobs(arm: ArmJob, **live: Any) -> dict[str, LiveJob]:
        return live_questions.build_jobs(
            source, [arm], _config(tmp_path, **live), tokenizer, tmp_path / "cache", 128
        )

    long, short = _arm(tmp_path, 20_000), _arm(tmp_path, 20)
    assert not jobs(short)
    assert (
        "no live knowledge of medicine: its arms are too short"
        in capsys.readouterr().out.replace("\n", " ")
    )
    with pytest.raises(ConfigError, match="no live knowledge of medicine: its arms are too short"):
        jobs(short, early_stopping={"metric": "accuracy"})
    found = jobs(short, every=3, max_questions=10)[short.arm.name]
    assert (found.every, found.num_questions) == (3, 10)
    assert "10 of 24 questions" in capsys.readouterr().out
    long = _arm(tmp_path, 20_000)
    assert jobs(long)[long.arm.name].every == 1
    with pytest.raises(ConfigError, match="no choice question in a test split"):
        jobs(_arm(tmp_path, 20_000, "nowhere"), early_stopping={"metric": "divergence"})


def test_early_stopping_needs_measurements() -> None:
    with pytest.raises(ConfigError, match=r"train.live.early_stopping: needs measurements"):
        from_dict(
            {
                "output_dir": "x",
                "train": {"live": {"every": 0, "early_stopping": {"metric": "accuracy"}}},
            }
        )


def _live(
    path: Path,
    world_model: Path,
    control: Any,
    ranks: Ranks,
    count: int,
    folder: Path | None,
    **settings: Any,
) -> LiveEvaluator:
    config = TrainConfig(zero_stage=2, max_length=128, tokens_per_micro_batch=256)
    model = AutoModelForCausalLM.from_pretrained(world_model, dtype=torch.float32).train()
    packed = PackedCausalLM(model, config, torch.device("cpu"), linear_cross_entropy)
    engine: Any = SimpleNamespace(
        packed=packed, config=config, device=torch.device("cpu"), ranks=ranks, deepspeed=None
    )
    job = LiveJob(questions=str(path), num_questions=count, every=2)
    return LiveEvaluator(
        job, LiveConfig(**settings), engine, control, 5, 128, folder, Events(None), {}
    )


def test_answers_are_those_of_the_inference_engine(tmp_path: Path, world_model: Path) -> None:
    source, tokenizer = homo.source(tmp_path), PromptTokenizer(world_model)
    path = live_questions.cached(source, (homo.DOMAIN,), tokenizer, "vicuna", tmp_path)
    assert path is not None
    live = _live(path, world_model, Alone(), ALONE, 20, tmp_path)
    state = torch.get_rng_state()
    for step in range(6):
        live.after(step)
    assert torch.equal(state, torch.get_rng_state())
    assert live._engine.packed.training and all(
        p.grad is None for p in live._engine.packed.parameters()
    )
    assert [row["step"] for row in live.rows] == [0, 2, 4, 5]
    assert live.counts() == {"live_questions": 20, "live_every": 2, "live_measurements": 4}
    assert [
        json.loads(line) for line in (tmp_path / "live.jsonl").read_text().splitlines()
    ] == live.rows
    questions = {q.id: q for q in source.questions.read(range(len(source.questions.lengths)))}
    asker = LetterAsker(Chat(tokenizer, "vicuna"), plain)
    with np.load(tmp_path / "live.npz") as answers:
        chosen = [questions[id] for id in answers["ids"]]
        logprobs = answers["logprobs"][-1]
    table = asker.ask(
        TransformersEngine(EngineSpec(str(world_model), "float32", EngineConfig())),
        asker.write(chosen),
    )
    for row, expected in zip(logprobs, table["logprobs"].to_pylist(), strict=True):
        assert (
            row[: len(expected)] == pytest.approx(expected, abs=1e-5)
            and np.isneginf(row[len(expected) :]).all()
        )


@pytest.mark.parametrize("family", ["llama-3", "qwen2, D merges", "metaspace bpe"])
def test_letters_that_merge_with_the_prompt_are_those_of_the_inference_engine(
    tmp_path: Path, family: str
) -> None:
    """Letters of one token, of several (one prompt per option), and with the examples' period."""
    folder = vocabularies.save(
        vocabularies.FAMILIES[family](), tmp_path / "model", template=vocabularies.TIGHT
    )
    tokenizer = PromptTokenizer(folder)
    vocabularies.random_model(folder, len(tokenizer.tokenizer))
    source = homo.source(tmp_path, 9)
    path = live_questions.cached(source, (homo.DOMAIN,), tokenizer, "model", tmp_path)
    assert path is not None
    several = family == "qwen2, D merges"
    whole = live_tokens.load(path)
    assert (len(whole.tokens.lengths) > 9) == (whole.letters_PC.shape[0] > 9) == several
    live = _live(path, folder, Alone(), ALONE, 7, tmp_path)
    live.after(0)
    with np.load(tmp_path / "live.npz") as answers:
        logprobs, ids = answers["logprobs"][0], answers["ids"]
    questions = {q.id: q for q in source.questions.read(range(len(source.questions.lengths)))}
    asker = LetterAsker(Chat(tokenizer, "model"), plain)
    table = asker.ask(
        TransformersEngine(EngineSpec(str(folder), "float32", EngineConfig())),
        asker.write([questions[id] for id in ids]),
    )
    assert len(table) == 7
    for row, expected in zip(logprobs, table["logprobs"].to_pylist(), strict=True):
        assert (
            row[: len(expected)] == pytest.approx(expected, abs=1e-4)
            and np.isneginf(row[len(expected) :]).all()
        )
    # The cost of a question is that of all its prompts.
    found = live_questions.schedule_of(
        whole, trained_lengths(_arm(tmp_path, 20)), _config(tmp_path, every=1, max_questions=5), 64
    )
    assert found is not None and found.num_questions == 5
    costs = packing.cost(whole.tokens.computed_lengths, 64)[whole.questions_N < 5]
    assert found.share == pytest.approx(
        schedule.num_measurements(1, 4)
        * costs.sum()
        / (3 * 2 * 8 * packing.cost(np.array([19]), 64)[0])
    )


def _tokens(tmp_path: Path) -> Path:
    return Path(_arm(tmp_path, 20).tokens)


def test_measures_are_those_of_the_analysis(tmp_path: Path, world_model: Path) -> None:
    source = homo.source(tmp_path)
    found = live_questions.prepare(source, (homo.DOMAIN,), PromptTokenizer(world_model), "vicuna")
    assert found is not None
    rng = np.random.default_rng(0)
    logprobs = np.where(found.has_option, rng.normal(-3, 2, found.has_option.shape), -np.inf)

    def score(i: int, probs: np.ndarray) -> Score:
        who = {
            "question_id": found.ids_Q[i],
            "domain": "d",
            "subject": "s",
            "collection": "pool",
            "split": "test",
        }
        known = probs[: found.num_choices_Q[i]] / probs.sum()
        prediction = int(known.argmax())
        right = prediction == found.answers_Q[i]
        more = {
            "answer": found.answers_Q[i],
            "logprobs": None,
            "letter_mass": probs.sum(),
            "prediction": prediction,
        }
        return Score(**who, **more, probs=known.tolist(), confidence=known.max(), correct=right)  # type: ignore[arg-type]

    after = [score(i, np.exp(row)) for i, row in enumerate(logprobs)]
    base = [score(i, row) for i, row in enumerate(found.base_QC)]
    rows = compare(answers_of(table_of(base)), answers_of(table_of(after)))
    measured = measures(logprobs, found)
    names = {
        "accuracy": "accuracy",
        "rank_correlation": "consistency",
        "divergence": "kl",
        "letter_mass": "letter_mass",
    }
    for ours, theirs in names.items():
        assert measured[ours] == pytest.approx(rows[theirs].mean())
    grades = measured["grades"]
    assert (
        list(grades) == list(GRADES[:3])
        and sum(grade["questions"] for grade in grades.values()) == 24
    )
    mean = sum(grade["questions"] * grade["accuracy"] for grade in grades.values()) / 24
    assert mean == pytest.approx(measured["accuracy"])


def test_a_rank_without_a_question_takes_part(tmp_path: Path, world_model: Path) -> None:
    path = live_questions.cached(
        homo.source(tmp_path), (homo.DOMAIN,), PromptTokenizer(world_model), "vicuna", tmp_path
    )
    assert path is not None
    whole = live_tokens.load(path)
    theirs = np.log(np.full((1, whole.letters_PC.shape[1]), 0.2))
    live = _live(path, world_model, Alone(), Ranks(rank=1, world_size=2, local_rank=1), 1, tmp_path)
    live._control = Alone(([0], theirs))  # type: ignore[assignment]
    live.after(0)
    assert live.rows[0]["questions"] == 1 and live.rows[0]["letter_mass"] == pytest.approx(
        0.2 * whole.num_choices_Q[0]
    )


def test_an_arm_ends_where_nothing_improves_but_not_after_its_last_step(
    tmp_path: Path, world_model: Path
) -> None:
    path = live_questions.cached(
        homo.source(tmp_path), (homo.DOMAIN,), PromptTokenizer(world_model), "vicuna", tmp_path
    )
    assert path is not None
    for patience, stopped in (
        (1, [False, True]),
        (2, [False, False, True]),
        (3, [False, False, False, False]),
    ):
        (tmp_path / str(patience)).mkdir()
        stopping = {"metric": "accuracy", "patience": patience}
        live = _live(
            path, world_model, Alone(), ALONE, 4, tmp_path / str(patience), early_stopping=stopping
        )
        reported = []
        for step in range(6):
            if live.after(step):
                reported.append(live.should_stop)
            if live.should_stop:
                break
        assert reported == stopped
        assert Measurements([live]).counts()["stopped_early"] == int(stopped[-1])


def test_an_interrupted_arm_resumes_from_its_files(tmp_path: Path, world_model: Path) -> None:
    path = live_questions.cached(
        homo.source(tmp_path), (homo.DOMAIN,), PromptTokenizer(world_model), "vicuna", tmp_path
    )
    assert path is not None
    settings: dict[str, Any] = {"early_stopping": {"metric": "divergence", "patience": 2}}
    before = _live(path, world_model, Alone(), ALONE, 4, tmp_path, **settings)
    for step in range(3):
        before.after(step)
    after = _live(path, world_model, Alone(), ALONE, 4, tmp_path, **settings)
    assert after.rows == before.rows and after.seconds == before.seconds and not after.should_stop
    assert after.after(2) == {}  # already measured
    assert after.after(4)["step"] == 4 and after.should_stop
    assert _live(path, world_model, Alone(), ALONE, 4, tmp_path, **settings).should_stop
    with np.load(tmp_path / "live.npz") as answers:
        assert answers["steps"].tolist() == [0, 2, 4] and answers["logprobs"].shape == (3, 4, 4)
    # With other questions, the measurements restart.
    assert not _live(path, world_model, Alone(), ALONE, 5, tmp_path, **settings).rows
    assert not (tmp_path / "live.jsonl").exists()


def test_the_first_questions_are_a_whole_set(tmp_path: Path, world_model: Path) -> None:
    found = live_questions.prepare(
        homo.source(tmp_path), (homo.DOMAIN,), PromptTokenizer(world_model), "vicuna"
    )
    assert found is not None
    fewer = first(found, 5)
    assert (
        fewer.tokens.lengths.tolist() == found.tokens.lengths[:5].tolist()
        and len(fewer.tokens.ids) == fewer.tokens.offsets[-1]
    )
    assert len(fewer.ids_Q) == len(fewer.letters_PC) == 5
