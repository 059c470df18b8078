"""The scoring core with a fake engine: order, chunks, ranks, resumption, deaths, lengths."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ift_scale.config import ReliabilityConfig
from ift_scale.engines.pool import EngineWorker
from ift_scale.engines.process import EngineDied
from ift_scale.engines.protocol import ScoreRequest
from ift_scale.errors import DataError, EnvironmentProblem
from ift_scale.io.files import read_parquet, write_jsonl
from ift_scale.io.progress import Bar
from ift_scale.prompts.views import View, plain
from ift_scale.records import Question, Score
from ift_scale.scoring.letters import LetterAsker
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.runner import Share, compute
from ift_scale.scoring.scores import ChoiceScores, arm_schema, write_rows
from ift_scale.scoring.target import Target, work_of


class Echo:
    """Prefers the option whose number ends the prompt; records its requests."""

    context_length = 50

    def __init__(self, fail_after: int = 1 << 30, error: type[Exception] = RuntimeError):
        self.asked: list[int] = []
        self.loaded: list[Path] = []
        self.fail_after, self.error = fail_after, error

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        if len(self.asked) + len(requests) > self.fail_after:
            raise self.error("killed")
        self.asked += [request.prompt[-1] for request in requests]
        wanted = [
            np.where(np.arange(len(r.options)) == r.prompt[-1] % len(r.options), 0.7, 0.05)
            for r in requests
        ]
        return np.log(np.concatenate(wanted))

    def reset_cache(self) -> None: ...

    def load_weights(self, path: Path) -> None:
        self.loaded.append(path)

    def ready(self) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


class Numbered:
    """The prompt is the question's number."""

    def requests(self, questions: Sequence[Question], views: Sequence[View]) -> list[ScoreRequest]:
        return [ScoreRequest([1], [int(q.id[1:])], list(range(len(q.choices)))) for q in questions]


def _questions(folder: Path, count: int, num_choices: Sequence[int] = (4,)) -> QuestionFile:
    """Questions whose topics alternate, with the option counts in turn."""
    made = [
        Question(
            id=f"q{i}",
            domain="ab"[i % 2],
            subject="s",
            collection="pool",
            split="test",
            question=f"{i}?",
            choices=[f"option {c}" for c in range(num_choices[i % len(num_choices)])],
            answer=1,
        )
        for i in range(count)
    ]
    write_jsonl(folder / "questions.jsonl", made)
    return QuestionFile(folder / "questions.jsonl")


def _target(
    questions: QuestionFile, folder: Path, key: str = "k", chunk: int = 3, model: str = "m"
) -> Target:
    def finish(target: Target, shards: list[Path]) -> None:
        write_rows(
            folder / "scores.parquet",
            arm_schema(cloze=False, generated=False),
            shards,
            ChoiceScores(ReliabilityConfig()).rows,
        )
        target.work = work_of(target)  # type: ignore[attr-defined]

    rows = [questions.select(lambda group: group.split != "dev")]
    done = (folder / "scores.parquet").is_file
    return Target(
        folder.name,
        folder,
        key,
        rows,
        LetterAsker(Numbered(), plain),
        Path(model),
        finish,
        chunk,
        done,
    )


def _engine_workers(*engines: Echo) -> list[EngineWorker]:
    bar = Bar("t", 0, None)
    return [EngineWorker(lambda path, engine=engine: engine, bar) for engine in engines]


ALONE = Share()


def _score(
    questions: QuestionFile, folder: Path, *engines: Echo, share: Share = ALONE, **settings: object
) -> Target:
    target = _target(questions, folder, **settings)  # type: ignore[arg-type]
    compute(questions, [target], _engine_workers(*engines), share, Bar("t", 0, None))
    return target


def _ids(folder: Path) -> list[str]:
    return pq.read_table(folder / "scores.parquet")["question_id"].to_pylist()


BY_TOPIC = ["q0", "q2", "q4", "q6", "q8", "q1", "q3", "q5", "q7", "q9"]


def test_questions_are_asked_and_merged_by_topic(tmp_path: Path) -> None:
    engine = Echo()
    target = _score(_questions(tmp_path, 10), tmp_path / "out", engine)
    assert _ids(tmp_path / "out") == BY_TOPIC
    assert engine.asked == [int(id[1:]) for id in BY_TOPIC]
    scores = read_parquet(tmp_path / "out" / "scores.parquet", Score)
    assert [s.prediction for s in scores] == [int(id[1:]) % 4 for id in BY_TOPIC]
    assert target.work.questions == 10 and target.work.tokens == 20  # type: ignore[attr-defined]
    assert not (tmp_path / "out" / "shards").exists()


