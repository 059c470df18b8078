"""What the differences from the authors' released code do to the numbers, measured where that needs no model of billions.

    ift-scale run configs/demo.yaml
    python -m benchmarks.deviations --run runs/demo [--data ../shared/data]

In: the world's base model and the arms of a finished run of the world; the authors' sets. Out: tables in Markdown for
docs/deviations.md. The world's tokenizer gets SentencePiece's prefix space for this, so that a letter by itself is `_A` as in the
LLaMA-2 and Mistral tokenizers, while `Answer:A` ends in `A`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import scipy
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from ift_scale.analyse.correlation import partial_spearman
from ift_scale.construct import official
from ift_scale.io import jsonl
from ift_scale.prompts.templates import (
    HEADER,
    Demonstrations,
    chat_messages,
    few_shot_prompt,
    question_text,
)
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.questions import world
from ift_scale.records import LETTERS, Question

BASE = Path(world.__file__).parents[1] / "world" / "base_model"
DATA = Path(__file__).parents[2] / "shared" / "data"


class Asked(NamedTuple):
    """Answers to one form of the prompts: option probabilities (Q, C), the letters' share of the vocabulary (Q,)."""

    probs: np.ndarray
    mass: np.ndarray

    @property
    def prediction(self) -> np.ndarray:
        return self.probs.argmax(-1)


class Model:
    """A model with the prefix-space form of the world's tokenizer."""

    def __init__(self, path: Path):
        self.tokenizer: Any = AutoTokenizer.from_pretrained(BASE)
        split = pre_tokenizers.Split(Regex(r"\n+"), "isolated")
        self.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.Metaspace(prepend_scheme="first")]
        )
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def released_letter(self, letter: str) -> int:
        """The token that the released code reads: `tokenizer(letter).input_ids[-1]`."""
        return self.tokenizer(letter).input_ids[-1]

    def letter_behind(self, prompt: str, letter: str) -> int:
        """The token that the text itself has there."""
        return self.tokenizer(prompt + letter).input_ids[-1]

    @torch.inference_mode()
    def ask(
        self, prompts: Sequence[str], num_choices: int, separator: str | None, bos: bool = True
    ) -> Asked:
        """`separator`: between prompt and letter in the text; None for the released code's tokens."""
        rows = []
        for prompt in prompts:
            ids = self.tokenizer(prompt).input_ids
            logprobs_V = (
                self.model(torch.tensor([ids if bos else ids[1:]])).logits[0, -1].log_softmax(-1)
            )
            letters = LETTERS[:num_choices]
            found = [
                self.released_letter(x)
                if separator is None
                else self.letter_behind(prompt + separator, x)
                for x in letters
            ]
            rows.append(logprobs_V[found].double().numpy())
        logprobs = np.array(rows)
        mass = np.exp(logprobs).sum(-1)
        return Asked(np.exp(logprobs) / mass[:, None], mass)


def compared(name: str, ours: Asked, theirs: Asked, answers: np.ndarray) -> list[str]:
    """A row of a table, in the order of _COLUMNS; `distance` is the mean total variation distance of the option probabilities."""
    sides = [(asked.prediction == answers).mean() for asked in (ours, theirs)]
    sure = [asked.probs.max(-1) > 0.5 for asked in (ours, theirs)]
    kinds = [
        np.where(is_sure, np.where(asked.prediction == answers, 1, 2), 0)
        for asked, is_sure in zip((ours, theirs), sure, strict=True)
    ]
    return [
        name, f"{(ours.prediction != theirs.prediction).mean():.1%}", f"{sides[0]:.1%} / {sides[1]:.1%}",
        f"{np.median(ours.mass):.3f} / {np.median(theirs.mass):.2g}", f"{sure[0].mean():.1%} / {sure[1].mean():.1%}",
        f"{(kinds[0] != kinds[1]).mean():.1%}",
        f"{abs(ours.probs - theirs.probs).sum(-1).mean() / 2:.3f}",
    ]  # fmt: skip


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_COLUMNS = (
    "difference",
    "different prediction",
    "accuracy, ours / theirs",
    "letter mass",
    "above 0.5",
    "in another of H, I, neither",
    "distance",
)


def questions() -> tuple[list[Question], Demonstrations]:
    """The world's test questions of four options, and their demonstrations."""
    found = list(world.load())
    asked = [q for q in found if q.split == "test" and q.kind == "choice"]
    return asked, Demonstrations(found, 5, 42)


