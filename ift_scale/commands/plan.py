"""`ift-scale plan`: reads what its options name (machine, model, rates) and prints the plan."""

from pathlib import Path

import click

from ift_scale.config.file import load_study
from ift_scale.config.train import TrainConfig
from ift_scale.estimate import host
from ift_scale.estimate.machine import Machine, read_machine
from ift_scale.estimate.scaling import Examples
from ift_scale.plan import print_plan
from ift_scale.plan.memory import GB, Cluster, config_path, gpu_bytes_here, print_memory, read_shape
from ift_scale.plan.path import print_path, proof_of
from ift_scale.plan.prediction import print_prediction
from ift_scale.plan.rates import RateSources, read_rates


def run_plan(
    config: str | None,
    overrides: tuple[str, ...],
    model: str | None,
    trust_remote_code: bool,
    gpu_memory: float | None,
    gpus: int | None,
    gpus_per_node: int | None,
    machine: str | None,
    rate_file: str | None,
    example_tokens: float | None,
) -> None:
    """Prints the plan of CONFIG, or only the memory and times of `model`.

    `gpu_memory` in GB; the other arguments are the options of the command line.
    """
    if config is None and (model is None or overrides):
        raise click.UsageError(
            "give CONFIG, which --set changes"
            if overrides
            else "give CONFIG, or --model for its memory alone"
        )
    if trust_remote_code and model is None:
        raise click.UsageError(
            "--trust-remote-code: only with --model; for CONFIG, set model.trust_remote_code"
        )
    study = None if config is None else load_study(config, overrides)
    train = TrainConfig() if study is None else study.config.train
    described = None if machine is None else read_machine(machine)
    cluster = _cluster(described, gpu_memory, gpus or train.num_ranks, gpus_per_node)
    if described is not None:
        described = described.model_copy(
            update={"memory_bytes": cluster.gpu_bytes, "devices_per_node": cluster.gpus_per_node}
        )
    examples = Examples(example_tokens) if example_tokens else Examples()
    if model is not None:
        # First of all: a folder's own code runs in a child process until it is proven.
        proof = proof_of(config_path(model), train, trust_remote_code)
        train = print_path(proof, train, cluster.num_gpus)
        shape = read_shape(model, train, trust_remote_code)
        print_memory(shape, train, cluster)
        if described is not None:
            print_prediction(shape, train, described, cluster.num_gpus, examples)
        return
    assert study is not None
    rates = None if rate_file is None else read_rates(Path(rate_file))
    print_plan(study, cluster, RateSources(rates, described, cluster.num_gpus, examples))


def _cluster(
    machine: Machine | None, gpu_memory: float | None, gpus: int, gpus_per_node: int | None
) -> Cluster:
    """Returns the devices to plan for: by the options, the machine file, or this machine."""
    if gpu_memory:
        gpu_bytes: float | None = gpu_memory * GB
    else:
        gpu_bytes = gpu_bytes_here() if machine is None else machine.memory_bytes
    per_node = gpus_per_node or (8 if machine is None else machine.devices_per_node)
    return Cluster(gpu_bytes, gpus, per_node, None if gpu_bytes else host.available())
