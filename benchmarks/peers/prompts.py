"""The peers' questions: real MMLU 5-shot prompts, rendered by ift_scale, as JSON lines.

    python -m benchmarks.peers.prompts runs/peers/prompts.jsonl --model runs/peers/model
        [--mmlu ../shared/data/mmlu]

Input: MMLU's dev and test questions. Output: one row per question, subject by subject, such as
    {"id": "mmlu/test/high_school_statistics/0", "subject": "high_school_statistics",
     "prompt": "The following ... Answer:", "num_choices": 4, "answer": 3}
Subjects are complete, so the share of a prompt that a subject has in common is realistic. The
defaults are the three subjects with mean lengths nearest to 1,000 tokens that have over 500
questions in total.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.peers.answers import read_tokenizer
from ift_scale.config import MmluSource, ProbeConfig
from ift_scale.errors import IFTScaleError, did_you_mean
from ift_scale.io.files import write_text
from ift_scale.prompts.templates import Demonstrations, few_shot_prompt
from ift_scale.questions import mmlu
from ift_scale.records import Question

SUBJECTS = ("high_school_statistics", "high_school_computer_science", "professional_medicine")
MMLU = Path(__file__).parents[3] / "shared" / "data" / "mmlu"
_SEED = 0  # unused: no subject is sampled


def asked(questions: Sequence[Question], subjects: Sequence[str]) -> list[Question]:
    """Returns the test questions of `subjects` in that order; a usage error for unknown ones."""
    by_subject: dict[str, list[Question]] = {}
    for question in questions:
        if question.split == "test":
            by_subject.setdefault(question.subject, []).append(question)
    for subject in subjects:
        if subject not in by_subject:
            hint = did_you_mean(subject, by_subject)
            raise click.BadParameter(
                f"MMLU has no test questions of '{subject}'; {hint}", param_hint="--subject"
            )
    return [question for subject in subjects for question in by_subject[subject]]


def row(question: Question, demonstrations: Demonstrations) -> dict[str, object]:
    return {
        "id": question.id,
        "subject": question.subject,
        "prompt": few_shot_prompt(question, demonstrations.of(question)),
        "num_choices": len(question.choices),
        "answer": question.answer,
    }


def spread(rows: list[dict[str, object]], limit: int) -> list[dict[str, object]]:
    """Returns `limit` rows at equal intervals, so that every subject is included."""
    return [rows[index * len(rows) // limit] for index in range(min(limit, len(rows)))]


def create(
    output: Path,
    model: Path,
    folder: Path = MMLU,
    subjects: Sequence[str] = SUBJECTS,
    limit: int | None = None,
) -> None:
    """Writes the prompts to `output`; prints their number and mean length in tokens of `model`."""
    probe = ProbeConfig()
    try:
        questions = [
            question for _, question in mmlu.load(MmluSource(kind="mmlu", path=str(folder)), _SEED)
        ]
        demonstrations = Demonstrations(questions, probe.num_shots, probe.demonstration_seed)
        rows = [row(question, demonstrations) for question in asked(questions, subjects)]
    except IFTScaleError as error:
        raise click.ClickException(str(error)) from error
    rows = spread(rows, limit or len(rows))
    write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    lengths = [
        len(ids) for ids in read_tokenizer(model)([str(row["prompt"]) for row in rows]).input_ids
    ]
    mean = sum(lengths) / len(lengths)
    click.echo(
        f"{output}: {len(rows)} questions of {', '.join(subjects)}; {mean:.0f} tokens per prompt, "
        f"at most {max(lengths)}"
    )


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--model",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Counts the tokens.",
)
@click.option(
    "--mmlu",
    "folder",
    default=MMLU,
    type=click.Path(path_type=Path),
    help="Folder of dev.jsonl and test.jsonl (.gz).",
)
@click.option(
    "--subject",
    "subjects",
    multiple=True,
    default=SUBJECTS,
    show_default=True,
    help="May be repeated.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="So many questions over all subjects, for a trial; all when left out.",
)
def main(
    output: Path, model: Path, folder: Path, subjects: tuple[str, ...], limit: int | None
) -> None:
    """Write the prompts to OUTPUT and print their number and mean length."""
    create(output, model, folder, subjects, limit)


if __name__ == "__main__":
    main()
