"""From raw log-probabilities to knowledge, on models with known beliefs and habits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from ift_scale.config import ReliabilityConfig
from ift_scale.engines.protocol import ScoreRequest
from ift_scale.io.files import read_parquet
from ift_scale.prompts.views import View, views_of
from ift_scale.records import GRADES, Question, Score
from ift_scale.scoring import grades
from ift_scale.scoring.blocks import Block, blocks
from ift_scale.scoring.letter_prior import LetterPrior
from ift_scale.scoring.letters import LetterAsker
from ift_scale.scoring.scores import SCHEMA, ChoiceScores, ChoiceSummary, write_rows

PRIOR = np.array([0.55, 0.25, 0.15, 0.05])


def _questions(count: int, num_choices: int = 4) -> list[Question]:
    settings = {
        "domain": "d",
        "subject": "d",
        "collection": "pool",
        "split": "test",
        "question": "?",
    }
    choices = [f"c{i}" for i in range(num_choices)]
    return [
        Question(id=f"q{i}", choices=choices, answer=i % num_choices, **settings)
        for i in range(count)
    ]  # type: ignore[arg-type]


class Spelled:
    """The prompt encodes the question's number, the draw, and the order of its options."""

    def requests(self, questions: Sequence[Question], views: Sequence[View]) -> list[ScoreRequest]:
        pairs = zip(questions, views, strict=True)
        return [
            ScoreRequest([], [int(q.id[1:]), view.draw, *view.order], list(range(len(q.choices))))
            for q, view in pairs
        ]


class Habitual:
    """P(letter) is the product of the content's probability and PRIOR, normalised."""

    def __init__(self, prior: np.ndarray = PRIOR, letter_mass: float = 0.9):
        self.prior, self.letter_mass = prior, letter_mass

    @staticmethod
    def content(number: int) -> np.ndarray:
        weights = np.random.default_rng(number).random(4) + 0.1
        return weights / weights.sum()

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        out = []
        for request in requests:
            number, _, *order = request.suffix
            weights = self.content(number)[order] * self.prior
            out.append(np.log(self.letter_mass * weights / weights.sum()))
        return np.concatenate(out)


def _scored(
    config: ReliabilityConfig, engine: Habitual, folder: Path, count: int = 40
) -> tuple[list[Score], dict[str, object]]:
    asker = LetterAsker(Spelled(), views_of(config))
    shards = []
    for number, start in enumerate(range(0, count, 7)):
        table = asker.ask(engine, asker.write(_questions(count)[start : start + 7]))  # type: ignore[arg-type]
        shards.append(folder / f"{number}.parquet")
        pq.write_table(table, shards[-1])
    made = ChoiceScores(config)
    made.estimate_prior(shards)
    write_rows(folder / "all.parquet", SCHEMA, shards, made.rows)
    return read_parquet(folder / "all.parquet", Score), made.summary.as_json(made.prior)


def test_a_plain_score(tmp_path: Path) -> None:
    found, summary = _scored(ReliabilityConfig(), Habitual(), tmp_path)
    for number, score in enumerate(found):
        weights = Habitual.content(number) * PRIOR
        probs = weights / weights.sum()
        assert score.question_id == f"q{number}" and score.answer == number % 4
        assert score.probs == pytest.approx(probs)
        assert score.letter_mass == pytest.approx(0.9)
        assert np.exp(score.logprobs or []) == pytest.approx(0.9 * probs)
        assert score.prediction == probs.argmax() and score.confidence == pytest.approx(probs.max())
        assert score.correct == (score.prediction == score.answer)
        assert score.average_probs is None and score.grade is None
    assert summary["accuracy"] == pytest.approx(np.mean([s.correct for s in found]))
    assert "letter_bias" not in summary["letters"]["4"]  # type: ignore[index]


def test_the_average_is_by_content_and_rotations_leave_the_letter_bias(tmp_path: Path) -> None:
    config = ReliabilityConfig(permutations="circular", decide_by="average")
    for name, prior in {"leaning": PRIOR, "even": np.full(4, 0.25)}.items():
        (tmp_path / name).mkdir()
        found, summary = _scored(config, Habitual(prior), tmp_path / name)
        letters = summary["letters"]["4"]  # type: ignore[index]
        share = np.zeros(4)
        for number, score in enumerate(found):
            by_content = []
            for shift in range(4):
                order = (np.arange(4) + shift) % 4
                weights = Habitual.content(number)[order] * prior
                share += weights / weights.sum() / (4 * len(found))
                by_content.append((weights / weights.sum())[np.argsort(order)])
            assert score.average_probs == pytest.approx(np.mean(by_content, 0))
            assert score.probs == score.average_probs
            agreeing = np.mean(
                [row.argmax() == np.mean(by_content, 0).argmax() for row in by_content]
            )
            assert score.view_agreement == pytest.approx(agreeing)
        assert letters["probability"] == pytest.approx(share)
        assert letters["letter_bias"] == pytest.approx(np.abs(share - 0.25).sum() / 2)
        assert (
            letters["letter_bias"] == pytest.approx(0, abs=1e-9)
            if name == "even"
            else letters["letter_bias"] > 0.2
        )
    always_a = np.array([1, 1e-12, 1e-12, 1e-12])
    _, summary = _scored(config, Habitual(always_a), tmp_path)
    assert summary["letters"]["4"]["letter_bias"] == pytest.approx(0.75)  # type: ignore[index]


