"""Resources that `ift-scale submit` requests from SLURM. No result depends on them."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from ift_scale.config.section import Section, Text

Time = Annotated[str, Field(pattern=r"^(\d+-)?\d{1,3}(:\d{2}){1,2}$")]


class ClusterConfig(Section):
    """SLURM jobs of `ift-scale submit`."""

    partition: Text | None = None
    """Partition of all jobs. Default: the cluster's."""
    account: Text | None = None
    """Account that is charged. Default: the cluster's."""
    qos: Text | None = None
    """Quality of service. Default: the cluster's."""
    nodes: PositiveInt = 1
    """Number of nodes of each job that probes, trains or evaluates."""
    gpus_per_node: NonNegativeInt = 8
    """Number of GPUs per node; 0 for nodes without GPUs."""
    ranks_per_node: PositiveInt | None = None
    """Number of ranks per node. Default: one per GPU, or one on nodes without GPUs."""
    cpus_per_rank: PositiveInt = 12
    """Number of CPU cores per rank."""
    time: Time = "24:00:00"
    """Time limit of a training job as sbatch accepts it, [days-]hours:minutes:seconds. A job that
    reaches it saves a checkpoint and is requeued."""
    probe_time: Time = "08:00:00"
    """Time limit of a job that probes or evaluates."""
    sweep: NonNegativeInt = 0
    """Number of jobs in an array that share the arms, each on `nodes` nodes of its own. 0: one job
    trains all arms one after another."""
    at_once: PositiveInt | None = None
    """Number of jobs of the array that may run at the same time. Default: all."""
    options: list[Text] = []
    """Additional sbatch options, such as `--constraint=a100` or `--exclusive`."""

    @property
    def tasks_per_node(self) -> int:
        """Number of processes per node."""
        return self.ranks_per_node or self.gpus_per_node or 1