def few_shot() -> str:
    """The base model's 5-shot probe."""
    asked, demonstrations = questions()
    answers = np.array([q.answer for q in asked])
    model, count = Model(BASE), len(asked[0].choices)
    prompts = [few_shot_prompt(q, demonstrations.of(q)) for q in asked]
    doubled = [p.replace("questions about ", "questions about  ", 1) for p in prompts]
    ours = model.ask(prompts, count, "")
    rows = [
        compared("letters by themselves (`_A`)", ours, model.ask(prompts, count, None), answers),
        compared("no BOS", ours, model.ask(prompts, count, "", bos=False), answers),
        compared("two blanks in the header", ours, model.ask(doubled, count, ""), answers),
    ]
    return f"Base model, 5-shot, {len(asked)} questions:\n\n{table(_COLUMNS, rows)}"


def zero_shot(run: Path) -> str:
    """The fine-tuned arms of a run, in the Vicuna template; means over the arms."""
    asked, _ = questions()
    answers = np.array([q.answer for q in asked])
    tokenizer, count = PromptTokenizer(BASE), len(asked[0].choices)
    prompts = [tokenizer.render(chat_messages(q), "vicuna", generation=True) for q in asked]
    headed = [
        p.replace(question_text(q), HEADER.format(topic=q.topic) + question_text(q))
        for p, q in zip(prompts, asked, strict=True)
    ]
    arms = sorted(path.parent for path in run.glob("train/*/model"))
    by_setting: dict[str, list[list[Asked]]] = {}
    for arm in arms:
        model = Model(arm / "model")
        forms = [
            model.ask(prompts, count, " "),
            model.ask([p + " " for p in prompts], count, None),
            model.ask(prompts, count, " ", bos=False),
            model.ask(headed, count, " "),
            model.ask([p + " " for p in headed], count, None, bos=False),
        ]
        by_setting.setdefault(arm.name.split("-")[1], []).append(forms)
    names = (
        "trailing blank, letters by themselves",
        "no BOS",
        "header in the prompt (`hint=1`)",
        "all three",
    )
    rows = []
    for setting, found in by_setting.items():
        joined = [
            Asked(*map(np.concatenate, zip(*forms, strict=True)))
            for forms in zip(*found, strict=True)
        ]
        truth = np.tile(answers, len(found))
        rows += [
            compared(f"{setting}: {name}", joined[0], other, truth)
            for name, other in zip(names, joined[1:], strict=True)
        ]
    return f"{len(arms)} arms, 0-shot, {len(asked)} questions each:\n\n{table(_COLUMNS, rows)}"


def released_correlation(x: np.ndarray, y: np.ndarray, control: np.ndarray) -> tuple[float, float]:
    """(rho, p) as in the released code: Spearman's correlation of the residuals of ranks, p with n - 2 degrees of freedom."""
    ranks = [scipy.stats.rankdata(values) for values in (x, y, control)]
    design = np.column_stack([np.ones(len(x)), ranks[2]])
    left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks[:2]]
    found = scipy.stats.spearmanr(*left)
    return float(found.statistic), float(found.pvalue)


def permuted(
    x: np.ndarray, y: np.ndarray, control: np.ndarray, draw: np.random.Generator, times: int = 199
) -> float:
    """p of the released statistic when the consistencies are permuted within domains (equal control)."""
    groups = [np.flatnonzero(control == value) for value in np.unique(control)]
    observed, hits = abs(released_correlation(x, y, control)[0]), 0
    for _ in range(times):
        order = np.arange(len(x))
        for group in groups:
            order[group] = draw.permutation(group)
        hits += abs(released_correlation(x[order], y, control)[0]) >= observed
    return (1 + hits) / (1 + times)


def correlation(simulations: int = 1000) -> str:
    """Rates of p < 0.05 with no relation of consistency and accuracy within domains, 4 domains x 8 ratios.

    `spread`: standard deviation of what a domain adds to both beside its base score, in units of the noise of one point.
    """
    draw, rows = np.random.default_rng(0), []
    for spread in (0.0, 1.0, 2.0):
        hits = np.zeros(3)
        for number in range(simulations):
            domain = np.repeat(np.arange(4), 8)
            base = draw.normal(size=4)[domain]
            x, y = (
                base + spread * draw.normal(size=4)[domain] + draw.normal(size=32) for _ in range(2)
            )
            p = [released_correlation(x, y, base)[1], partial_spearman(x, y, base).p or 1.0]
            hits[:2] += np.array(p) < 0.05
            if number < simulations // 5:
                hits[2] += 5 * (permuted(x, y, base, draw) < 0.05)
        rows.append([f"{spread:g}", *(f"{100 * hit / simulations:.1f}%" for hit in hits)])
    return table(
        ("spread of domains", "theirs (n - 2)", "ours (n - 3)", "permuted within domains"), rows
    )


