"""The stage with scripted engines: writers, checks, attempts, failures, and resuming."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ift_scale.config import LearntConfig
from ift_scale.engines.process import EngineDied
from ift_scale.errors import ConfigError, DataError
from ift_scale.io.files import read_jsonl
from ift_scale.io.manifests import is_done
from ift_scale.prompts import texts
from ift_scale.records import PARAPHRASES_FILE, TEXTS_FILE, Text
from ift_scale.stage import Task
from ift_scale.write import assignment, run
from tests.write.made import CHOICES, ScriptedWorker, config, question, stage

PLAIN = {"own": {"kind": "base_model", "style": "plain", "max_tokens": 30}}


def _target(prompt: str) -> str:
    return prompt.rpartition("Answer:")[2][3:].partition("\n")[0]


def _good(prompt: str, seed: int) -> str:
    return f"It is made of {_target(prompt)}."


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, world_model: Path) -> Callable[..., ScriptedWorker]:
    """Put a scripted engine in the place of real ones."""

    def place(
        say: Callable[[str, int], str] = _good, *parts: Any, num_workers: int = 1
    ) -> ScriptedWorker:
        workers = [ScriptedWorker(world_model, say, *parts) for _ in range(num_workers)]
        monkeypatch.setattr(run, "engine_workers", lambda *_: workers)
        return workers[0]

    return place


def _pool(count: int, explained: bool = True) -> list[Any]:
    said = [
        f"Machines such as Q{n} are of {CHOICES[question(n).answer or 0]}." if explained else None
        for n in range(count)
    ]
    return [question(100, "dev"), *(question(n, explanation=said[n]) for n in range(count))]


def test_s_is_worded_by_the_model_and_the_others_by_the_dataset(
    tmp_path: Path, world_model: Path, scripted: Callable[..., ScriptedWorker]
) -> None:
    worker = scripted()
    written, manifest = stage(config(tmp_path, PLAIN), _pool(8), world_model)
    assert [(t.question_id, t.target, t.author) for t in written] == [
        ("q0", 0, "dataset"),
        ("q4", 0, "dataset"),
        ("q1", 1, "dataset"),
        ("q5", 1, "dataset"),
        ("q1", 2, "base_model"),
        ("q5", 2, "base_model"),
    ]
    assert (
        written[4].text == "It is made of glass."
        and written[4].attempts == 1
        and not any(t.failed for t in written)
    )
    assert (
        manifest.counts["texts"] == 6
        and manifest.counts["from_dataset"] == 4
        and manifest.counts["written"] == 2
    )
    assert manifest.counts["failed"] == 0 and manifest.counts["written_in_this_run"] == 2
    assert (
        worker.closed
        and worker.samplings[0][:1] == (30,)
        and worker.samplings[0].temperature == 0.7
        and worker.samplings[0].top_p == 0.8
    )
    found = texts.read(tmp_path / "write" / TEXTS_FILE)
    assert found[texts.TextKey("q1", "explanation", 2, "base_model")] == written[4]
    assert found[texts.TextKey("q1", "explanation", 1, "external")].author == "dataset"


def test_paraphrases_are_stored_apart_and_leave_the_sets_texts_as_they_are(
    tmp_path: Path,
    world_model: Path,
    scripted: Callable[..., ScriptedWorker],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def say(prompt: str, seed: int) -> str:
        machine = prompt.split()[4]
        return {"Q1": '"Of what is the machine Q1 made?"', "Q5": "Is it oak?"}[machine]

    worker = scripted(say)
    plain = {"kind": "base_model", "style": "plain"}
    settings = config(tmp_path, {"paraphrases": plain}, settings=["contextualized"])
    settings = settings.model_copy(update={"learnt": LearntConfig(on=True)})
    written, manifest = stage(settings, _pool(8), world_model)
    folder = tmp_path / "write"
    before = (folder / TEXTS_FILE).read_bytes()
    assert {text.kind for text in written} == {"explanation", "context"}
    assert worker.prompts[0].endswith("made of?\nIn other words:")
    found = {t.question_id: t for t in read_jsonl(folder / PARAPHRASES_FILE, Text)}
    assert found["q5"].attempts == 3
    assert found["q5"].failed == ["gives an option away", "lacks a name or number"]
    assert found["q1"].author == "base_model" and found["q1"].attempts == 1
    assert texts.read_paraphrases(folder / PARAPHRASES_FILE) == {
        "q1": "Of what is the machine Q1 made?"
    }
    assert manifest.counts["paraphrase/base_model"] == 2 and manifest.counts["written"] == 2
    said = "".join(capsys.readouterr())
    assert "1 of 2 texts fail their checks" in said and "they are not asked" in said
    # A failed paraphrase is no error, and those of other settings do not stay.
    strict = config(
        tmp_path, {"paraphrases": plain, "on_failure": "error"}, settings=["contextualized"]
    )
    stage(strict.model_copy(update={"learnt": LearntConfig(on=True)}), _pool(8), world_model)
    assert (folder / PARAPHRASES_FILE).exists()
    stage(config(tmp_path, settings=["contextualized"]), _pool(8), world_model)
    assert (folder / TEXTS_FILE).read_bytes() == before
    assert not (folder / PARAPHRASES_FILE).exists()


def test_failed_texts_are_rewritten_with_another_seed(
    tmp_path: Path,
    world_model: Path,
    scripted: Callable[..., ScriptedWorker],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tries: dict[str, int] = {}

    def say(prompt: str, seed: int) -> str:
        machine = prompt.split()[4]
        tries[machine] = tries.get(machine, 0) + 1
        scripts = {
            "Q1": ["It is old.", _good(prompt, 0)],
            "Q5": ["Q5 is of glass. The answer is oak."] * 3,
            "Q9": ["", "", ""],
        }
        return scripts[machine][tries[machine] - 1]

    worker = scripted(say)
    written, manifest = stage(
        config(tmp_path, PLAIN, settings=["self_aligning"]), _pool(12), world_model
    )
    assert [(t.attempts, t.failed) for t in written] == [
        (2, []),
        (3, ["contradicts the target"]),
        (3, ["empty"]),
    ]
    assert len({sampling.seed for sampling in worker.samplings}) == 3 == len(worker.samplings)
    assert manifest.counts["written_anew"] == 3 and manifest.counts["failed"] == 2
    assert manifest.counts["explanation/base_model/contradicts the target"] == 1
    assert "2 of 3 texts fail their checks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        ({"must_name_target": False}, (1, [])),
        ({"must_not_contradict": False}, (2, ["does not name the target"])),
        ({"attempts": 1}, (1, ["does not name the target"])),
        (
            {"own": PLAIN["own"] | {"temperature": 0}},
            (1, ["does not name the target"]),
        ),  # it would say the same again
    ],
)
def test_checks_and_attempts_are_settings(
    tmp_path: Path,
    world_model: Path,
    scripted: Callable[..., ScriptedWorker],
    write: dict[str, Any],
    expected: Any,
) -> None:
    scripted(lambda prompt, seed: "It is old.")
    settings = config(tmp_path, PLAIN | {"attempts": 2} | write, settings=["self_aligning"])
    written, _ = stage(settings, _pool(4), world_model)
    assert (written[0].attempts, written[0].failed) == expected


def test_a_failing_text_may_end_the_run(
    tmp_path: Path, world_model: Path, scripted: Callable[..., ScriptedWorker]
) -> None:
    scripted(lambda prompt, seed: "It is old.")
    settings = config(tmp_path, PLAIN | {"on_failure": "error"}, settings=["self_aligning"])
    with pytest.raises(
        DataError,
        match=r"1 of 1 texts fail .*does not name the target.*write.on_failure to drop or keep",
    ):
        stage(settings, _pool(4), world_model)


def test_a_writer_of_empty_texts_is_reported(
    tmp_path: Path, world_model: Path, scripted: Callable[..., ScriptedWorker]
) -> None:
    scripted(lambda prompt, seed: "")
    with pytest.raises(
        DataError,
        match=r"write.own: returned nothing at all: each of 2 texts is empty, after 3 attempts",
    ):
        stage(config(tmp_path, PLAIN, settings=["self_aligning"]), _pool(8), world_model)


def test_killed_between_chunks_it_resumes_with_the_same_texts(
    tmp_path: Path, world_model: Path, scripted: Callable[..., ScriptedWorker]
) -> None:
    def say(prompt: str, seed: int) -> str:  # depends on the seed, and fails now and then
        return f"It is made of {CHOICES[seed % 4]} (seed {seed})."

    own = {"own": PLAIN["own"] | {"chunk_size": 3}}
    pool = _pool(80)
    scripted(say)
    whole, _ = stage(config(tmp_path / "whole", own, settings=["self_aligning"]), pool, world_model)
    assert len(whole) == 20 and any(t.attempts > 1 for t in whole) and any(t.failed for t in whole)

    settings = config(tmp_path / "killed", own, settings=["self_aligning"])
    scripted(say, 17)
    with pytest.raises(RuntimeError, match="killed"):
        stage(settings, pool, world_model)
    (part,) = (tmp_path / "killed" / "write" / "shards").glob("*.jsonl")
    with part.open("a") as file:
        file.write('{"key": "cut o')  # a line that the kill cut off
    kept = len(part.read_text().splitlines()) - 1
    again = scripted(say)
    written, manifest = stage(settings, pool, world_model)
    assert written == whole
    assert 0 < kept <= 17 and manifest.counts["written_in_this_run"] == len(again.prompts)
    assert len(again.prompts) + kept == sum(t.attempts for t in whole)


def test_an_engine_that_dies_is_replaced(
    tmp_path: Path,
    world_model: Path,
    scripted: Callable[..., ScriptedWorker],
    capsys: pytest.CaptureFixture[str],
) -> None:
    scripted(_good, 1, EngineDied)
    written, _ = stage(config(tmp_path, PLAIN, settings=["self_aligning"]), _pool(12), world_model)
    assert [t.text for t in written] == ["It is made of glass."] * 3
    assert "starting a new one" in capsys.readouterr().out


def test_several_engines_share_the_chunks(
    tmp_path: Path, world_model: Path, scripted: Callable[..., ScriptedWorker]
) -> None:
    own = {"own": PLAIN["own"] | {"chunk_size": 2}}
    first = scripted(lambda prompt, seed: time.sleep(0.02) or _good(prompt, seed), num_workers=3)
    written, _ = stage(config(tmp_path, own, settings=["self_aligning"]), _pool(80), world_model)
    assert [t.question_id for t in written] == [f"q{n}" for n in range(1, 80, 4)]
    assert first.closed and len(first.prompts) < 20


def test_other_settings_write_only_what_is_new(
    tmp_path: Path, world_model: Path, scripted: Callable[..., ScriptedWorker]
) -> None:
    pool = _pool(8)
    scripted()
    stage(config(tmp_path, PLAIN), pool, world_model)
    worker = scripted()
    stage(
        config(tmp_path, PLAIN | {"on_failure": "keep"}, consistency_ratios=[0.2]),
        pool,
        world_model,
    )
    assert worker.prompts == []
    stage(config(tmp_path, PLAIN, settings=["self_aligning", "self_distilled"]), pool, world_model)
    assert len(worker.prompts) == 8  # the right options' explanations
    stage(config(tmp_path, PLAIN | {"seed": 1}, settings=["self_aligning"]), pool, world_model)
    assert len(worker.prompts) == 10


def test_nothing_is_read_or_started_if_no_text_is_needed(tmp_path: Path, world_model: Path) -> None:
    def never() -> Any:
        raise AssertionError("not needed")

    settings = config(tmp_path, response="letter_text")
    assert assignment.settings_of(settings) is None
    run.write(
        settings,
        Task("write", tmp_path / "write", "key", {}),
        run.WriteInputs(world_model, never, never),
        tmp_path,
        None,
    )  # type: ignore[arg-type]
    assert texts.read(tmp_path / "write" / TEXTS_FILE) == {} and is_done(tmp_path / "write", "key")


def test_a_dataset_without_the_explanations_is_refused(tmp_path: Path, world_model: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"write.external.kind: is dataset, but 4 of 4 needed texts are"
        r" missing.*matching.author",
    ):
        stage(config(tmp_path), _pool(8, explained=False), world_model)
    settings = config(
        tmp_path, settings=["self_aligning"], matching={"author": "external"}
    )  # another option's explanation
    with pytest.raises(DataError, match="2 of 2 needed texts"):
        stage(settings, _pool(8), world_model)
    with pytest.raises(DataError, match=r"write.contexts.kind: is dataset, but 2 of 2"):
        stage(
            config(tmp_path, settings=["contextualized"], response="letter"),
            _pool(8, explained=False),
            world_model,
        )


def test_an_external_model_replaces_missing_or_failed_explanations(
    tmp_path: Path, world_model: Path, scripted: Callable[..., ScriptedWorker]
) -> None:
    scripted()
    pool = [
        question(0, explanation="It is of copper."),
        question(4, explanation="Actually, the answer is D."),
        question(8),
    ]
    write = {"external": {"kind": "model", "path": str(world_model), "style": "plain"}}
    written, _ = stage(config(tmp_path, write, settings=["harmonious"]), pool, world_model)
    assert [(t.author, t.text) for t in written] == [
        ("dataset", "It is of copper."),
        ("external", "It is made of copper."),
        ("external", "It is made of copper."),
    ]
    alone, manifest = stage(
        config(tmp_path / "alone", settings=["harmonious"]), pool[:2], world_model
    )
    assert [(t.author, t.failed) for t in alone] == [
        ("dataset", []),
        ("dataset", ["does not name the target", "contradicts the target"]),
    ]
    assert manifest.counts["failed"] == 1 and manifest.counts["written"] == 0


def test_contexts(
    tmp_path: Path, world_model: Path, scripted: Callable[..., ScriptedWorker]
) -> None:
    pool = _pool(4)
    from_dataset, _ = stage(
        config(tmp_path / "a", settings=["contextualized"], response="letter"), pool, world_model
    )
    assert [(t.kind, t.target, t.author) for t in from_dataset] == [("context", None, "dataset")]
    worker = scripted(lambda prompt, seed: "Wood burns.")  # it need not name the answer
    write = {"contexts": {"kind": "base_model", "style": "urial", "max_tokens": 20}}
    written, _ = stage(
        config(tmp_path / "b", write, settings=["contextualized"], response="letter"),
        pool,
        world_model,
    )
    assert [(t.text, t.author, t.failed) for t in written] == [("Wood burns.", "base_model", [])]
    assert "The answer is: oak" in worker.prompts[0]
    assert list(texts.read(tmp_path / "b" / "write" / TEXTS_FILE)) == [
        texts.TextKey("q1", "context", None, "external")
    ]


def test_a_free_questions_context_comes_from_the_dataset(tmp_path: Path, world_model: Path) -> None:
    pool = [
        question(
            1, kind="free", choices=[], answer=None, aliases=["oak"], explanation="Q1 is of oak."
        )
    ]
    settings = config(
        tmp_path, settings=["contextualized"], response="letter_text", questions="choice"
    )
    settings.construct.questions = "free"
    written, _ = stage(settings, pool, world_model)
    assert [(t.kind, t.text) for t in written] == [("context", "Q1 is of oak.")]


def test_a_prompt_that_is_too_long_is_refused(
    tmp_path: Path, world_model: Path, scripted: Callable[..., ScriptedWorker]
) -> None:
    worker = scripted()
    worker.context_length = 40
    with pytest.raises(
        DataError,
        match=r"question q1: its prompt has \d+ tokens, and with write.own.max_tokens = 30"
        r" that exceeds",
    ):
        stage(config(tmp_path, PLAIN, settings=["self_aligning"]), _pool(4), world_model)


def test_chat_needs_a_chat_template(
    tmp_path: Path, world_model: Path, scripted: Callable[..., ScriptedWorker]
) -> None:
    scripted()
    with pytest.raises(
        DataError, match=r"chat_template.*write.own.style = chat.*Set write.own.style to urial"
    ):
        stage(
            config(
                tmp_path,
                {"own": {"kind": "base_model", "style": "chat"}},
                settings=["self_aligning"],
            ),
            _pool(4),
            world_model,
        )


def test_chat_is_written_in_the_models_own_template(
    tmp_path: Path, world_model: Path, scripted: Callable[..., ScriptedWorker]
) -> None:
    model = tmp_path / "chatty"
    shutil.copytree(world_model, model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    worker = scripted(lambda prompt, seed: "It is of glass.")
    stage(
        config(
            tmp_path, {"own": {"kind": "base_model", "style": "chat"}}, settings=["self_aligning"]
        ),
        _pool(4),
        model,
    )
    assert worker.prompts[0].startswith("<user>What is the machine Q1") and worker.prompts[
        0
    ].endswith("<assistant>")


@pytest.mark.parametrize(
    ("write", "construct", "problem"),
    [
        (
            {"external": {"kind": "model"}},
            {},
            "write.external.path: missing; a writer of kind model needs it",
        ),
        (
            {"contexts": {"kind": "endpoint", "model": "m"}},
            {},
            "write.contexts.base_url: missing; a writer of kind endpoint needs it",
        ),
        (
            {"own": {"kind": "dataset"}},
            {},
            "write.own.kind: a dataset has no explanations of the model's own answers",
        ),
        (
            {},
            {"questions": "free"},
            "construct.response: letter_text_explanation needs options",
        ),
    ],
)
def test_settings_that_cannot_go_together(
    tmp_path: Path, write: dict[str, Any], construct: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, write, **construct)
    assert problem in str(caught.value)


def test_the_stages_key_covers_what_the_texts_depend_on(tmp_path: Path) -> None:
    def settings(write: dict[str, Any] | None = None, **construct: Any) -> Any:
        return json.loads(json.dumps(assignment.settings_of(config(tmp_path, write, **construct))))

    paper = settings()
    assert (
        settings(
            {"own": {"kind": "base_model", "chunk_size": 7}, "contexts": {"kind": "base_model"}}
        )
        == paper
    )
    assert settings(size=12, seeds=[4]) == paper and settings(confidence_threshold=0.6) != paper
    assert (
        settings({"attempts": 1}) != paper
        and settings({"own": {"kind": "base_model", "max_tokens": 99}}) != paper
    )


def test_a_text_record_tells_its_key() -> None:
    text = Text(question_id="q", kind="explanation", target=1, author="base_model", text="t")
    assert texts.key_of(text).author == "base_model"
    assert texts.key_of(text.model_copy(update={"kind": "context", "target": None})) == (
        "q",
        "context",
        None,
        "external",
    )


def test_a_pool_in_another_order_gets_the_same_texts(
    tmp_path: Path, world_model: Path, scripted: Callable[..., ScriptedWorker]
) -> None:
    def say(prompt: str, seed: int) -> str:
        return f"It is made of {CHOICES[seed % 4]} (seed {seed})."

    own = {"own": PLAIN["own"] | {"chunk_size": 3}}
    pool, found = _pool(40), []
    for name, questions in (("a", pool), ("b", pool[::-1])):
        scripted(say)
        written, _ = stage(
            config(tmp_path / name, own, settings=["self_aligning"]), questions, world_model
        )
        found.append(sorted(written, key=lambda text: text.question_id))
    assert found[0] == found[1] and len({text.text for text in found[0]}) > 3
