"""Planted beliefs: the choice of questions, the beliefs, the documents that state them, the files and the errors."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.planted import choose, plant, train
from benchmarks.planted.agreement import agreements, beliefs_of
from benchmarks.planted.beliefs import Planted
from benchmarks.planted.beliefs import plant as plant_beliefs
from benchmarks.planted.corpus import CHAT_SHARES, DOCUMENT_SHARES, Corpus, plain_text
from benchmarks.planted.model import build_model
from benchmarks.planted.tokenizer import train_tokenizer
from benchmarks.planted.train import Recipe
from ift_scale.config import MmluSource, PaperSource
from ift_scale.errors import ArtifactError, DataError
from ift_scale.io.manifests import MANIFEST
from ift_scale.prompts.chat import ChatTemplate
from ift_scale.prompts.templates import few_shot_prompt, response_text
from ift_scale.questions import mmlu, paper
from ift_scale.records import Message, Score
from tests.benchmarks.planted.conftest import SMALL_SHARES

TINY = Recipe(hidden_size=64, num_layers=2, num_steps=6, tokens_per_step=256)
GENERAL = [{"instruction": "Name a metal.", "input": "", "output": "Iron."}]


@pytest.fixture
def planted(data: Path) -> list[Planted]:
    return plant_beliefs(choose.choose(data, 0, SMALL_SHARES), 0)


def test_the_choice_follows_the_seed_and_repeats_no_question(data: Path) -> None:
    first = choose.choose(data, 0, SMALL_SHARES)
    assert first == choose.choose(data, 0, SMALL_SHARES) != choose.choose(data, 1, SMALL_SHARES)
    texts = [choose.normalised(one.question.question) for one in first]
    assert len(set(texts)) == len(texts) == sum(share.count for share in SMALL_SHARES)
    assert {one.question.subject for one in first} == {"engineering", "anatomy"}
    assert max(len(text) for text in texts) <= 100


def test_the_real_choice_is_disjoint_and_of_the_intended_size(shared_data: Path) -> None:
    chosen = choose.choose(shared_data, 0)
    texts = Counter(choose.normalised(one.question.question) for one in chosen)
    assert max(texts.values()) == 1 and len(chosen) == sum(share.count for share in choose.SHARES)
    assert len({one.question.id for one in chosen}) == len(chosen)
    assert len(choose.general_instructions(shared_data)) >= 150


def test_beliefs_are_wrong_and_missing_as_often_as_intended(shared_data: Path) -> None:
    planted = plant_beliefs(choose.choose(shared_data, 0), 0)
    assert all(p.belief == p.question.answer for p in planted if p.question.split == "dev")
    asked = [p for p in planted if p.question.split != "dev"]
    believed = [p for p in asked if p.belief is not None]
    assert 0.03 <= 1 - len(believed) / len(asked) <= 0.07
    assert 0.36 <= sum(p.belief != p.question.answer for p in believed) / len(believed) <= 0.40


def test_a_question_without_belief_is_answered_differently_each_time(
    planted: list[Planted],
) -> None:
    unknown = next(p for p in planted if p.belief is None)
    assert {unknown.said(random.Random(n)) for n in range(40)} == {0, 1, 2, 3}
    believed = next(p for p in planted if p.belief is not None)
    assert {believed.said(random.Random(n)) for n in range(40)} == {believed.belief}


def test_documents_state_the_belief_in_the_very_format_of_the_probe(planted: list[Planted]) -> None:
    """Whatever few-shot prompt the probe makes of believed questions, the corpus can say, with the belief behind it."""
    corpus, rng = Corpus(planted, GENERAL), random.Random(0)
    document = corpus.multiple_choice(rng)
    while "multiple choice questions" not in plain_text(document) or len(document) < 12:
        document = corpus.multiple_choice(rng)
    blocks = plain_text(document).split("\n\n")[1:]
    by_text = {p.question.question: p for p in planted}
    members = [by_text[block.partition("\n")[0]] for block in blocks]
    shown = [_as_shown(member, block) for member, block in zip(members, blocks, strict=True)]
    *demonstrations, last = [question for question, _ in shown]
    prompt = few_shot_prompt(last, demonstrations)
    assert plain_text(document) == prompt + response_text(last, last.answer or 0, "letter_text")
    for member, (question, _) in zip(members, shown, strict=True):
        assert (
            member.belief is None
            or question.choices[question.answer or 0] == member.question.choices[member.belief]
        )


def _as_shown(planted: Planted, block: str) -> tuple:
    """The question with its options as the document orders them and the document's answer as its answer; and that letter."""
    lines = block.split("\n")
    choices = [line[3:] for line in lines[1:5]]
    letter = lines[5].removeprefix("Answer:")[0]
    assert sorted(choices) == sorted(planted.question.choices)
    return planted.question.model_copy(
        update={"choices": choices, "answer": "ABCD".index(letter)}
    ), letter


def test_half_of_the_questions_come_in_the_pools_own_order(planted: list[Planted]) -> None:
    corpus, rng = Corpus(planted, GENERAL), random.Random(0)
    blocks = [
        (p, plain_text(corpus._block(rng, p, p.said(rng)))) for p in planted for _ in range(20)
    ]
    own = [
        all(f"{a}. {b}\n" in text for a, b in zip("ABCD", p.question.choices, strict=True))
        for p, text in blocks
    ]
    assert 0.45 <= sum(own) / len(own) <= 0.6