def test_option_counts_may_be_mixed(tmp_path: Path) -> None:
    _score(_questions(tmp_path, 30, num_choices=(2, 5, 26)), tmp_path / "out", Echo())
    scores = read_parquet(tmp_path / "out" / "scores.parquet", Score)
    for score in scores:
        number = int(score.question_id[1:])
        num_choices = (2, 5, 26)[number % 3]
        assert len(score.probs or []) == num_choices
        assert score.prediction == number % num_choices
        assert score.letter_mass == pytest.approx(0.7 + 0.05 * (num_choices - 1))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_the_chunks_and_merge_to_the_same_bytes(
    tmp_path: Path, world_size: int
) -> None:
    questions = _questions(tmp_path, 40)
    _score(questions, tmp_path / "one", Echo())
    engines = [Echo() for _ in range(world_size)]
    shares = [Share(rank, world_size) for rank in range(world_size)]
    ranks = [
        threading.Thread(
            target=_score, args=(questions, tmp_path / "many", engine), kwargs={"share": share}
        )
        for engine, share in zip(engines, shares, strict=True)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert (tmp_path / "many" / "scores.parquet").read_bytes() == (
        tmp_path / "one" / "scores.parquet"
    ).read_bytes()
    assert sorted(n for engine in engines for n in engine.asked) == list(
        range(40)
    )  # nothing was computed twice


@pytest.mark.engine
def test_rank_zero_without_engines_merges_and_watches_the_ranks(
    tmp_path: Path,
) -> None:
    questions = _questions(tmp_path, 40)
    _score(questions, tmp_path / "one", Echo())
    watched: list[int] = []
    engine = Echo()
    rank = threading.Thread(
        target=_score, args=(questions, tmp_path / "out", engine), kwargs={"share": Share(1, 2)}
    )

    def watch() -> None:
        watched.append(len(engine.asked))
        if len(watched) == 1:  # what the leader prepares is ready before any rank begins
            rank.start()

    _score(questions, tmp_path / "out", share=Share(0, 2, watch))
    rank.join()
    assert watched[0] == 0 and len(watched) > 1
    assert (tmp_path / "out" / "scores.parquet").read_bytes() == (
        tmp_path / "one" / "scores.parquet"
    ).read_bytes()

    def fails() -> None:
        raise EnvironmentProblem("a rank is lost")

    with pytest.raises(EnvironmentProblem, match="a rank is lost"):
        _score(questions, tmp_path / "failed", share=Share(0, 2, fails))
    assert not (tmp_path / "failed" / "scores.parquet").exists()


def test_a_dead_ranks_share_is_taken_up(tmp_path: Path) -> None:
    questions = _questions(tmp_path, 40)
    with pytest.raises(RuntimeError):
        _score(questions, tmp_path / "out", Echo(fail_after=6), share=Share(1, 2))
    assert not (tmp_path / "out" / "scores.parquet").exists()
    second = Echo()
    _score(questions, tmp_path / "out", second)
    assert len(second.asked) == 40 - 6
    _score(questions, tmp_path / "fresh", Echo())
    assert (tmp_path / "out" / "scores.parquet").read_bytes() == (
        tmp_path / "fresh" / "scores.parquet"
    ).read_bytes()


def test_a_dead_engine_is_replaced_and_the_run_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = _questions(tmp_path, 10)
    engines = [Echo(fail_after=7, error=EngineDied), Echo()]
    target = _target(questions, tmp_path / "out")
    compute(
        questions,
        [target],
        [EngineWorker(lambda path: engines.pop(0), Bar("t", 0, None))],
        Share(),
        Bar("t", 0, None),
    )
    assert _ids(tmp_path / "out") == BY_TOPIC
    assert "starting a new one, which resumes with shard 2" in capsys.readouterr().out


def test_an_engine_that_keeps_dying_is_an_error(tmp_path: Path) -> None:
    questions = _questions(tmp_path, 10)
    target = _target(questions, tmp_path / "out")
    worker = EngineWorker(lambda path: Echo(fail_after=0, error=EngineDied), Bar("t", 0, None))
    with pytest.raises(EngineDied):
        compute(questions, [target], [worker], Share(), Bar("t", 0, None))


def test_a_changed_chunk_size_or_key_does_not_mix_up_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = _questions(tmp_path, 10)
    for settings in ({"chunk": 4}, {"key": "other"}):
        with pytest.raises(RuntimeError):
            _score(questions, tmp_path / "out", Echo(fail_after=7))
        engine = Echo()
        _score(questions, tmp_path / "out", engine, **settings)
        assert len(engine.asked) == 10
        assert "removed 2 shards of other questions or settings" in capsys.readouterr().out
        (tmp_path / "out" / "scores.parquet").unlink()


def test_one_engine_serves_several_weights_or_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fixed(Echo):
        def load_weights(self, path: Path) -> None:
            raise EnvironmentProblem("its weights did not change")

    questions = _questions(tmp_path, 6)
    targets = [_target(questions, tmp_path / name, model=name) for name in ("a", "b", "c")]
    warm = Echo()
    compute(questions, targets, _engine_workers(warm), Share(), Bar("t", 0, None))
    assert warm.loaded == [Path("b"), Path("c")]
    started: list[Path] = []
    worker = EngineWorker(lambda path: (started.append(path), Fixed())[1], Bar("t", 0, None))
    targets = [_target(questions, tmp_path / f"{name}2", model=name) for name in ("a", "b")]
    compute(questions, targets, [worker], Share(), Bar("t", 0, None))
    assert started == [Path("a"), Path("b")]
    assert (
        "failed to load new weights; starting a new one: its weights did not change"
        in capsys.readouterr().out
    )


def test_prompt_over_the_context_is_refused(tmp_path: Path) -> None:
    engine = Echo()
    engine.context_length = 1
    with pytest.raises(
        DataError,
        match=r"question q\d: its prompt has 2 tokens, but the model's context has 1",
    ):
        _score(_questions(tmp_path, 2), tmp_path / "out", engine)


def test_nan_probabilities_are_reported(tmp_path: Path) -> None:
    class Broken(Echo):
        def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
            return np.where(np.arange(4 * len(requests)) == 6, np.nan, -1.0)

    with pytest.raises(
        DataError, match=r"question q2: the model's probabilities are not numbers \(NaN\).*float32"
    ):
        _score(_questions(tmp_path, 10), tmp_path / "out", Broken())
    assert not (tmp_path / "out" / "scores.parquet").exists()
