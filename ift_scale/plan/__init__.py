"""`ift-scale plan`: the work, time, memory and disk of a run or study, without loading a model.

The numbers come from the questions, the tokenizer, and the shapes in the weights' headers. Times
are printed only if a rate is given, predicted for a described machine, or measured in a run's
folder; a guess about an unknown machine would mislead.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ift_scale.config import Config, precision_in_force
from ift_scale.config.file import Study
from ift_scale.config.train import TrainConfig
from ift_scale.engines import model_folder
from ift_scale.errors import DataError
from ift_scale.estimate.shape import ModelShape
from ift_scale.estimate.shape_of import shape_of
from ift_scale.io.progress import say
from ift_scale.models.config_file import model_config
from ift_scale.plan import asked, costs, disk, rates, tables
from ift_scale.plan.amounts import Amounts, ArmWork, amounts_of
from ift_scale.plan.memory import Cluster, print_memory
from ift_scale.plan.path import print_path, proof_of
from ift_scale.plan.prediction import print_prediction
from ift_scale.plan.questions import PlannedQuestions, prompts_of
from ift_scale.plan.rate import STAGES
from ift_scale.plan.text import show
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.questions.sources import placed
from ift_scale.ranks.environment import has_gpu
from ift_scale.train.frozen import with_frozen
from ift_scale.treatments import DERIVED
from ift_scale.write import needs as writing

GIB = 2**30
_ASKED = {
    "evaluate": "{:,} questions",
    "learnt": "at most {:,} training items, each in several forms,",
    "hidden": "at most {:,} questions, fit questions of each domain among them,",
}


def num_parameters(folder: Path) -> int:
    """Returns the elements of all tensors in a folder's safetensors files, from their headers."""
    total = 0
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                size = 1
                for dimension in tensors.get_slice(name).get_shape():
                    size *= dimension
                total += size
    return total


def print_plan(study: Study, cluster: Cluster, sources: rates.RateSources) -> None:
    """Prints the plan of a run or of a study's variants, then the cost of all of it."""
    variants = study.variants or {"run": study.config}
    amounts_of_variants, shapes, printed = [], {}, set()
    for name, config in variants.items():
        if study.variants:
            say(f"variant    {name}")
        folder, trusted = model_folder.resolve(config.model.path), config.model.trust_remote_code
        # First of all: a folder's own code runs in a child process until it is proven.
        proof = proof_of(folder / "config.json", config.train, trusted)
        tally = PlannedQuestions.of(config, (question for _, _, question in placed(config)))
        prompts = prompts_of(config, tally, PromptTokenizer(folder, trusted))
        amounts = amounts_of(name, config, num_parameters(folder), tally, prompts)
        amounts_of_variants.append(amounts)
        shapes[name] = _shape(folder, config.train, trusted)
        _print_work(amounts, tally, folder, cluster)
        setup = (str(folder), config.train.model_dump_json())
        if setup not in printed:  # variants with the same training need the same devices
            printed.add(setup)
            train = print_path(proof, config.train, cluster.num_gpus)
            _print_devices(shapes[name], train, cluster, sources)
    _print_costs(amounts_of_variants, shapes, cluster, sources)


def _shape(folder: Path, train: TrainConfig, trust_remote_code: bool) -> ModelShape | DataError:
    """Returns the model's shape with its frozen part, which is printed."""
    file = folder / "config.json"
    shape: ModelShape | DataError
    try:
        shape = shape_of(model_config(folder), file, trust_remote_code)
    except DataError as error:
        shape = error
    known = shape if isinstance(shape, ModelShape) else None
    with_frozen_part, line = with_frozen(known, file, train, trust_remote_code)
    if line is not None:
        say(f"freeze     {line}")
    return shape if with_frozen_part is None else with_frozen_part


