"""`ift-scale submit`: submits a run's stages as dependent SLURM jobs.

Each job is a script of launch/ whose options are replaced by those of the configuration's
`cluster:` section. The scripts are written to the run's folder, where they can be read and
submitted again manually.
"""

import os
import re
import shlex
import subprocess
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ift_scale.config import ClusterConfig, Config
from ift_scale.errors import ConfigError, EnvironmentProblem, did_you_mean
from ift_scale.io.files import write_text
from ift_scale.io.progress import say

# The checkout's folder, next to configs/: jobs source launch/slurm.sh from there.
LAUNCH = Path(__file__).parents[2] / "launch"
_SIGNAL = "--signal=B:USR1@120"


@dataclass(frozen=True)
class SlurmJob:
    """A job: its script in launch/, the script's arguments before CONFIG, sbatch options, and the
    job it depends on."""

    name: str
    script: str
    arguments: tuple[str, ...]
    options: tuple[str, ...]
    after: str | None


def jobs(config: Config) -> list[SlurmJob]:
    """Returns the jobs of a run in order; each depends on the previous one."""
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
    if config.learnt.on:
        planned += [("learnt", "stages", ("learnt",), writing)]
    if config.hidden.on:
        planned += [("hidden", "stages", ("hidden",), writing)]
    planned += [("report", "stages", ("analyse report",), one)]
    if not config.questions.sources:
        planned = [("sets", "stages", ("construct",), one), ("train", "train", (), training)]
    names = [name for name, *_ in planned]
    return [
        SlurmJob(*job, after=before) for job, before in zip(planned, [None, *names], strict=False)
    ]


def _options(
    cluster: ClusterConfig, nodes: int, tasks: int, gpus: int, time: str
) -> tuple[str, ...]:
    requested: dict[str, str | int | None] = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": time,
    }
    requested |= {"nodes": nodes, "ntasks-per-node": tasks, "cpus-per-task": cluster.cpus_per_rank}
    if gpus:
        requested["gpus-per-node"] = gpus
    fixed = ("--mem=0", _SIGNAL, "--requeue", "--open-mode=append")
    return (
        *(f"--{name}={value}" for name, value in requested.items() if value is not None),
        *fixed,
        *cluster.options,
    )


def script_text(job: SlurmJob, logs: Path) -> str:
    """Returns the job's script: the one in launch/ with this job's options."""
    source = (LAUNCH / f"{job.script}.sbatch").read_text(encoding="utf-8").splitlines()
    body = [line for line in source if not line.startswith("#SBATCH")]
    is_array = any(option.startswith("--array") for option in job.options)
    # sbatch replaces %j and the like in the folder's name too, except %%.
    folder = str(logs).replace("%", "%%")
    log = shlex.quote(f"--output={folder}/{'%x-%A_%a' if is_array else '%x-%j'}.log")
    options = [f"--job-name=ift-{job.name}", log, *job.options]
    return "\n".join([body[0], *(f"#SBATCH {option}" for option in options), *body[1:]]) + "\n"


def check_folders(root: Path, home: Path) -> None:
    """Raises ConfigError if a folder's name has characters that sbatch cannot be given.

    A line end would begin another line of the script, a backslash turns the replacement of %j off,
    and a comma separates the variables of --export.
    """
    if any(unicodedata.category(char) == "Cc" or char == "\\" for char in str(root)):
        problem = "has a control character or a backslash, which sbatch does not take in the name"
        raise ConfigError("settings", [f"output_dir: {str(root)!r} {problem}; choose another"])
    if any(unicodedata.category(char) == "Cc" or char == "," for char in str(home)):
        raise EnvironmentProblem(
            f"{str(home)!r}, the project's folder, has a comma or a control character in its name, "
            "which `sbatch --export` does not take. Move it to another folder."
        )


def check_partition(cluster: ClusterConfig) -> None:
    """Raises ConfigError if the partition is unknown or too small, EnvironmentProblem without
    SLURM."""
    try:
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%R %D"], capture_output=True, text=True, timeout=60
        )
    except OSError:
        raise EnvironmentProblem(
            "sinfo was not found. Submit from a host with SLURM's commands, or use --dry-run."
        ) from None
    if done.returncode:
        raise EnvironmentProblem(
            f"sinfo failed: {done.stderr.strip()}. Check SLURM's state, or use --dry-run."
        )
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
        raise ConfigError(
            "settings",
            [
                f"cluster.nodes: {cluster.nodes} nodes requested, but partition "
                f"{cluster.partition} has {nodes[cluster.partition]}; lower it"
            ],
        )


def submit(config: Config, path: Path, arguments: Sequence[str], dry_run: bool) -> None:
    """Writes the jobs' scripts to the run's folder and submits them.

    `path` is the configuration file; `arguments` follow it on each command line.
    """
    home = LAUNCH.parent.resolve()
    if not LAUNCH.is_dir():
        raise EnvironmentProblem(
            f"{LAUNCH} is missing: jobs need the project's checkout on all nodes; install it with "
            "`pip install --no-deps -e .`"
        )
    root = Path(config.output_dir).resolve()
    check_folders(root, home)
    if not dry_run:
        check_partition(config.cluster)
    # Jobs must not inherit the size of a job that submits them.
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
            cancelled = f"; {_cancel(ids)}" if ids else ""
            raise EnvironmentProblem(
                f"sbatch refused the job {job.name}: {done.stderr.strip()}{cancelled}"
            )
        ids[job.name] = re.split(r"[;\s]", done.stdout.strip())[0]
        say(f"{job.name}: job {ids[job.name]}" + (f", after {ids[job.after]}" if job.after else ""))


def _cancel(ids: dict[str, str]) -> str:
    """Cancels the submitted jobs, which are useless without the rest; returns a message."""
    subprocess.run(["scancel", *ids.values()], capture_output=True, timeout=60)
    return f"cancelled the jobs {', '.join(ids.values())} that were submitted before"
