"""Resources that `ift-scale submit` requests from SLURM. No result depends on them."""

import shlex
import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt

from ift_scale.config.section import Section

# A name that sbatch takes as it is, or several with commas. Nothing in it can be an option or code.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,@+-]*$")]
Time = Annotated[str, Field(pattern=r"^(\d+-)?\d{1,3}(:\d{2}){1,2}$")]


def _arguments(text: str) -> str:
    """Returns sbatch options, quoted for a line #SBATCH."""
    if any(unicodedata.category(char) == "Cc" for char in text):
        raise ValueError("contains a line end or another control character; write one option")
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"has an open quotation mark or a final backslash ({error})") from None
    if not parts or not parts[0].startswith("-"):
        raise ValueError("is not an option of sbatch, such as --exclusive")
    return shlex.join(parts)


Option = Annotated[str, AfterValidator(_arguments)]


class ClusterConfig(Section):
    """SLURM jobs of `ift-scale submit`."""

    partition: Name | None = None
    """Partition of all jobs. Default: the cluster's."""
    account: Name | None = None
    """Account that is charged. Default: the cluster's."""
    qos: Name | None = None
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
    options: list[Option] = []
    """Additional sbatch options, such as `--constraint=a100` or `--exclusive`."""

    @property
    def tasks_per_node(self) -> int:
        """Number of processes per node."""
        return self.ranks_per_node or self.gpus_per_node or 1
