"""The stage: planted states in shards, and how it is left out."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ift_scale.config.file import from_dict
from ift_scale.engines.protocol import ScoreRequest, TextRequest
from ift_scale.errors import ConfigError
from ift_scale.hidden import run
from ift_scale.hidden.reading import STATE, TextStates, control_option, view_of
from ift_scale.hidden.run import fit_and_apply
from ift_scale.pipeline import Pipeline
from ift_scale.records import Question
from ift_scale.scoring.shards import Shards
from ift_scale.stages import STAGES, stages_of


def _question(number: int, split: str = "train") -> Question:
    return Question.model_validate(
        {"id": f"q{number}", "domain": "d", "subject": "d", "collection": "pool", "split": split,
         "question": "Q?", "choices": [f"text {n}" for n in range(number % 3, number % 3 + 4)],
         "answer": number % 4}
    )  # fmt: skip


def test_only_fit_questions_are_shuffled_and_letters_are_balanced() -> None:
    assert view_of(1, _question(5, "test"))[0].order == (0, 1, 2, 3)
    orders = [view_of(1, _question(n))[0].order for n in range(400)]
    right = np.bincount([o.index(n % 4) for n, o in enumerate(orders)], minlength=4)
    assert right.min() > 60 and orders == [view_of(1, _question(n))[0].order for n in range(400)]


def test_the_control_is_a_fixed_function_of_the_texts() -> None:
    texts = [_question(n).choices[control_option(3, _question(n))] for n in range(30)]
    # The text that comes first among those of a question does so in every question with them.
    assert len(set(texts[0::3])) == len(set(texts[1::3])) == len(set(texts[2::3])) == 1
    several = {control_option(seed, _question(0)) for seed in range(40)}
    assert several == {0, 1, 2, 3}


def test_an_answer_in_a_middle_layer_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_LAYERS_AT_ONCE", 2)
    rng = np.random.default_rng(0)
    num, width = 600, 12
    letter, control = rng.integers(4, size=(2, num))
    states = rng.normal(size=(3, num, width)).astype(np.float32)
    states[1, :, :4] += 5 * np.eye(4, dtype=np.float32)[letter]  # decodable in layer 1 only
    shards = Shards(tmp_path, "key", 350)
    shards.folder.mkdir(parents=True)
    for number, start in enumerate((0, 350)):
        rows = slice(start, start + 350)
        columns = {
            "id": pa.array([f"q{n}" for n in range(num)][rows]),
            "answer": pa.array(letter[rows], pa.int16()),
            "control": pa.array(control[rows], pa.int16()),
            "num_choices": pa.array(np.full(num, 4)[rows], pa.int16()),
            "lens": pa.array(np.zeros((num, 3), np.int8)[rows].tolist(), pa.list_(pa.int8(), 3)),
        }
        for layer in range(3):
            flat = pa.array(states[layer][rows].ravel())
            columns[STATE.format(layer)] = pa.FixedSizeListArray.from_arrays(flat, width)
        shards.write(number, pa.table(columns))
    ids = {"d": ([f"q{n}" for n in range(300)], [f"q{n}" for n in range(599, 299, -1)])}
    probed, layers = fit_and_apply([shards.path(0), shards.path(1)], ids)
    assert probed["question_id"].to_pylist() == ids["d"][1]
    decoded_L = np.array(probed["decoded"].to_pylist()).mean(0)
    control_L = np.array(probed["control"].to_pylist()).mean(0)
    assert decoded_L[1] > 0.95 and decoded_L[[0, 2]].max() < 0.4 and control_L.max() < 0.4
    losses = layers["held_out_loss"].to_pylist()
    assert int(np.argmin(losses)) == 1 and layers["fit_questions"].to_pylist() == [300] * 3


class _Engine:
    """Returns the sum of each row's tokens as its states."""

    def hidden_states(self, requests: list[ScoreRequest]) -> tuple[np.ndarray, np.ndarray]:
        sums = [float(sum(request.prompt)) for request in requests]
        states = np.array(sums, np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
        return states, np.full((len(requests), 2), -1, np.int8)


class _Texts:
    def requests(self, question: Question, texts: list[str]) -> list[TextRequest]:
        return [TextRequest([1], [len(question.id)], [10, n]) for n, _ in enumerate(texts)]


def test_answers_by_texts_have_a_state_per_option() -> None:
    asker = TextStates(_Texts(), seed=1)
    two = _question(3).model_copy(update={"choices": ["a", "b"], "answer": 1})
    written = asker.write([_question(1), two])
    assert (written.num_requests, written.tokens) == (6, 6 * 4)
    table = asker.ask(_Engine(), written)
    assert table["id"].to_pylist() == ["q1"] * 4 + ["q3"] * 2
    assert table["answer"].to_pylist() == [1] * 6
    assert table["num_choices"].to_pylist() == [4] * 4 + [2] * 2
    last = [row[0] for row in table[STATE.format(1)].to_pylist()]
    assert last == [13 + n for n in range(4)] + [13, 14]  # the text's last token is included


def test_probes_of_options_rank_them_in_each_domain(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(2, 5, size=400)
    answer = rng.integers(0, counts)
    row = np.repeat(np.arange(400), counts)
    option = np.concatenate([np.arange(count) for count in counts])
    states = rng.normal(size=(2, len(row), 6)).astype(np.float32)
    states[1, :, 0] += 5 * (option == answer[row])
    shards = Shards(tmp_path, "key", 400)
    shards.folder.mkdir(parents=True)
    columns = {
        "id": pa.array([f"q{n}" for n in row]),
        "answer": pa.array(answer[row], pa.int16()),
        "control": pa.array(rng.integers(0, counts)[row], pa.int16()),
        "num_choices": pa.array(counts[row], pa.int16()),
        "lens": pa.array([[-1, -1]] * len(row), pa.list_(pa.int8(), 2)),
    }
    for layer in range(2):
        flat = pa.array(states[layer].ravel())
        columns[STATE.format(layer)] = pa.FixedSizeListArray.from_arrays(flat, 6)
    shards.write(0, pa.table(columns))
    ids = {"d": ([f"q{n}" for n in range(200)], [f"q{n}" for n in range(200, 400)])}
    probed, layers = fit_and_apply([shards.path(0)], ids)
    decoded_L = np.array(probed["decoded"].to_pylist()).mean(0)
    assert decoded_L[1] > 0.95 and decoded_L[0] < 0.5
    assert layers["fit_questions"].to_pylist() == [200, 200]


def test_off_by_default_and_refused_in_words(tmp_path: Path) -> None:
    config = from_dict(
        {"output_dir": str(tmp_path / "run"), "questions": {"sources": [{"kind": "world"}]}}
    )
    assert [s.name for s in stages_of(config)] == [s.name for s in STAGES if not s.optional]
    pipeline = Pipeline(config)
    assert pipeline.context.tasks("hidden") == []
    with pytest.raises(ConfigError, match=r"hidden\.on: false, so the hidden stage is not run"):
        pipeline.make("hidden")