def test_pride_finds_the_prior_and_gives_the_content_back(tmp_path: Path) -> None:
    """Prior and content multiply here, as PriDe assumes, so both are recovered exactly."""
    found, summary = _scored(
        ReliabilityConfig(prior_share=0.3, decide_by="debiased"), Habitual(), tmp_path
    )
    assert summary["letters"]["4"]["prior"] == pytest.approx(PRIOR)  # type: ignore[index]
    assert all(
        score.average_probs is None for score in found
    )  # the sample's rotations are the prior's, not these questions' own
    for number, score in enumerate(found):
        assert score.debiased_probs == pytest.approx(Habitual.content(number))
        assert score.prediction == Habitual.content(number).argmax()


def test_the_prior_is_each_option_counts_own() -> None:
    prior = LetterPrior()
    assert prior.of(4) is None
    orders = np.array([[[0, 1], [1, 0]]])
    logprobs = np.log(np.array([[[0.8, 0.2], [0.8, 0.2]]]))
    prior.add(Block(np.arange(1), logprobs, orders, np.zeros((1, 2), int), np.array([0])))
    assert prior.of(2) == pytest.approx([0.8, 0.2]) and prior.of(4) is None


def test_grades_are_sliCKs() -> None:  # noqa: N802
    greedy = np.array([1.0, 0.5, 0.0, 0.0])
    sampled = np.array([0.9, 0.0, 0.1, 0.0])
    assert grades.grade_of(greedy, sampled).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("greedy", "sampled", "draws", "num_choices", "grade"),
    [
        (10, 160, 10, 4, "HighlyKnown"),
        (6, 0, 10, 4, "MaybeKnown"),  # P(6 of 10 or more) = 0.02
        (5, 0, 10, 4, "Unknown"),  # 0.08
        (
            1,
            38,
            10,
            4,
            "Unknown",
        ),  # a right answer or two of ten are what guessing gives, and so are 38 of 160
        (1, 53, 10, 4, "WeaklyKnown"),  # P(53 of 160 or more) = 0.01
        (0, 53, 10, 2, "Unknown"),  # of two options, half of the guesses are right
        (2, 32, 2, 4, "HighlyKnown"),
    ],
)
def test_knowledge_is_more_than_guessing(
    greedy: int, sampled: int, draws: int, num_choices: int, grade: str
) -> None:
    shares = np.array([greedy / draws]), np.array([sampled / (16 * draws)])
    found = grades.grade_beyond_chance(
        *shares, np.array([draws]), np.array([16 * draws]), 1 / num_choices, 0.05
    )
    assert GRADES[int(found[0])] == grade

    def beyond(right: int, asked: int) -> bool:
        return bool(binomtest(right, asked, 1 / num_choices, alternative="greater").pvalue <= 0.05)

    by_scipy = (
        "MaybeKnown"
        if beyond(greedy, draws)
        else "WeaklyKnown"
        if beyond(sampled, 16 * draws)
        else "Unknown"
    )
    assert grade == ("HighlyKnown" if greedy == draws else by_scipy)


def test_samples_of_one_draw_are_alike_if_draws_differ() -> None:
    rng = np.random.default_rng(0)
    steady = [grades.effective_samples(rng.random((16, 10)) < 0.35) for _ in range(200)]
    assert 110 < np.mean(steady) <= 160
    fickle = np.tile(np.arange(10) < 4, (16, 1))
    assert (
        grades.effective_samples(fickle) == 10
        and grades.effective_samples(np.ones((16, 10))) == 160
    )


class Guesses:
    """Every prompt has its own favourite letter, drawn evenly, with the probability `sure`."""

    def __init__(self, sure: float):
        self.sure = sure

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        out = []
        for request in requests:
            number, draw, *_ = request.suffix
            weights = np.full(4, (1 - self.sure) / 3)
            weights[np.random.default_rng([number, draw]).integers(4)] = self.sure
            out.append(np.log(weights))
        return np.concatenate(out)


