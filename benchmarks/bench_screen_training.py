"""What training on screened instead of unscreened data does to held-out knowledge.

    python -m benchmarks.bench_screen_training [--quick] [--repeats 1] [--folder FOLDER]

The data are choice questions of the embedded world's pools with their right answers, as chat. By
what its training text says, the base model believes half of the answers and contradicts the other
half. For each domain, three sets are trained: `unscreened`, `screened` (`ift-scale screen
--treatment discard`), and `random`, a draw from the unscreened one of the size of the screened one,
so that size does not explain a difference. The screen does not see which answers are believed.
Recipe and test groups are those of configs/demo.yaml, without general instructions. All files stay
in FOLDER; the same command resumes after a stop.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.bench_demo import GATE, add_found, one_run
from benchmarks.bench_screen import Planted
from benchmarks.suite.rows import Sheet
from ift_scale import draws
from ift_scale.commands.screen import run_screen
from ift_scale.io.progress import say
from ift_scale.prompts.templates import question_text, response_text
from ift_scale.questions import world
from ift_scale.world.facts import DOMAINS, all_facts

SEEDS = [0, 1, 2, 3, 4]
SETS = ("screened", "random", "unscreened")
SETTINGS = [
    "construct.settings=[]",
    "probe.engine=transformers",
    "evaluate.engine=transformers",
    "train.num_ranks=1",
    "train.zero_stage=0",
    "train.live.every=0",
]
"""Changes to the demo's configuration; ranks and ZeRO stage do not change what is learnt."""


class DomainSets(NamedTuple):
    """The rows of a domain's sets by name, and the prompts whose answers the model contradicts."""

    rows: dict[str, list[dict[str, Any]]]
    contradicted: frozenset[str]

    def num_contradicted(self, name: str) -> int:
        return sum(row["messages"][0]["content"] in self.contradicted for row in self.rows[name])


def balanced(domain: str) -> Iterator[Planted]:
    """Yields as many train questions that the model believes as ones that it contradicts."""
    questions = {question.id: question for question in world.load()}
    facts = {
        f"world/{fact.id}": fact
        for fact in all_facts()
        if fact.relation.domain == domain and fact.split == "train" and fact.belief is not None
    }
    known = {id for id, fact in facts.items() if fact.belief == fact.truth}
    wrong = facts.keys() - known
    size = min(len(known), len(wrong))
    chosen = [id for part in (known, wrong) for id in draws.sample(part, size, "balanced")]
    for id in draws.shuffled(chosen, "order"):
        question = questions[id]
        assert question.answer is not None
        text = response_text(question, question.answer, "letter_text")
        yield Planted("choice", question_text(question), text, id in known)


def screened_sets(domain: str, folder: Path) -> DomainSets:
    """Returns the three sets of a domain; the screen's files are in FOLDER/DOMAIN."""
    examples, data = list(balanced(domain)), folder / f"{domain}.jsonl"
    unscreened = [example.row for example in examples]
    _write(data, unscreened)
    output = folder / domain
    run_screen("world", (str(data),), str(output), "transformers", "discard", (), False, ())
    lines = (output / "filtered.jsonl").read_text(encoding="utf-8").splitlines()
    numbers = {str(n): row for n, row in enumerate(unscreened)}
    drawn = draws.sample(numbers, len(lines), f"random/{domain}")
    rows = {
        "screened": [json.loads(line) for line in lines],
        "random": [numbers[n] for n in drawn],
        "unscreened": unscreened,
    }
    return DomainSets(rows, frozenset(e.asked for e in examples if not e.known))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def configured(sets: dict[str, DomainSets], folder: Path) -> list[dict[str, str]]:
    """Writes the sets and returns `construct.sets`: one entry per domain and set."""
    entries = []
    for name in SETS:
        for domain, found in sets.items():
            path = folder / f"{domain}-{name}.jsonl"
            _write(path, found.rows[name])
            entries.append({"name": name, "domain": domain, "path": str(path.resolve())})
    return entries


@click.command()
@click.option("--quick", is_flag=True, help="Two domains, one seed.")
@click.option("--repeats", default=1, show_default=True, help="Ignored: nothing is timed.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("runs/bench-screen-training")
)
def main(quick: bool, repeats: int, folder: Path) -> None:
    """Screen, train, evaluate, and store the rows of `screen-training`."""
    domains = DOMAINS[:2] if quick else DOMAINS
    sets = {domain: screened_sets(domain, folder / "screen") for domain in domains}
    entries = configured(sets, folder / "sets")
    seeds = SEEDS[:1] if quick else SEEDS
    changes = [*SETTINGS, f"construct.seeds={seeds}", f"construct.sets={json.dumps(entries)}"]
    one_run(folder / "run", [part for change in changes for part in ("--set", change)])
    sheet = Sheet("screen-training", quick)
    add_found(sheet, folder / "run" / "analyse")
    for name in SETS:
        for quantity, count in (
            ("examples", sum(len(found.rows[name]) for found in sets.values())),
            ("contradicted", sum(found.num_contradicted(name) for found in sets.values())),
        ):
            sheet.add(name, quantity, "examples", [count], GATE, better="neither")
    say(f"stored: {sheet.store()}")


if __name__ == "__main__":
    main()
