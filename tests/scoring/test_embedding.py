"""Tokens beyond the embedding are refused before any launch, but only if a text uses them."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ift_scale.config.file import from_dict
from ift_scale.engines.model_folder import embedding_rows
from ift_scale.errors import DataError
from ift_scale.hidden.reading import LetterStates, TextStates
from ift_scale.io.files import write_jsonl
from ift_scale.io.progress import Bar
from ift_scale.probe.free import FreeAsker
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.records import Arm, Question
from ift_scale.scoring import embedding
from ift_scale.scoring.cloze import ChatTexts
from ift_scale.scoring.letters import Chat, LetterAsker
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.target import Asker, Target
from ift_scale.stage import Task
from ift_scale.train import prepare as training
from ift_scale.write.local import PromptIds
from ift_scale.write.prompts import Prompt

MESSAGE = (
    r"the token 'zork' has the id {}, but the model's embedding has only {} rows. Use"
    r" the tokenizer that belongs"
)


@pytest.fixture(scope="module")
def larger(world_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's model with a tokenizer that has a token more than the embedding has rows."""
    folder = tmp_path_factory.mktemp("larger") / "model"
    shutil.copytree(world_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = embedding_rows(folder)
    tokenizer.add_tokens([f"filler{n}" for n in range(rows - len(tokenizer))])
    tokenizer.add_tokens(["zork"])
    tokenizer.save_pretrained(folder)
    assert len(tokenizer) == rows + 1
    return folder


def _message(folder: Path) -> str:
    rows = embedding_rows(folder)
    return MESSAGE.format(rows, rows)


def _questions(folder: Path, *texts: str, kind: str = "choice") -> QuestionFile:
    more = (
        {"choices": ["one", "two"], "answer": 1}
        if kind == "choice"
        else {"choices": [], "answer": None, "aliases": ["one"]}
    )
    made = [
        Question(
            id=f"q{n}",
            domain="a",
            subject="s",
            collection="pool",
            split="test",
            kind=kind,
            question=text,
            **more,
        )  # type: ignore[arg-type]
        for n, text in enumerate(texts)
    ]
    write_jsonl(folder / "questions.jsonl", made)
    return QuestionFile(folder / "questions.jsonl")


def _check(model: Path, folder: Path, asker: Asker, questions: QuestionFile) -> None:
    rows = [questions.select(lambda group: True)]
    target = Target("t", folder, "k", rows, asker, model, lambda *_: None, 2, lambda: False)
    embedding.check([target], questions, PromptTokenizer(model), model)


def test_a_prompt_of_a_choice_question(larger: Path, tmp_path: Path) -> None:
    asker = LetterAsker(Chat(PromptTokenizer(larger), "vicuna"), plain)
    _check(larger, tmp_path, asker, _questions(tmp_path, "Where is it?", "Who is he?"))
    with pytest.raises(DataError, match=rf"question q2: {_message(larger)}"):
        _check(
            larger,
            tmp_path,
            asker,
            _questions(tmp_path, "Where is it?", "Who is he?", "What is zork ?"),
        )


@pytest.mark.parametrize("by_text", [True, False])
def test_a_prompt_whose_states_are_read(larger: Path, tmp_path: Path, by_text: bool) -> None:
    tokenizer = PromptTokenizer(larger)
    texts, letters = ChatTexts(tokenizer, "vicuna"), Chat(tokenizer, "vicuna")
    asker = TextStates(texts, 1) if by_text else LetterStates(letters, 1)
    _check(larger, tmp_path, asker, _questions(tmp_path, "Where is it?", "Who is he?"))
    with pytest.raises(DataError, match=rf"question q1: {_message(larger)}"):
        _check(larger, tmp_path, asker, _questions(tmp_path, "Where?", "What is zork ?"))


def test_a_prompt_of_a_free_question(larger: Path, tmp_path: Path) -> None:
    config = from_dict({"output_dir": str(tmp_path)}).probe
    asker = FreeAsker(PromptTokenizer(larger), Demonstrations({}, 0, 0), config)
    with pytest.raises(DataError, match=rf"question q1: {_message(larger)}"):
        _check(
            larger, tmp_path, asker, _questions(tmp_path, "Where?", "What is zork ?", kind="free")
        )


def test_a_tokenizer_that_fits_is_not_looked_at_twice(world_model: Path, tmp_path: Path) -> None:
    class Never:
        def write(self, questions: list[Question]) -> None:
            raise AssertionError

    assert not embedding.Surplus(PromptTokenizer(world_model), world_model)
    _check(world_model, tmp_path, Never(), _questions(tmp_path, "What is zork ?"))  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["willow", "zork"])
def test_a_training_set_before_the_launch(larger: Path, tmp_path: Path, word: str) -> None:
    says = ["hello", word]
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Say it."},
                {"role": "assistant", "content": f"{say} ."},
            ],
            "meta": {"setting": "general", "wording": "general", "weight": 1},
        }
        for say in says
    ]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = from_dict(
        {"output_dir": str(tmp_path), "train": {"global_batch_size": 2, "max_length": 128}}
    )
    arm = Arm(domain="d", setting="harmonious", seed=0)
    task = Task("train", tmp_path / "train" / arm.name, "key", {}, arm)
    pending = [(task, arm, tmp_path / "set.jsonl")]

    def prepare() -> None:
        training.prepare(
            config,
            tmp_path / "train",
            larger,
            pending,
            tmp_path / "logs",
            Bar("t", 1, None),
            None,
            "",
        )

    if word == "willow":
        prepare()
        return
    with pytest.raises(
        DataError, match=rf"set\.jsonl:2: field 'messages': {_message(larger)}"
    ) as caught:
        prepare()
    assert caught.value.exit_code == 2


def test_a_prompt_of_a_writer(larger: Path) -> None:
    with pytest.raises(DataError, match=rf"question q7: {_message(larger)}"):
        PromptIds(larger, "write.writer").encode(
            [Prompt(question_id="q7", text="Write zork .", stop="\n", chat=False)]
        )


@pytest.mark.parametrize("stated", [40, [41, 40]])
def test_a_tokenizer_of_another_model_is_refused(
    stated: object, world_model: Path, tmp_path: Path
) -> None:
    """The ids that end a text by config.json are words of this tokenizer."""
    folder = tmp_path / "model"
    shutil.copytree(world_model, folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"eos_token_id": stated}))
    tokenizer = PromptTokenizer(folder)
    message = r"field 'eos_token_id': the tokenizer has the ordinary token '.*' there, and ends"
    with pytest.raises(DataError, match=message):
        embedding.Surplus(tokenizer, folder)
    for usable in ([40, 2], 3, None):  # its own end among others, another special token, none
        (folder / "config.json").write_text(json.dumps(fields | {"eos_token_id": usable}))
        assert not embedding.Surplus(tokenizer, folder)
