"""Every model family compared with plain transformers: probe, 0-shot evaluation and export.

    python -m benchmarks.bench_models [--family Llama-3] [--no-vllm]

A family is a tiny random model of the real class with a tokenizer of the real kind
(`model_families`, `tokenizer_kinds`). It is asked real MMLU questions, some longer than the model's
window or the limit of its LongRoPE. The reference shares no code with ours: the folder's own
tokenizer on the whole prompt with each letter, and a forward pass of batch 1. Stored:

    few-shot   base model, 5-shot prompts, both engines
    0-shot     the exported folder with its own chat template, both engines
    tokens     examples whose training tokens equal those of the export's `apply_chat_template`
"""

import json
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import model_families, tokenizer_kinds
from benchmarks.model_families import FAMILIES, Family
from benchmarks.suite.rows import Gate, Row, Sheet, out_folder, read_file
from ift_scale.config import MmluSource, ProbeConfig, TrainConfig
from ift_scale.engines.process import EngineProcess
from ift_scale.engines.protocol import EngineSpec
from ift_scale.errors import IFTScaleError
from ift_scale.io.files import write_jsonl
from ift_scale.io.progress import say
from ift_scale.prompts import templates
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.questions import mmlu
from ift_scale.records import LETTERS, Example, ExampleMeta, Message, Question
from ift_scale.scoring.letters import Chat, FewShot, LetterAsker, PromptWriter
from ift_scale.train.data import dataset
from ift_scale.train.data.tokenize import tokenize
from ift_scale.train.engine.export import export
from ift_scale.train.engine.export_tokenizer import exported_tokenizer

MMLU = Path(__file__).parents[2] / "shared" / "data" / "mmlu"
SUBJECTS = ("high_school_geography", "abstract_algebra", "international_law")
TOLERANCE = {"transformers": 1e-4, "vllm": 1e-2}
"""Nats in float32, as in the tests; vLLM's kernels sum in another order."""
TRAINED_ON = 400
"""Number of prompts whose text the small vocabularies are trained on."""
_MARK = "~~"


class Reference:
    """Plain transformers: the folder's tokenizer on whole texts, its model on single prompts."""

    def __init__(self, folder: Path):
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def few_shot(self, text: str, num_choices: int) -> np.ndarray:
        """Returns the letters' log-probabilities, shape (num_choices,)."""
        return self._score(
            [self.tokenizer(text + letter).input_ids for letter in LETTERS[:num_choices]]
        )

    def zero_shot(self, question: Question) -> np.ndarray:
        prompt = [message.model_dump() for message in templates.chat_messages(question)]
        texts = []
        for letter in LETTERS[: len(question.choices)]:
            answer = {"role": "assistant", "content": letter + _MARK}
            text = self.tokenizer.apply_chat_template([*prompt, answer], tokenize=False)
            texts.append(text[: text.rindex(letter + _MARK) + 1])
        return self._score(
            [self.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        )

    @torch.inference_mode()
    def _score(self, rows: list[list[int]]) -> np.ndarray:
        """Scores each row's continuation after the common prefix: the sum of log-probabilities."""
        first, last = min(rows), max(rows)
        shared = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
        )
        sums = []
        for row in rows:
            logits_TV = self.model(torch.tensor([row])).logits[0].double().log_softmax(-1)
            sums.append(
                sum(
                    logits_TV[position - 1, row[position]].item()
                    for position in range(shared, len(row))
                )
            )
        return np.array(sums)


def questions_of(count: int) -> tuple[list[Question], list[Question]]:
    """Returns (`count` test questions per subject, all questions of the subjects)."""
    source = MmluSource(kind="mmlu", path=str(MMLU))
    found = [question for _, question in mmlu.load(source, 0) if question.subject in SUBJECTS]
    tests = [
        [q for q in found if q.split == "test" and q.subject == subject][:count]
        for subject in SUBJECTS
    ]
    return [question for subject in tests for question in subject], found


