"""`ift-scale batch`: prints a packed micro-batch of an arm as text.

In: the arm's constructed set and the tokenizer. No weights are loaded.
"""

from pathlib import Path

import numpy as np
import torch

from ift_scale.config import BUILTIN_MODEL, Config
from ift_scale.engines import model_folder
from ift_scale.errors import ArtifactError, DataError, Place
from ift_scale.io import integrity
from ift_scale.io.manifests import read_manifest
from ift_scale.io.progress import console, say
from ift_scale.models import config_class
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train.data import dataset, packing, show
from ift_scale.train.data.cache import TOKENS, tokenized
from ift_scale.train.data.collate import collate
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.data.micro_batch import MicroBatch
from ift_scale.train.proof import stored
from ift_scale.train.validation import prepare as validation


def set_of(root: Path, arm: str | None) -> Path:
    """Returns the file of an arm's set; of the first arm if `arm` is None.

    Raises an error that lists the arms if there is none of this name.
    """
    folder = root / "construct"
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(
            f"{folder}: the construct stage's result does not exist yet; run `ift-scale construct` "
            "or `ift-scale run`"
        )
    arms = sorted(name.removesuffix(".jsonl") for name in manifest.files if name.endswith(".jsonl"))
    chosen = arm or arms[0]
    if chosen not in arms:
        raise DataError(
            Place(folder), "has no set of this arm", f"Available: {', '.join(arms)}", chosen
        )
    integrity.check(folder, (f"{chosen}.jsonl",))
    return folder / f"{chosen}.jsonl"


def print_batch(config: Config, arm: str | None, step: int, rank: int, micro_batch: int) -> None:
    """Prints one rank's micro-batch. `step` and `micro_batch` count from 1, `rank` from 0."""
    train = config.train
    path = set_of(Path(config.output_dir), arm)
    name = config.model.path
    folder = model_folder.resolve(name) if name == BUILTIN_MODEL else Path(name)
    trusted = config.model.trust_remote_code
    # First of all: a folder's own code runs in a child process until it is proven.
    proof = stored.proof_of(folder, train.max_length, trusted)
    tokenizer = PromptTokenizer(folder, trusted)
    cache = Path(config.output_dir) / "train" / TOKENS
    tokens = dataset.load(tokenized(path, cache, tokenizer, config))
    chosen = np.arange(len(tokens.lengths))
    if train.validation.share is not None:
        held_out = validation.held_out_file(path, cache, train.validation.share)
        chosen = np.setdiff1d(chosen, np.load(held_out, allow_pickle=False), assume_unique=True)
    dataset.check_enough(len(chosen), len(tokens.lengths) - len(chosen), path, train)
    seed = int(path.stem.rpartition("-seed")[2])
    training_path = proof.fastest(train)
    steps = packing.planned_steps(
        tokens.computed_lengths,
        train,
        train.num_ranks,
        config_class.hidden_size(folder, trusted),
        seed,
        training_path.layout,
        chosen,
    )
    micro_batches = steps[_within("--step", step, 1, len(steps)) - 1]
    by_rank = micro_batches[_within("--micro-batch", micro_batch, 1, len(micro_batches)) - 1]
    indices = by_rank[_within("--rank", rank, 0, train.num_ranks - 1)]
    step_indices = [i for ranks in micro_batches for examples in ranks for i in examples]
    scales = packing.loss_scales(
        step_indices, tokens.supervised_counts, tokens.weights, train.loss_average
    )
    say(
        f"{path.stem}: step {step} of {len(steps)}, rank {rank} of {train.num_ranks}, micro-batch "
        f"{micro_batch} of {len(micro_batches)}, template {config.evaluate.template}, path "
        f"{training_path.name}"
    )
    num_supervised = int(tokens.supervised_counts[step_indices].sum())
    say(
        f"The step has {len(step_indices)} examples with {num_supervised} supervised tokens; its "
        f"loss is the mean over {train.loss_average}s."
    )
    if not indices:
        say(
            "This rank has no example here. It computes one token of weight 0 in order to take "
            "part in every collective."
        )
        return
    shares = training_path.shares_prefix(train)
    whole = training_path.name == "single"
    batch = collate(indices, tokens, scales, torch.device("cpu"), shares, whole)
    _print_examples(batch, tokens, tokenizer)


def _print_examples(batch: MicroBatch, tokens: TokenizedSet, tokenizer: PromptTokenizer) -> None:
    examples = list(show.examples(batch, tokens))
    num_computed = sum(example.num_computed for example in examples)
    num_tokens = sum(len(example.ids) for example in examples)
    colour = console.is_terminal and not console.no_color
    marks = (
        "supervised tokens are green, tokens that are not computed are dim"
        if colour
        else "[[supervised]], ((not computed))"
    )
    say(
        f"This micro-batch: {len(examples)} examples, {num_computed} of {num_tokens} tokens are "
        f"computed; {marks}."
    )
    for example in examples:
        say(f"\n--- {example.heading()}")
        console.print(show.text_of(example, _decoder(tokenizer), colour))


def _decoder(tokenizer: PromptTokenizer) -> show.Decode:
    return lambda ids: tokenizer.tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def _within(option: str, value: int, low: int, high: int) -> int:
    """Returns `value`. Raises DataError if it is not from `low` to `high`."""
    if not low <= value <= high:
        raise DataError(
            Place(option), "out of range", f"Choose a number from {low} to {high}", value
        )
    return value
