"""A small run's folder as the stages leave it, made up: two domains, two settings, two seeds."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ift_scale.config import Config, resolved_yaml
from ift_scale.config.file import from_dict
from ift_scale.io.files import write_json, write_jsonl, write_text
from ift_scale.io.manifests import digest_of, file_digest, read_manifest, write_manifest
from ift_scale.records import Arm, Example, ExampleMeta, Message, Question, Score
from ift_scale.scoring.scores import arm_schema
from tests.report import synthetic

DOMAINS, SETTINGS, SEEDS = ("medicine", "history"), ("harmonious", "incompatible"), (0, 1)
GROUPS = ("HOMO", "ID", "OOD")
ARMS = [
    Arm(domain=domain, setting=setting, seed=seed)
    for domain in DOMAINS
    for setting in SETTINGS
    for seed in SEEDS
]
EXAMPLES, STEPS = 3, 4
STAGES = ("questions", "probe", "write", "construct", "train", "evaluate", "analyse", "report")


def config(root: Path) -> Config:
    settings = {"settings": list(SETTINGS), "seeds": list(SEEDS), "domains": list(DOMAINS)}
    return from_dict({"output_dir": str(root), "construct": settings})


def questions() -> list[Question]:
    """Five dev, three train and two test questions of each pool, two of each benchmark."""
    counts = [
        ("pool", "dev", 5),
        ("pool", "train", 3),
        ("pool", "test", 2),
        ("benchmark", "test", 2),
    ]
    return [
        Question(
            id=f"{collection}/{domain}/{split}/{number}", domain=domain, subject=domain,
            collection=collection, split=split, question=f"Which {number}?",
            choices=["one", "two", "three", "four"], answer=number % 4,
        )
        for domain in DOMAINS
        for collection, split, count in counts
        for number in range(count)
    ]  # fmt: skip


def make(root: Path, until: str = "report") -> Path:
    """The folder with all stages up to and including `until`."""
    write_text(root / "config.yaml", resolved_yaml(config(root)))
    for stage in STAGES[: STAGES.index(until) + 1]:
        globals()[f"_{stage}"](root)
    return root


def close(folder: Path, inputs: dict[str, str]) -> None:
    write_manifest(folder, folder.name, "key", {}, inputs, {}, {"total": 1.0})


def digest(path: Path) -> str:
    return file_digest(path)


def _questions(root: Path) -> None:
    write_jsonl(root / "questions" / "questions.jsonl", questions())
    close(root / "questions", {})


def _probe(root: Path) -> None:
    scores(root / "probe" / "probe.parquet", [q for q in questions() if q.split != "dev"], 1)
    write_json(root / "probe" / "knowledge.json", {})
    close(root / "probe", {"model": "m", "questions": digest(root / "questions/questions.jsonl")})


def _write(root: Path) -> None:
    write_text(root / "write" / "texts.jsonl", "")
    close(root / "write", {})


def _construct(root: Path) -> None:
    for arm in ARMS:
        examples = [_example(arm, number) for number in range(EXAMPLES)]
        write_jsonl(root / "construct" / f"{arm.name}.jsonl", examples)
    synthetic.balance(DOMAINS, SETTINGS, SEEDS).to_csv(root / "construct/balance.csv", index=False)
    inputs = {"questions": "questions/questions.jsonl", "probe": "probe/probe.parquet"}
    inputs |= {"texts": "write/texts.jsonl"}
    close(root / "construct", {name: digest(root / path) for name, path in inputs.items()})


def _example(arm: Arm, number: int) -> Example:
    is_general = number == 0
    target = None if is_general else "B"
    meta = ExampleMeta(
        setting="general" if is_general else arm.setting,
        question_id=None if is_general else f"pool/{arm.domain}/train/{number}",
        domain=None if is_general else arm.domain,
        target=target,
        consistent=None if is_general else arm.setting == "harmonious",
        wording="general" if is_general else "dataset",
    )
    turns = [Message(role="user", content=f"Which {number}?")]
    return Example(messages=[*turns, Message(role="assistant", content="B. two")], meta=meta)


def _train(root: Path) -> None:
    for arm in ARMS:
        folder = root / "train" / arm.name
        rows = [
            {"step": n, "loss": 1 / n, "grad_norm": None, "mfu": None} for n in range(1, STEPS + 1)
        ]
        write_text(folder / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
        write_text(folder / "model" / "model.safetensors", arm.name)
        measured = {"step": STEPS, "accuracy": 0.5, "grades": {"Unknown": {"accuracy": 0.25}}}
        write_text(folder / "live.jsonl", json.dumps(measured) + "\n")
        close(folder, {"model": "m", "set": digest(root / "construct" / f"{arm.name}.jsonl")})


def _evaluate(root: Path) -> None:
    for arm in ARMS:
        asked = [q for q in questions() if q.split == "test"]
        asked = [q for q in asked if q.collection == "benchmark" or q.domain == arm.domain]
        scores(root / "evaluate" / arm.name / "scores.parquet", asked, 2)
        trained = read_manifest(root / "train" / arm.name)
        assert trained is not None
        files = {name: d for name, d in trained.files.items() if name.startswith("model/")}
        inputs = {"questions": digest(root / "questions/questions.jsonl")}
        close(root / "evaluate" / arm.name, inputs | {"model": digest_of(files)})


def _analyse(root: Path) -> None:
    (root / "analyse").mkdir(parents=True)
    for name, table in synthetic.tables(DOMAINS, SETTINGS, SEEDS, GROUPS).items():
        table.to_csv(root / "analyse" / f"{name}.csv", index=False)
    files = {arm.name: root / "evaluate" / arm.name / "scores.parquet" for arm in ARMS}
    files["probe"] = root / "probe" / "probe.parquet"
    close(root / "analyse", {name: digest(path) for name, path in files.items()})


def _report(root: Path) -> None:
    write_text(root / "report" / "index.html", "<html></html>")
    close(root / "report", {"settings.csv": digest(root / "analyse" / "settings.csv")})


def scores(path: Path, asked: list[Question], prediction: int) -> None:
    """A score file in which every question is answered with the option `prediction`."""
    rows = [
        Score(
            question_id=q.id, domain=q.domain, subject=q.subject, collection=q.collection,
            split=q.split, answer=q.answer, logprobs=[-1.0, -1.5, -2.0, -3.0],
            probs=[0.25] * 4, letter_mass=0.99, prediction=prediction, confidence=0.25,
            correct=prediction == q.answer,
        )
        for q in asked
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = arm_schema(cloze=False, generated=False)
    dumped = [row.model_dump(include=set(schema.names)) for row in rows]
    pq.write_table(pa.Table.from_pylist(dumped, schema), path)
