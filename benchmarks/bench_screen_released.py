"""How well the screen separates the authors' released sets: harmonious against incompatible.

    python -m benchmarks.bench_screen_released [--official FOLDER] [--model MODEL] [--examples 80]
        [--output FOLDER] [--quick] [--repeats 1]

H agrees with what LLaMA-2 knows, and I contradicts it. Every question is screened as a choice
question with the option that its set teaches, and as a longer answer, the set's explanation. The
screen sees the conversations only, never the probabilities of the release. With another model than
LLaMA-2, the areas measure what both models know alike.
"""

from collections.abc import Iterator
from pathlib import Path

import click

from benchmarks.bench_cloze import MODEL
from benchmarks.bench_screen import FEWEST, Planted, store
from benchmarks.suite.registry import CHECKOUT
from benchmarks.suite.rows import Sheet
from ift_scale import draws
from ift_scale.construct import official
from ift_scale.prompts.templates import question_text, response_text

FOLDER = CHECKOUT.parent / "shared" / "data" / "official_groups" / "llama-2-7b"


def released(folder: Path, num_examples: int) -> Iterator[Planted]:
    """Yields the authors' sets of one model: H is known, I contradicts.

    `num_examples` questions are drawn of each set, over all domains.
    """
    for setting in ("harmonious", "incompatible"):
        items = {
            f"{domain}/{item.question.id}": item
            for domain, sets in official.load(folder).items()
            for item in sets.get(setting, [])
        }
        known = setting == "harmonious"
        size = min(num_examples, len(items))
        for item in (items[id] for id in draws.sample(items, size, f"screen/{setting}")):
            text = response_text(item.question, item.target, "letter_text")
            yield Planted("choice", question_text(item.question), text, known)
            if item.text:
                yield Planted("long", item.question.question, item.text, known)


@click.command()
@click.option(
    "--official",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=FOLDER,
    help="A model's folder of the authors' release.",
)
@click.option("--model", type=click.Path(path_type=Path, exists=True), default=MODEL)
@click.option(
    "--examples",
    "num_examples",
    type=click.IntRange(min=FEWEST),
    default=80,
    show_default=True,
    help="Questions drawn of each set.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps data and screen; default: a temporary one.",
)
@click.option("--quick", is_flag=True, help="Two questions of each set.")
@click.option("--repeats", default=1, show_default=True, help="Ignored: nothing is timed.")
def main(
    folder: Path, model: Path, num_examples: int, output: Path | None, quick: bool, repeats: int
) -> None:
    """Store the rows of `screen-released`."""
    examples = released(folder, 2 if quick else num_examples)
    source = f"{model.name}, released sets of {folder.name}"
    store(Sheet("screen-released", quick), source, examples, str(model), output)


if __name__ == "__main__":
    main()