@pytest.mark.parametrize("sure", [0.3, 0.5, 0.9])
def test_guessed_questions_are_unknown(sure: float, tmp_path: Path) -> None:
    """The paper's rule grades nearly none: one of ten draws or 160 samples is right by chance."""
    config = ReliabilityConfig(demonstration_draws=10, grades=True)
    known, _ = _scored(config, Guesses(sure), tmp_path, count=200)  # type: ignore[arg-type]
    unknown = sum(score.grade == "Unknown" for score in known) / 200
    assert sum(score.grade in ("HighlyKnown", "MaybeKnown") for score in known) / 200 < 0.06
    assert unknown > 0.87
    paper, _ = _scored(
        config.model_copy(update={"grade_rule": "paper"}), Guesses(sure), tmp_path, count=200
    )  # type: ignore[arg-type]
    assert sum(score.grade == "Unknown" for score in paper) / 200 < 0.05


def test_wrong_answers_are_unknown(tmp_path: Path) -> None:
    """Sure of another option in every draw."""

    class Wrong:
        def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
            answers = np.array([request.suffix[0] % 4 for request in requests])
            probs = np.full((len(requests), 4), 0.12)
            probs[np.arange(len(requests)), (answers + 1) % 4] = 0.64
            return np.log(probs).ravel()

    for rule, unknown in (("chance", 40), ("paper", 1)):
        config = ReliabilityConfig(demonstration_draws=10, grades=True, grade_rule=rule)
        found, _ = _scored(config, Wrong(), tmp_path, count=40)  # type: ignore[arg-type]
        assert (sum(score.grade == "Unknown" for score in found) >= unknown) == (rule == "chance")


def test_graded_samples_follow_the_letters_at_the_temperature(tmp_path: Path) -> None:
    config = ReliabilityConfig(
        demonstration_draws=4, grades=True, grade_samples=4000, grade_temperature=0.7
    )
    found, summary = _scored(config, Habitual(), tmp_path, count=10)
    for number, score in enumerate(found):
        weights = (Habitual.content(number) * PRIOR) ** (1 / 0.7)
        assert score.sampled_right == pytest.approx((weights / weights.sum())[number % 4], abs=0.02)
        assert score.greedy_right == float(score.correct)
        chance = binomtest(
            round(score.sampled_right * 16_000), 16_000, 0.25, alternative="greater"
        ).pvalue
        assert score.grade == (
            "HighlyKnown" if score.correct else "WeaklyKnown" if chance <= 0.05 else "Unknown"
        )
    assert {"HighlyKnown", "Unknown"} <= {score.grade for score in found}
    assert sum(summary["grades"].values()) == 10  # type: ignore[attr-defined]
    again, _ = _scored(config, Habitual(), tmp_path, count=10)
    assert again == found


def test_calibration_by_hand() -> None:
    """Four questions: confidences 0.7, 0.7, 0.9, 0.9; right, wrong, right, right."""
    summary = ChoiceSummary()
    probs = np.array([[0.7, 0.3], [0.7, 0.3], [0.9, 0.1], [0.1, 0.9]])
    block = Block(
        np.arange(4),
        np.log(probs)[:, None],
        np.tile(np.arange(2), (4, 1, 1)),
        np.zeros((4, 1), int),
        np.array([0, 1, 0, 1]),
    )
    summary.add(block, probs, np.array([True, False, True, True]))
    found = summary.as_json(LetterPrior())
    assert found["ece"] == pytest.approx(0.5 * abs(0.5 - 0.7) + 0.5 * abs(1.0 - 0.9))
    assert found["brier"] == pytest.approx((2 * 0.09 + 2 * 0.49 + 4 * 0.01) / 4)
    assert [b["questions"] for b in found["calibration"]] == [2, 2]
    assert found["letters"]["2"]["recall"] == [1.0, 0.5]
    assert found["letters"]["2"]["recall_std"] == pytest.approx(0.25)


def test_rows_keep_their_order_whatever_their_shapes() -> None:
    questions = [q for pair in zip(_questions(6, 4), _questions(6, 3), strict=True) for q in pair]
    asker = LetterAsker(Spelled(), views_of(ReliabilityConfig(prior_share=0.5)))

    class Even:
        def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
            return np.concatenate(
                [np.log(np.full(len(r.options), 1 / len(r.options))) for r in requests]
            )

    table = asker.ask(Even(), asker.write(questions))  # type: ignore[arg-type]
    assert sorted(row for block in blocks(table) for row in block.rows.tolist()) == list(range(12))
    found = ChoiceScores(ReliabilityConfig()).rows(table)
    assert found["question_id"].to_pylist() == [q.id for q in questions]
    assert [len(p) for p in found["probs"].to_pylist()] == [len(q.choices) for q in questions]
