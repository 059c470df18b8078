"""What `ift-scale submit` asks SLURM for. No result depends on it."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from ift_scale.config.section import Section, Text

Time = Annotated[str, Field(pattern=r"^(\d+-)?\d{1,3}(:\d{2}){1,2}$")]


class ClusterConfig(Section):
    partition: Text | None = None
    """The cluster's default when left out; so are account and qos."""
    account: Text | None = None
    qos: Text | None = None
    nodes: PositiveInt = 1
    """Nodes of the jobs that probe, train and evaluate."""
    gpus_per_node: NonNegativeInt = 8
    """GPUs of a node, a rank for each; 0 for nodes without."""
    ranks_per_node: PositiveInt | None = None
    """As many as GPUs when left out, and one on nodes without."""
    cpus_per_rank: PositiveInt = 12
    time: Time = "24:00:00"
    """Of a job that trains, as sbatch takes it: [days-]hours:minutes:seconds. At its end it saves and goes back into the queue."""
    probe_time: Time = "08:00:00"
    """Of a job that probes or evaluates."""
    sweep: NonNegativeInt = 0
    """Deal the arms to so many jobs of an array, each on `nodes` nodes of its own; 0 trains them one after another on all."""
    at_once: PositiveInt | None = None
    """Jobs of the array that may run at the same time; all when left out."""
    options: list[Text] = []
    """Further options of sbatch, such as `--constraint=a100` or `--exclusive`."""

    @property
    def tasks_per_node(self) -> int:
        return self.ranks_per_node or self.gpus_per_node or 1