def learning_rates(
    sizes: Sequence[int] = (668, 996, 1782), batch: int = 256, epochs: int = 3, warm: float = 0.03
) -> str:
    """Sums of learning rates in units of the peak, by set size (examples: twice the questions)."""
    rows = []
    for size in sizes:
        steps = epochs * math.ceil(2 * size / batch)
        warmup = math.ceil(warm * steps)

        def cosine(step: float, steps: int = steps, warmup: int = warmup) -> float:
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

        theirs = [s / warmup if s < warmup else cosine(s) for s in range(steps)]
        ours = [(s + 1) / warmup if s < warmup else cosine(s) for s in range(steps)]
        # DeepSpeed's WarmupLR: logarithmic from 0 to the peak by default, at the peak from then on. At least two warm-up steps.
        log = [
            math.log(s + 1) / math.log(max(2, warmup)) if s < max(2, warmup) else 1.0
            for s in range(steps)
        ]
        rows.append(
            [
                f"{size:,}",
                str(steps),
                str(warmup),
                f"{sum(ours):.2f}",
                f"{sum(theirs):.2f}",
                f"{sum(log):.2f}",
            ]
        )
    return table(
        ("questions", "steps", "warm-up steps", "ours", "first step at 0", "70B: WarmupLR"), rows
    )


def micro_batches(data: Path, sizes: Sequence[int] = (1, 2, 4, 8)) -> str:
    """Weights of tokens under the mean per micro-batch, relative to the mean over the whole step, on the authors' engineering sets.

    Lengths are those of the supervised texts in words and marks, half of them general instructions; 200 steps of 256 examples.
    """
    sets = official.load(data / "official_groups" / "llama-2-7b")["engineering"]
    general = [
        str(row["output"]) for _, row in jsonl.rows(data / "general" / "alpaca_en_demo.jsonl.gz")
    ]
    draw, rows = np.random.default_rng(0), []
    for setting, imported in sets.items():
        texts = [
            f"{LETTERS[row.target]}. {row.question.choices[row.target]}\n{row.text}"
            for row in imported
        ]
        lengths = np.array([len(text.split()) for text in [*texts, *general[: len(texts)]]])
        is_general = np.arange(len(lengths)) >= len(texts)
        for size in sizes:
            weights, counts, share = [], [], []
            for _ in range(200):
                step = draw.permutation(len(lengths))[:256].reshape(-1, size)
                tokens = lengths[step]
                weight = np.repeat((tokens.sum() / len(step) / tokens.sum(1))[:, None], size, 1)
                weights.append(weight.ravel())
                counts.append(tokens.ravel())
                share.append(
                    [
                        (weight * tokens)[~is_general[step]].sum() / (weight * tokens).sum(),
                        tokens[~is_general[step]].sum() / tokens.sum(),
                    ]
                )
            w, c = np.concatenate(weights), np.concatenate(counts)
            low, high = np.quantile(np.repeat(w, c), (0.05, 0.95))
            theirs, ours = np.mean(share, axis=0)
            rows.append(
                [setting, str(size), f"{low:.2f} to {high:.2f}", f"{ours:.1%} / {theirs:.1%}"]
            )
    return table(
        (
            "set",
            "micro-batch",
            "weight of a token (90% of them)",
            "share of the questions, ours / theirs",
        ),
        rows,
    )


def granularity(data: Path) -> str:
    """How coarse the released probabilities are: logits in bfloat16 have eight bits."""
    rows = []
    for model in official.models(data / "official_groups"):
        ratios, ties, total = [], 0, 0
        for sets in official.load(model).values():
            for row in sets["incompatible"]:
                logs = np.log(np.array(row.score.probs))
                ratios += (logs - logs.max()).tolist()
                ties += len(set(row.score.probs or [])) < len(row.score.probs or [])
                total += 1
        found: Mapping[float, float] = {
            step: float(np.mean([abs(r / step - round(r / step)) < 0.01 for r in ratios]))
            for step in (1 / 8, 1 / 16, 1 / 32, 1 / 64)
        }
        rows.append(
            [model.name, *(f"{share:.1%}" for share in found.values()), f"{ties / total:.1%}"]
        )
    return table(
        (
            "model",
            "differences that are multiples of 1/8",
            "1/16",
            "1/32",
            "1/64",
            "rows with two equal options",
        ),
        rows,
    )


@click.command()
@click.option(
    "--run",
    "folder",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="A finished run of the world.",
)
@click.option(
    "--data", default=DATA, show_default=True, type=click.Path(exists=True, path_type=Path)
)
def main(folder: Path, data: Path) -> None:
    """Print the tables."""
    for part in (
        few_shot(),
        zero_shot(folder),
        correlation(),
        learning_rates(),
        micro_batches(data),
        granularity(data),
    ):
        click.echo(part + "\n")


if __name__ == "__main__":
    main()
