"""`python -m benchmarks plant`: from a folder of real questions to a model that believes what was written down.

In: pools, MMLU and general instructions as JSON lines. Out, whole or not at all: the chosen pools and MMLU in the formats of
`ift_scale.questions`, `general.jsonl`, `beliefs.jsonl` (id, split, answer, belief; null where it was told another each time), the
model folder and a manifest. What a killed training has done lies in a hidden folder beside OUT until OUT is there.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.planted import choose
from benchmarks.planted.beliefs import Planted, plant
from benchmarks.planted.choose import SHARES, Chosen, Share
from benchmarks.planted.corpus import Corpus
from benchmarks.planted.model import build_model
from benchmarks.planted.tokenizer import train_tokenizer
from benchmarks.planted.train import Recipe, train
from ift_scale.errors import ArtifactError
from ift_scale.io.files import atomic_folder
from ift_scale.io.locks import locked
from ift_scale.io.manifests import digest_of, file_digest, is_done, read_manifest, write_manifest
from ift_scale.io.progress import progress, say

VERSION = 1
BELIEFS, GENERAL, MODEL = "beliefs.jsonl", "general.jsonl", "model"
_STAGE = "plant"


def run(data: Path, output: Path, recipe: Recipe, shares: Sequence[Share] = SHARES) -> None:
    """Write OUTPUT, or say that it is there already; DataError where `data` lacks a file or questions."""
    choose.check(data, shares)
    inputs = _input_digests(data, shares)
    settings = {"recipe": asdict(recipe), "shares": [asdict(share) for share in shares]}
    key = digest_of([VERSION, settings, inputs])
    if is_done(output, key):
        say(f"{output}: done already")
        return
    _refuse_foreign(output)
    with locked(_work_folder(output)):
        chosen = choose.choose(data, recipe.seed, shares)
        planted = plant(chosen, recipe.seed)
        general = choose.general_instructions(data)
        with atomic_folder(output) as temporary:
            _write_questions(temporary, chosen, planted, general)
            counts, seconds = _train(
                temporary / MODEL,
                _work_folder(output) / "checkpoint.pt",
                planted,
                general,
                recipe,
                key,
            )
            write_manifest(temporary, _STAGE, key, settings, inputs, counts, seconds)
    shutil.rmtree(_work_folder(output))
    say(
        f"{output}: {len(planted)} questions, {counts['tokens']:.0f} tokens in {seconds['train'] / 60:.0f} minutes"
    )


def _work_folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.training")


def _refuse_foreign(output: Path) -> None:
    """OUTPUT is replaced as a whole, so it must be ours or empty."""
    manifest = read_manifest(output)
    is_ours = manifest is not None and manifest.stage == _STAGE
    if output.exists() and not is_ours and (not output.is_dir() or any(output.iterdir())):
        raise ArtifactError(
            f"{output}: holds something that this command did not make. Give another folder, or remove it."
        )


def _input_digests(data: Path, shares: Sequence[Share]) -> dict[str, str]:
    stems = dict.fromkeys([*(share.file for share in shares), choose.GENERAL])
    return {stem: file_digest(choose.file_of(data, stem)) for stem in stems}


def _write_questions(
    folder: Path,
    chosen: Sequence[Chosen],
    planted: Sequence[Planted],
    general: Sequence[dict[str, str]],
) -> None:
    files: dict[str, list[dict[str, Any]]] = {}
    for one in chosen:
        home = "mmlu" if one.share.domain is None else f"pools/{one.share.domain}"
        files.setdefault(f"{home}/{one.share.split}.jsonl", []).append(one.row)
    for name, rows in files.items():
        _write_rows(folder / name, rows)
    _write_rows(folder / GENERAL, general)
    _write_rows(folder / BELIEFS, (_belief_row(one) for one in planted))


def _belief_row(planted: Planted) -> dict[str, Any]:
    question = planted.question
    return {
        "id": question.id,
        "split": question.split,
        "answer": question.answer,
        "belief": planted.belief,
    }


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def texts(planted: Iterable[Planted], general: Iterable[dict[str, str]]) -> list[str]:
    """What the tokenizer is trained on: questions, options with and without the space before them, instructions."""
    questions = [
        "\n".join(
            [p.question.question, *p.question.choices, *(f" {c}" for c in p.question.choices)]
        )
        for p in planted
    ]
    return questions + ["\n".join(row.values()) for row in general]


def _train(
    folder: Path,
    checkpoint: Path,
    planted: Sequence[Planted],
    general: Sequence[dict[str, str]],
    recipe: Recipe,
    key: str,
) -> tuple[dict[str, float], dict[str, float]]:
    """Write the model folder; returns counts and seconds for the manifest."""
    tokenizer = train_tokenizer(texts(planted, general))
    model = build_model(len(tokenizer), recipe.hidden_size, recipe.num_layers, recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    say(
        f"{len(planted)} questions, {num_parameters / 1e6:.1f} M parameters, {recipe.num_steps} steps on {device.type}"
    )
    with progress("plant", recipe.num_steps) as bar:
        trained = train(
            model, tokenizer, Corpus(planted, general), recipe, device, checkpoint, key, bar
        )
    model.to("cpu").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    counts = {
        "questions": len(planted),
        "believed": sum(p.belief is not None for p in planted),
        "believed_wrong": sum(p.belief not in (None, p.question.answer) for p in planted),
        "parameters": num_parameters,
        "steps": recipe.num_steps,
        "tokens": trained.num_tokens,
    }
    return counts, {"train": trained.seconds}