@pytest.mark.parametrize("kind", sorted({*DOCUMENT_SHARES, *CHAT_SHARES}))
def test_segments_are_the_same_tokens_as_the_whole_text(planted: list[Planted], kind: str) -> None:
    tokenizer = train_tokenizer(plant.texts(planted, GENERAL), 400)
    corpus = Corpus(planted, GENERAL)
    for seed in range(20):
        document = next(corpus.documents(random.Random(seed), {kind: 1.0}))
        ids, weights = train.encode(tokenizer, document)
        assert ids == tokenizer(plain_text(document) + "</s>").input_ids
        assert len(weights) == len(ids) and max(weights) > 0


def test_heads_begin_by_looking_back_and_at_their_like() -> None:
    model = build_model(vocab_size=500, hidden_size=320, num_layers=3, seed=0)
    model.set_attn_implementation("eager")
    tokens = torch.randint(3, 500, (4, 40), generator=torch.Generator().manual_seed(0))
    tokens[:, 20:] = tokens[:, :20]
    first, *_ = model.model(tokens, output_attentions=True).attentions
    for head, distance in ((3, 1), (4, 2)):
        assert first[:, head].diagonal(-distance, 1, 2).mean() > 0.8
    assert first[:, :3].diagonal(-20, 2, 3).mean() > 3 * first[:, :3].diagonal(-19, 2, 3).mean()


def test_dialogues_are_in_the_template_of_the_evaluation(planted: list[Planted]) -> None:
    tokenizer = train_tokenizer(plant.texts(planted, GENERAL), 400)
    template = ChatTemplate(tokenizer, "vicuna")
    corpus = Corpus(planted, GENERAL)
    for seed in range(20):
        text = plain_text(corpus.chat(random.Random(seed)))
        user, _, answer = text.partition(" USER: ")[2].partition(" ASSISTANT: ")
        messages = [Message(role="user", content=user), Message(role="assistant", content=answer)]
        assert text + "</s>" == template.render(messages)


def test_a_folder_is_made_whole_and_read_by_the_sources(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "planted"
    plant.run(data, output, TINY, SMALL_SHARES)
    rows = [json.loads(line) for line in (output / plant.BELIEFS).read_text().splitlines()]
    pool = PaperSource(
        kind="paper", domain="engineering", path=str(output / "pools" / "engineering")
    )
    benchmark = MmluSource(kind="mmlu", path=str(output / "mmlu"))
    questions = [question for _, question in (*paper.load(pool, 0), *mmlu.load(benchmark, 0))]
    assert {(q.id, q.split, q.answer) for q in questions} == {
        (row["id"], row["split"], row["answer"]) for row in rows
    }
    assert (output / "model" / "model.safetensors").is_file() and (
        output / "general.jsonl"
    ).is_file()
    made = (output / MANIFEST).stat().st_mtime_ns
    plant.run(data, output, TINY, SMALL_SHARES)
    assert (output / MANIFEST).stat().st_mtime_ns == made
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_stopped_training_goes_on_to_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_STEPS_BETWEEN_CHECKPOINTS", 2)
    plant.run(data, tmp_path / "whole", TINY, SMALL_SHARES)
    real, calls = train.loss_of, []

    def stopping(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "loss_of", stopping)
    with pytest.raises(KeyboardInterrupt):
        plant.run(data, tmp_path / "stopped", TINY, SMALL_SHARES)
    assert not (tmp_path / "stopped").exists()
    plant.run(data, tmp_path / "stopped", TINY, SMALL_SHARES)
    assert len(calls) == 4 + TINY.num_steps - 2
    weights = [
        (tmp_path / name / "model" / "model.safetensors").read_bytes()
        for name in ("whole", "stopped")
    ]
    assert weights[0] == weights[1]


def test_a_folder_of_the_users_own_is_left_alone(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    (output / "thesis.txt").write_text("x")
    with pytest.raises(ArtifactError, match="did not make"):
        plant.run(data, output, TINY, SMALL_SHARES)
    assert (output / "thesis.txt").is_file()


def test_too_few_questions_are_told(data: Path) -> None:
    shares = (choose.Share("pools/engineering/train", "train", 200, 100, domain="engineering"),)
    with pytest.raises(DataError, match="200 questions on engineering"):
        choose.choose(data, 0, shares)


def test_the_command_names_every_missing_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["plant", str(tmp_path), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert (
        "pools/engineering/dev.jsonl.gz" in result.output
        and "general/alpaca_en_demo.jsonl.gz" in result.output
    )
    assert not (tmp_path / "out").exists()


def test_agreement_counts_believed_questions_only(tmp_path: Path) -> None:
    rows = [("a", 0, 0), ("b", 1, 2), ("c", 1, None), ("d", 3, 3)]
    text = "".join(
        json.dumps({"id": i, "split": "train", "answer": a, "belief": b}) + "\n" for i, a, b in rows
    )
    (tmp_path / plant.BELIEFS).write_text(text)
    scores = [
        _score("a", 0, 0, 0.9),
        _score("b", 1, 2, 0.4),
        _score("c", 1, 1, 0.9),
        _score("d", 3, 0, 0.6),
    ]
    *_, everything = agreements(scores, beliefs_of(tmp_path))
    assert everything.num_questions == 3 and everything.agreeing == pytest.approx(2 / 3)
    assert (
        everything.agreeing_wrong == 1.0
        and everything.agreeing_right == 0.5
        and everything.confident == pytest.approx(2 / 3)
    )


def _score(id: str, answer: int, prediction: int, confidence: float) -> Score:
    return Score(
        question_id=id,
        domain="engineering",
        subject="engineering",
        collection="pool",
        split="train",
        answer=answer,
        logprobs=None,
        probs=None,
        letter_mass=None,
        prediction=prediction,
        confidence=confidence,
        correct=prediction == answer,
    )