def table(engine: Any, writer: PromptWriter, asked: Sequence[Question]) -> np.ndarray:
    """Returns our log-probabilities, shape (num_questions, num_choices)."""
    asker = LetterAsker(writer, plain)
    return np.array(asker.ask(engine, asker.write(list(asked)))["logprobs"].to_pylist())


def examples(asked: Sequence[Question]) -> list[Example]:
    """Returns conversations of one and of two turns."""
    made: list[Example] = []
    for question, next_question in zip(asked, [*asked[1:], asked[0]], strict=True):
        turns = []
        for each in (question, next_question) if len(made) % 2 else (question,):
            assert each.answer is not None
            answer = templates.response_text(each, each.answer, "letter_text")
            turns += [*templates.chat_messages(each), Message(role="assistant", content=answer)]
        made.append(
            Example(messages=turns, meta=ExampleMeta(setting="harmonious", wording="dataset"))
        )
    return made


def same_tokens(exported: Any, made: Sequence[Example], tokens: dataset.TokenizedSet) -> int:
    """Counts examples whose training tokens equal those of the exported folder's template.

    After the last answer a template may write white space that is not supervised, and training an
    end-of-sequence token.
    """
    same = 0
    for number, example in enumerate(made):
        start, end = tokens.offsets[number], tokens.offsets[number + 1]
        ids, supervised = tokens.ids[start:end].tolist(), tokens.supervised[start:end]
        first, last = last_run(supervised)
        messages = [message.model_dump() for message in example.messages]
        whole = exported.apply_chat_template(messages, tokenize=True, return_dict=False)
        prompt = exported.apply_chat_template(
            messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        same += prompt == ids[:first] and whole[:last] == ids[:last]
    return same


def last_run(supervised: np.ndarray) -> tuple[int, int]:
    """Returns (first, last) index of the last run of supervised tokens."""
    last = int(np.flatnonzero(supervised)[-1])
    return int(np.flatnonzero(~supervised[:last])[-1]) + 1, last


@contextmanager
def transformers_engine(folder: Path, log: Path) -> Iterator[Any]:
    from ift_scale.engines.transformers import TransformersEngine

    yield TransformersEngine(EngineSpec(str(folder), "float32", ProbeConfig(engine="transformers")))


@contextmanager
def vllm_engine(folder: Path, log: Path) -> Iterator[Any]:
    config = ProbeConfig(engine="vllm", cpu_kv_cache_gib=2)
    engine = EngineProcess(EngineSpec(str(folder), "float32", config), log)
    try:
        yield engine.ready()
    finally:
        engine.close()


ENGINES = {"transformers": transformers_engine, "vllm": vllm_engine}


def exported_folder(base: Path, folder: Path) -> Path:
    """Returns the base model with changed weights, exported as the trainer exports an arm."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(1)
    model_families.draw(model, 0.3)
    export(
        model,
        False,
        folder,
        base,
        exported_tokenizer(PromptTokenizer(base), "model", model.config),
        torch.float32,
    )
    return folder


def measure(
    sheet: Sheet,
    name: str,
    family: Family,
    count: int,
    engines: Sequence[str],
    root: Path,
    logs: Path,
) -> None:
    asked, found = questions_of(count)
    demonstrations = Demonstrations(found, 5, 42)
    texts = [templates.few_shot_prompt(question, demonstrations.of(question)) for question in asked]
    base = root / "base"
    kind = tokenizer_kinds.KINDS[family.tokenizer]
    vocabulary = [
        templates.few_shot_prompt(q, demonstrations.of(q)) for q in found if q.split == "test"
    ][:TRAINED_ON]
    size = tokenizer_kinds.write(kind, vocabulary, base)
    ends = AutoTokenizer.from_pretrained(base)
    model = model_families.build(family, size, ends.bos_token_id, ends.eos_token_id)
    model.save_pretrained(base)
    tokenizer = PromptTokenizer(base)  # config.json determines AutoTokenizer's class

    export_to = exported_folder(base, root / "exported")
    made = examples(asked)
    write_jsonl(root / "set.jsonl", made)
    tokens = tokenize(root / "set.jsonl", tokenizer, "model", TrainConfig(max_length=4096))
    trained = Reference(export_to)
    about: dict[str, Any] = {
        "tokens_equal": same_tokens(trained.tokenizer, made, tokens),
        "examples": len(made),
        "questions": len(asked),
        "prompt_tokens": [len(tokenizer.encode([text])[0]) for text in texts],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "class": type(model).__name__,
        "tokenizer": family.tokenizer,
    }
    reference = Reference(base)
    expected = {
        "few-shot": np.array(
            [reference.few_shot(t, len(q.choices)) for t, q in zip(texts, asked, strict=True)]
        ),
        "0-shot": np.array([trained.zero_shot(question) for question in asked]),
    }
    answered: dict[str, dict[str, np.ndarray]] = {}
    for engine_name in engines:
        try:
            with ENGINES[engine_name](base, logs / f"models-{name}.log") as engine:
                answered[engine_name] = {
                    "few-shot": table(engine, FewShot(tokenizer, demonstrations), asked)
                }
                engine.load_weights(export_to)
                answered[engine_name]["0-shot"] = table(
                    engine, Chat(PromptTokenizer(export_to), "model"), asked
                )
        except IFTScaleError as error:
            if engine_name == "transformers":
                raise
            about["vllm"] = why(error)
            say(f"{name}: vLLM does not run it here: {about['vllm']}")
    for engine_name, answers in answered.items():
        for quantity, ours in answers.items():
            gap = float(np.abs(ours - expected[quantity]).max())
            gate = Gate(checked="a plain forward pass per prompt; the difference is the figure")
            flipped = int((ours.argmax(1) != expected[quantity].argmax(1)).sum())
            sheet.add(
                name,
                quantity,
                "nats",
                [gap],
                gate,
                f"ours {engine_name}",
                about={**about, "flipped": flipped},
            )
            say(
                f"{name}: {engine_name} {quantity}: {gap:.2g} nats, {flipped} of {len(asked)} "
                "predictions differ"
            )
    say(f"{name}: tokens of {about['tokens_equal']} of {len(made)} examples are equal")


def why(error: Exception) -> str:
    """Returns one line: the engine's message, or the last error of its log."""
    first, *log = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = first.removeprefix("the inference engine failed: ")
    named = [line for line in log if "Error:" in line or "Segfault" in line]
    return (said if said != first else (named or [first])[-1])[:240]


def put(rows: Sequence[Row], folder: Path) -> Path:
    """Stores rows in place of those of the same families, so that one can be measured again."""
    path, measured = folder / "models.jsonl", {row.case for row in rows}
    kept = [row for row in read_file(path) if row.case not in measured]
    merged = sorted([*kept, *rows], key=lambda row: list(FAMILIES).index(row.case))
    write_jsonl(path, merged)
    return path


@click.command()
@click.option(
    "--family",
    "names",
    multiple=True,
    type=click.Choice(list(FAMILIES)),
    help="Only this one, the stored rows of others stay; may be repeated.",
)
@click.option(
    "--count", default=6, show_default=True, help="Questions of each of the three subjects."
)
@click.option("--vllm/--no-vllm", default=True, help="Measure vLLM too (half a minute per family).")
@click.option("--repeats", default=1, help="Not used: nothing is timed.")
@click.option("--logs", default=Path("runs/benchmark-logs"), type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Llama-3 alone, without vLLM.")
def main(
    names: tuple[str, ...], count: int, vllm: bool, repeats: int, logs: Path, quick: bool
) -> None:
    """Compare every family with plain transformers and store the rows of `models`."""
    sheet = Sheet("models", quick)
    engines = ["transformers", *(["vllm"] if vllm and not quick else [])]
    failed = []
    for name in ("Llama-3",) if quick else names or FAMILIES:
        with tempfile.TemporaryDirectory() as root:
            try:
                measure(sheet, name, FAMILIES[name], count, engines, Path(root), logs)
            except Exception as error:
                failed.append(name)
                traceback.print_exc()
                say(f"{name}: failed: {json.dumps(str(error)[:300])}")
    if sheet.rows:
        say(f"stored: {put(sheet.rows, out_folder(quick))}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
