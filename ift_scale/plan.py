"""`ift-scale plan`: what a configuration would do, how much work and memory that is, without loading a model.

Numbers come from the questions themselves, the tokenizer, and the shapes in the weights' headers. Times are told only where
this run's folder holds a measured rate; a guess about an unknown machine would mislead.
"""

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ift_scale.artifacts import read_manifest
from ift_scale.config import Config, TrainConfig
from ift_scale.construct.run import arms_of
from ift_scale.distributed import has_gpu
from ift_scale.errors import DataError
from ift_scale.evaluate.run import asked_of
from ift_scale.inference import model_folder
from ift_scale.inference.prompts import Demonstrations, few_shot_prompt
from ift_scale.inference.question_file import GroupKey
from ift_scale.inference.tokens import PromptTokenizer
from ift_scale.inference.views import views_of
from ift_scale.plan_memory import Cluster, print_memory
from ift_scale.probe.run import wanted
from ift_scale.progress import say
from ift_scale.questions.run import placed
from ift_scale.records import Question
from ift_scale.train.packing import steps_per_epoch
from ift_scale.train.shape import ModelShape
from ift_scale.write import needs as writing

_SAMPLED_PROMPTS = 64
GIB = 2**30


def num_parameters(folder: Path) -> int:
    """Elements of all tensors in a folder's safetensors files, read from their headers."""
    total = 0
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                size = 1
                for dimension in tensors.get_slice(name).get_shape():
                    size *= dimension
                total += size
    return total


@dataclass
class Tally:
    """What a plan needs of the questions, gathered in one pass: the size of each group, the dev ones, a sample of those asked."""

    groups: Counter[GroupKey] = field(default_factory=Counter)
    dev: list[Question] = field(default_factory=list)
    sample: list[Question] = field(default_factory=list)

    @classmethod
    def of(cls, config: Config) -> "Tally":
        tally = cls()
        rng = random.Random(0)
        asked = 0
        for _, _, question in placed(config):
            key = GroupKey.of(question)
            tally.groups[key] += 1
            if question.split == "dev":
                tally.dev.append(question)
            elif wanted(config.probe, key) and question.kind == "choice":
                asked += 1  # reservoir sampling
                if len(tally.sample) < _SAMPLED_PROMPTS:
                    tally.sample.append(question)
                elif (place := rng.randrange(asked)) < _SAMPLED_PROMPTS:
                    tally.sample[place] = question
        return tally

    def count(self, chosen: Callable[[GroupKey], bool]) -> int:
        return sum(count for group, count in self.groups.items() if chosen(group))


def mean_prompt_tokens(config: Config, tally: Tally, tokenizer: PromptTokenizer) -> float:
    """Mean length of the sampled few-shot prompts."""
    demonstrations = Demonstrations(tally.dev, config.probe.num_shots, config.probe.demonstration_seed)
    lengths = [len(ids) for ids in tokenizer.encode([few_shot_prompt(q, demonstrations.of(q)) for q in tally.sample])]
    return sum(lengths) / len(lengths)


def mean_views(config: Config, tally: Tally) -> float:
    """Prompts a choice question, from the sample."""
    views = views_of(config.probe.reliability)
    return sum(len(views(question)) for question in tally.sample) / len(tally.sample)


def measured_rate(folder: Path, count: str, part: str) -> float | None:
    """Items a second of a finished stage in `folder`, None where there is none."""
    manifest = read_manifest(folder)
    if manifest is None or not manifest.seconds.get(part) or not manifest.counts.get(count):
        return None
    return manifest.counts[count] / manifest.seconds[part]


def _time(amount: float, rate: float | None) -> str:
    return (
        "not known: no measured rate in output_dir yet"
        if rate is None
        else f"about {amount / rate:.0f} s at the rate measured here"
    )


def print_plan(config: Config, cluster: Cluster) -> None:
    """Print the plan of every stage, training on `cluster`."""
    folder = model_folder.resolve(config.model.path)
    parameters = num_parameters(folder)
    tally = Tally.of(config)
    arms = arms_of(config, tally.groups)
    root = Path(config.output_dir)
    say(f"model      {folder}: {parameters:,} parameters")
    counts: Counter[Any] = Counter()
    for group, count in tally.groups.items():
        counts[(group.collection, group.split)] += count if group.kind == "choice" else 0
    say("questions  " + ", ".join(f"{collection} {split} {count:,}" for (collection, split), count in sorted(counts.items())))
    asked = tally.count(lambda group: wanted(config.probe, group))
    tokens = mean_prompt_tokens(config, tally, PromptTokenizer(folder))
    rate = measured_rate(root / "probe", "computed_questions", "scoring")
    prompts = f"{asked:,} questions, {mean_views(config, tally):.3g} prompts each of about {tokens:.0f} tokens"
    say(f"probe      {prompts} ({config.probe.engine}); {_time(asked, rate)}")
    say(f"write      {_writers(config)}")
    say(f"construct  {len(arms)} arms: {', '.join(arm.name for arm in arms[:3])}{' ...' if len(arms) > 3 else ''}")
    _print_train(config, root, cluster.num_gpus, [arm.name for arm in arms])
    try:
        print_memory(ModelShape.from_config(model_folder.model_config(folder), folder / "config.json"), config.train, cluster)
    except DataError as error:
        say(f"memory     not known: {error}")
    evaluations = sum(tally.count(partial(asked_of, arm, config.evaluate.generate)) for arm in arms)
    rate = measured_rate(root / "evaluate" / arms[0].name, "computed_questions", "scoring")
    say(f"evaluate   {evaluations:,} prompts over {len(arms)} arms ({config.evaluate.engine}); {_time(evaluations, rate)}")
    weight_bytes = 2 if _mixed(config.train) else 4
    say(f"disk       about {len(arms) * parameters * weight_bytes / GIB:.2f} GiB of exported models")


def _writers(config: Config) -> str:
    roles = sorted(writing.roles(writing.wishes(config.construct)))
    if not roles:
        return "nothing: no set needs a written text"
    return ", ".join(f"{role} by {getattr(config.write, role).kind}" for role in roles) + "; how many is known after the probe"


def _print_train(config: Config, root: Path, num_ranks: int, arms: list[str]) -> None:
    train = config.train
    constructed = read_manifest(root / "construct")
    if constructed is None:
        say(f"train      {num_ranks} ranks; the sets' sizes are known after construct")
    else:
        sizes = {name.removesuffix(".jsonl"): _num_lines(root / "construct" / name) for name in constructed.files}
        steps = sum(train.epochs * steps_per_epoch(sizes[arm], train.global_batch_size) for arm in arms if arm in sizes)
        rate = measured_rate(root / "train" / arms[0], "steps", "steps")
        say(f"train      {num_ranks} ranks, {steps:,} optimizer steps in all; {_time(steps, rate)}")


def _mixed(train: TrainConfig) -> bool:
    return train.precision == "bfloat16" or (train.precision == "auto" and has_gpu())


def _num_lines(path: Path) -> int:
    with path.open(encoding="utf-8") as file:
        return sum(1 for line in file if json.loads(line))
