"""`ift-scale batch`: a packed micro-batch of an arm as text, from its constructed set and the tokenizer; no weights are read."""

from pathlib import Path

import torch

from ift_scale.config import BUILTIN_MODEL, Config
from ift_scale.engines import model_folder
from ift_scale.errors import ArtifactError, DataError, Place
from ift_scale.io.manifests import read_manifest
from ift_scale.io.progress import console, say
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train.data import dataset, packing, show
from ift_scale.train.data.cache import TOKENS, tokenized
from ift_scale.train.data.collate import collate


def set_of(root: Path, arm: str | None) -> Path:
    """The file of an arm's set, the first one's without a name; errors say what there is."""
    folder = root / "construct"
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(
            f"{folder}: the construct stage's result is not there yet; run `ift-scale construct` or `ift-scale run`"
        )
    arms = sorted(name.removesuffix(".jsonl") for name in manifest.files if name.endswith(".jsonl"))
    chosen = arm or arms[0]
    if chosen not in arms:
        raise DataError(
            Place(folder), "has no set of this arm", f"It has: {', '.join(arms)}", chosen
        )
    return folder / f"{chosen}.jsonl"


def print_batch(config: Config, arm: str | None, step: int, rank: int, micro_batch: int) -> None:
    """`step` and `micro_batch` count from 1, `rank` from 0."""
    train = config.train
    path = set_of(Path(config.output_dir), arm)
    name = config.model.path
    folder = model_folder.resolve(name) if name == BUILTIN_MODEL else Path(name)
    tokenizer = PromptTokenizer(folder)
    tokens = dataset.load(
        tokenized(path, Path(config.output_dir) / "train" / TOKENS, tokenizer, config)
    )
    seed = int(path.stem.rpartition("-seed")[2])
    steps = packing.planned_steps(
        tokens.computed_lengths, train, train.num_ranks, model_folder.hidden_size(folder), seed
    )
    chosen = steps[_within("--step", step, 1, len(steps)) - 1]
    place = chosen[_within("--micro-batch", micro_batch, 1, len(chosen)) - 1][
        _within("--rank", rank, 0, train.num_ranks - 1)
    ]
    whole = [i for micro in chosen for examples in micro for i in examples]
    scales = packing.loss_scales(
        whole, tokens.supervised_counts, tokens.weights, train.loss_average
    )
    where = f"rank {rank} of {train.num_ranks}, micro-batch {micro_batch} of {len(chosen)}"
    say(f"{path.stem}: step {step} of {len(steps)}, {where}, template {config.evaluate.template}")
    learnt = int(tokens.supervised_counts[whole].sum())
    say(
        f"The step has {len(whole)} examples with {learnt} supervised tokens; its loss is the mean over {train.loss_average}s."
    )
    if not place:
        say(
            "This rank has no example here: it computes one token of weight 0, to take part in every collective."
        )
        return
    shown = list(
        show.examples(
            collate(place, tokens, scales, torch.device("cpu"), train.share_prefix), tokens
        )
    )
    counts = f"{len(shown)} examples, {sum(e.num_computed for e in shown)} of {sum(len(e.ids) for e in shown)} tokens are computed"
    colour = console.is_terminal and not console.no_color
    marks = (
        "supervised tokens are green, what is not computed is dim"
        if colour
        else "[[supervised]], ((not computed))"
    )
    say(f"This micro-batch: {counts}; {marks}.")
    for example in shown:
        say(f"\n--- {example.heading()}")
        console.print(show.text_of(example, _decoder(tokenizer), colour))


def _decoder(tokenizer: PromptTokenizer) -> show.Decode:
    return lambda ids: tokenizer.tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def _within(option: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise DataError(
            Place(option), f"goes from {low} to {high} here", "Choose one of them", value
        )
    return value
