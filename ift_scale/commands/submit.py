"""`ift-scale submit`: a run's stages as dependent SLURM jobs.

Each job is one of the scripts in launch/, with the options of the configuration's `cluster:` section in the place of its own. They
are written into the run's folder, so what was asked for can be read, and submitted again by hand.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ift_scale.config import ClusterConfig, Config
from ift_scale.errors import ConfigError, EnvironmentProblem, did_you_mean
from ift_scale.io.files import write_text
from ift_scale.io.progress import say

# Beside the source, as configs/ is: jobs source launch/slurm.sh there.
LAUNCH = Path(__file__).parents[2] / "launch"
_SIGNAL = "--signal=B:USR1@120"


@dataclass(frozen=True)
class Job:
    """One job: its script in launch/, that script's arguments before CONFIG, sbatch's options, and the job it waits for."""

    name: str
    script: str
    arguments: tuple[str, ...]
    options: tuple[str, ...]
    after: str | None


def jobs(config: Config) -> list[Job]:
    """The jobs of a run in order, each behind the one before."""
    cluster = config.cluster
    one = _options(cluster, 1, 1, 0, cluster.probe_time)
    whole = _options(
        cluster, cluster.nodes, cluster.tasks_per_node, cluster.gpus_per_node, cluster.probe_time
    )
    training = _options(
        cluster, cluster.nodes, cluster.tasks_per_node, cluster.gpus_per_node, cluster.time
    )
    writing = _options(cluster, 1, 1, cluster.gpus_per_node, cluster.probe_time)
    planned = [
        ("questions", "stages", ("questions",), one),
        ("probe", "probe", (), whole),
        ("sets", "stages", ("write construct",), writing),
    ]
    if cluster.sweep:
        array = f"--array=0-{cluster.sweep - 1}" + (
            f"%{cluster.at_once}" if cluster.at_once else ""
        )
        planned += [("sweep", "sweep", (), (*training, array))]
    else:
        planned += [("train", "train", (), training), ("evaluate", "evaluate", (), whole)]
    planned += [("report", "stages", ("analyse report",), one)]
    names = [name for name, *_ in planned]
    return [Job(*job, after=before) for job, before in zip(planned, [None, *names], strict=False)]


def _options(
    cluster: ClusterConfig, nodes: int, tasks: int, gpus: int, time: str
) -> tuple[str, ...]:
    asked: dict[str, str | int | None] = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": time,
    }
    asked |= {"nodes": nodes, "ntasks-per-node": tasks, "cpus-per-task": cluster.cpus_per_rank}
    if gpus:
        asked["gpus-per-node"] = gpus
    fixed = ("--mem=0", _SIGNAL, "--requeue", "--open-mode=append")
    return (
        *(f"--{name}={value}" for name, value in asked.items() if value is not None),
        *fixed,
        *cluster.options,
    )


def script_text(job: Job, logs: Path) -> str:
    """The job's script: that of launch/ with these options as its own."""
    source = (LAUNCH / f"{job.script}.sbatch").read_text(encoding="utf-8").splitlines()
    body = [line for line in source if not line.startswith("#SBATCH")]
    log = logs / (
        "%x-%A_%a.log"
        if any(option.startswith("--array") for option in job.options)
        else "%x-%j.log"
    )
    options = [f"--job-name=ift-{job.name}", f"--output={log}", *job.options]
    return "\n".join([body[0], *(f"#SBATCH {option}" for option in options), *body[1:]]) + "\n"


def check_partition(cluster: ClusterConfig) -> None:
    """ConfigError for a partition that is not there or has too few nodes; EnvironmentProblem where there is no SLURM."""
    try:
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%R %D"], capture_output=True, text=True, timeout=60
        )
    except OSError:
        raise EnvironmentProblem(
            "there is no sinfo here. Submit from a host with SLURM's commands, or use --dry-run."
        ) from None
    if done.returncode:
        raise EnvironmentProblem(f"SLURM does not answer: {done.stderr.strip()}")
    nodes: dict[str, int] = {}
    for line in done.stdout.splitlines():
        name, count = line.split()
        nodes[name] = nodes.get(name, 0) + int(count)
    if cluster.partition is None:
        return
    if cluster.partition not in nodes:
        known = did_you_mean(cluster.partition, nodes)
        raise ConfigError(
            "settings",
            [f"cluster.partition: SLURM has no partition {cluster.partition!r}; {known}"],
        )
    if cluster.nodes > nodes[cluster.partition]:
        have = f"partition {cluster.partition} has {nodes[cluster.partition]}"
        raise ConfigError(
            "settings", [f"cluster.nodes: {cluster.nodes} nodes are asked for and {have}; lower it"]
        )


def submit(config: Config, path: Path, arguments: Sequence[str], dry_run: bool) -> None:
    """Write the jobs' scripts into the run's folder and submit them; `arguments` follow the configuration on each command line."""
    home = LAUNCH.parent.resolve()
    if not LAUNCH.is_dir():
        raise EnvironmentProblem(
            f"{LAUNCH} is missing: jobs need the project's checkout, on all nodes; install it by `pip install --no-deps -e .`"
        )
    root = Path(config.output_dir).resolve()
    if not dry_run:
        check_partition(config.cluster)
    # A job that submits jobs must not hand its own size on to them.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "SRUN_")) or name == "SLURM_CONF"
    }
    environment = inherited | {"IFT_SCALE_HOME": str(home)}
    ids: dict[str, str] = {}
    for job in jobs(config):
        script, text = root / "slurm" / f"{job.name}.sbatch", script_text(job, root / "logs")
        command = ["sbatch", "--parsable", f"--export=ALL,IFT_SCALE_HOME={home}"]
        if job.after is not None:
            command += [
                f"--dependency=afterok:{ids.get(job.after, '<' + job.after + '>')}",
                "--kill-on-invalid-dep=yes",
            ]
        command += [str(script), *job.arguments, str(path.resolve()), *arguments]
        if dry_run:
            say(f"# {script}\n{text}\n$ {shlex.join(command)}\n")
            continue
        write_text(script, text)
        (root / "logs").mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        if done.returncode:
            told = f"; {_cancel(ids)}" if ids else ""
            raise EnvironmentProblem(
                f"sbatch refused the job {job.name}: {done.stderr.strip()}{told}"
            )
        ids[job.name] = re.split(r"[;\s]", done.stdout.strip())[0]
        say(f"{job.name}: job {ids[job.name]}" + (f", after {ids[job.after]}" if job.after else ""))


def _cancel(ids: dict[str, str]) -> str:
    """End what was submitted already: without the rest it would be of no use."""
    subprocess.run(["scancel", *ids.values()], capture_output=True, timeout=60)
    return f"the jobs {', '.join(ids.values())}, which it belongs to, were cancelled"