def _print_work(amounts: Amounts, tally: PlannedQuestions, folder: Path, cluster: Cluster) -> None:
    config, arms = amounts.config, amounts.arms
    say(f"model      {folder}: {amounts.parameters:,} parameters")
    counts: Counter[Any] = Counter()
    for group, count in tally.groups.items():
        counts[(group.collection, group.split)] += count if group.kind == "choice" else 0
    say(
        "questions  "
        + ", ".join(
            f"{collection} {split} {count:,}"
            for (collection, split), count in sorted(counts.items())
        )
    )
    cloze = amounts.prompts.cloze
    texts = f" and the options' texts, {cloze:.0f} tokens with prompts" if cloze else ""
    say(
        f"probe      {amounts.num_probed:,} questions, {amounts.prompts.views:.3g} prompts each of "
        f"about {amounts.prompts.tokens:.0f} tokens{texts} ({config.probe.engine})"
    )
    say(f"write      {_writers(config)}")
    trained = [work for work in arms if work.derived is None]
    names = ", ".join(work.arm.name for work in trained[:3])
    say(f"construct  {len(trained)} arms: {names}{' ...' if len(trained) > 3 else ''}")
    known = (
        "counted"
        if all(work.exact for work in arms)
        else "bounded by the pools: the sets' sizes are known after construct"
    )
    seen = sum(work.examples for work in arms)
    validated = sum(work.validated for work in arms)
    train = config.train
    measures = {"the validation loss": train.validation.is_on, "train.kl": train.kl.is_on}
    others = " and ".join(name for name, is_on in measures.items() if is_on)
    measured = f", and {validated:,.0f} forward passes for {others}" if validated else ""
    say(
        f"train      {cluster.num_gpus} ranks, {seen:,.0f} examples seen in {config.train.epochs} "
        f"epochs of all arms{measured}, {known}"
    )
    if len(trained) < len(arms):
        say(f"derive     {_derived(arms)}, not trained")
    for stage in asked.STAGES:
        if asked.is_on(config, stage):
            of_arms = [work.asked[stage] for work in arms if stage in work.asked]
            count = sum(of_arms) + amounts.base_asked.get(stage, 0)
            base = " and the base model" if stage in amounts.base_asked else ""
            engine = "transformers" if stage == "hidden" else config.evaluate.engine
            models = f"{len(of_arms)} arms{base} ({engine})"
            say(f"{stage:<10} {_ASKED[stage].format(count)} over {models}")


def _derived(arms: Sequence[ArmWork]) -> str:
    """Returns the number of arms that are made of trained ones, by kind."""
    names = {
        "epoch": "after an earlier epoch",
        "average": "averages with the base model",
        "restored": "with restored parameters",
    }
    counts = Counter(work.derived for work in arms if work.derived is not None)
    listed = ", ".join(f"{counts[kind]} {names[kind]}" for kind in DERIVED if counts[kind])
    return f"{counts.total()} arms of these: {listed}"


def _writers(config: Config) -> str:
    roles = sorted(writing.roles(writing.requirements(config)))
    if not roles:
        return "nothing: no set needs a written text"
    return (
        ", ".join(f"{role} by {getattr(config.write, role).kind}" for role in roles)
        + "; their number is known after the probe"
    )


def _print_devices(
    shape: ModelShape | DataError, train: TrainConfig, cluster: Cluster, sources: rates.RateSources
) -> None:
    if isinstance(shape, DataError):
        say(f"memory     unknown: {shape}")
        return
    print_memory(shape, train, cluster)
    if sources.machine is not None:
        print_prediction(shape, train, sources.machine, cluster.num_gpus, sources.examples)


def _print_costs(
    study: Sequence[Amounts], shapes: dict[str, Any], cluster: Cluster, sources: rates.RateSources
) -> None:
    on_gpu = cluster.gpu_bytes is not None
    by_stage: costs.Rates = {}
    for one in study:
        shape = None if isinstance(shapes[one.name], DataError) else shapes[one.name]
        # Measurements on a CPU do not apply to GPUs.
        near = study if on_gpu == has_gpu() else []
        for stage in STAGES:
            by_stage[one.name, stage] = rates.find(
                stage, one, near, sources, shape, here=bool(near)
            )
    devices = (
        costs.Devices(cluster.num_gpus, cluster.num_gpus, None)
        if on_gpu
        else costs.Devices(1, cluster.num_gpus, _cores())
    )
    say(
        f"cost       on {cluster}, starting from nothing; work shared by variants is done once, by "
        "the first of them"
    )
    show(tables.stages(costs.stage_costs(study, by_stage, devices), devices))
    unknown = any(
        asked.is_on(one.config, stage) and by_stage[one.name, stage] is None
        for one in study
        for stage in asked.OPTIONAL
    )
    without = ", without unknown rates" if unknown else ""
    say(f"by arm     training, evaluation and optional stages{without}")
    show(tables.arms(costs.arm_costs(study, by_stage, devices), devices))
    if perhaps := costs.perhaps_shared(study):
        say(
            f"           {perhaps} of these arms may equal those of another variant, which is "
            "known after construct"
        )
    _print_disk(study, on_gpu, sources.examples.tokens)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _print_disk(study: Sequence[Amounts], on_gpu: bool, example_tokens: float) -> None:
    mixed = precision_in_force(study[0].config.train) == "bfloat16" or (
        on_gpu and study[0].config.train.precision == "auto"
    )
    need = disk.disk_of(study, 2 if mixed else 4, example_tokens)
    parts = {
        "exported models": need.models,
        "checkpoints": need.checkpoints,
        "sets and tokens": need.sets,
        "scores": need.scores,
    }
    listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
    say(f"disk       at most about {need.total / GIB:.2f} GiB: {listed}")
    free = disk.free_bytes(study[0].root)
    if free < need.total:
        say(
            f"WARNING    {study[0].root} has {free / GIB:.2f} GiB free, less than that: set "
            "output_dir to a larger file system"
        )
