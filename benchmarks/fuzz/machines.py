"""Cases of machines: hostfiles, rates, and descriptions of machines."""

from functools import partial
from pathlib import Path

import click

from benchmarks.fuzz.case import Case, Content, Kind, Random, copied
from benchmarks.fuzz.configs import as_texts, differences
from benchmarks.fuzz.data import readers
from benchmarks.fuzz.mutate import mutated
from benchmarks.suite.registry import CHECKOUT
from ift_scale.cli import main

_HOSTS = b"""# two nodes
node-1 slots=4
node-2.cluster slots=8   # GPUs

10.0.0.7 slots=2
"""
_RATES = b"""source: measured on one GPU
probe: {per_second: 12000.5, start_seconds: 40}
train:
  per_second: 30
  arm_seconds: 12.5
evaluate: {per_second: 250}
"""
_CONFIG = b"output_dir: run\nquestions: {sources: [{kind: world}]}\n"


@readers.command("hostfile")
@click.argument("path")
def read_hostfile(path: str) -> None:
    """Reads a hostfile as the train stage does."""
    from ift_scale.config import Config, TrainConfig
    from ift_scale.config.file import from_dict
    from ift_scale.train.launch import hostfile

    from_dict({"output_dir": "run", "train": {"hostfile": path}})
    hosts = hostfile.read(Path(path))
    config = Config(output_dir="run", train=TrainConfig(num_ranks=sum(hosts.values())))
    click.echo(f"{hosts} {config.train.num_ranks}")


@readers.command("machine")
@click.argument("path")
def read_machine_file(path: str) -> None:
    """Reads a machine file, and prints what it says."""
    from ift_scale.estimate.machine import rate, read_machine

    machine = read_machine(path)
    rate(machine.matrix, 100.0)
    Path("read.json").write_text(machine.model_dump_json(), encoding="utf-8")


@readers.command("rates")
@click.argument("path", type=click.Path(path_type=Path))
def read_rates_file(path: Path) -> None:
    """Reads a file of rates."""
    from ift_scale.plan.rates import read_rates

    Path("read.json").write_text(read_rates(path).model_dump_json(), encoding="utf-8")


def _hostfile(random: Random) -> Case:
    case = Case({"hosts": _HOSTS}, ["hostfile", "hosts"], readers, ["hosts"])
    if random.random() < 0.4:
        line = random.choice(_LINES)
        case.files["hosts"] = _HOSTS + line.encode("utf-8", "surrogateescape")
        case.changed.append(line)
    else:
        mutated(random, case)
    written = copied(case)
    case.oracle = lambda folder, output: _as_listed(written, output)
    return case


_LINES = (
    "node-3 slots=0", "node-3 slots=-1", "node-3", "node-3 slots=", "node-3 slots=1.5",
    "node-3 slots=4 5",
    "node-3 slots=99999999999999999999", "node-1 slots=2", "node-3  slots=2", "node-3\tslots=2",
    "node-3:22 slots=1",
    "-oProxyCommand=x slots=1", "$(id) slots=1", "node 3 slots=1", "nöde slots=1",
    "node-3 slots=٣", "node-3 slots=１",
    "node-3 SLOTS=1", "slots=1 node-3", "node-3 slots=1 max_slots=2", "[::1] slots=1",
    "a" * 300 + " slots=1", "\udcff slots=1",
    "node-3 slots=010", "user@node slots=2",
)  # fmt: skip


def _as_listed(case: Case, output: str) -> str | None:
    """Checks that every line that is neither empty nor a comment is a host that was read."""
    content = case.files["hosts"]
    if not isinstance(content, bytes):
        return None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    listed = [line.split("#")[0].split() for line in text.splitlines()]
    for line in listed:
        if line and (f"'{line[0]}': {line[1].removeprefix('slots=')}" not in output):
            return f"{line} was not read"
    return None


def _machine(random: Random) -> Case:
    if random.random() < 0.5:
        return _yaml(random, "rates.yaml", _RATES, "rates", ["plan", "c.yaml", "--rates"])
    return _yaml(random, "machine.yaml", preset(), "machine", ["plan", "c.yaml", "--machine"])


def preset() -> bytes:
    """Returns the description of a machine with all of its parts."""
    files = sorted((CHECKOUT / "configs" / "machines").glob("*.yaml"))
    return max((path.read_bytes() for path in files), key=len)


def _yaml(random: Random, name: str, content: bytes, reader: str, plan: list[str]) -> Case:
    files: dict[str, Content] = {name: content, "c.yaml": _CONFIG}
    case = Case(files, [reader, name], readers, [name])
    mutated(random, case)
    if random.random() < 0.1:
        case.program, case.argv = main, [*plan, name]
        return case
    written = copied(case)
    case.oracle = partial(_as_described, written, name)
    return case


def _as_described(case: Case, name: str, folder: Path, output: str) -> str | None:
    import json

    written = as_texts(case.files[name])
    if written is None:
        return None
    read = json.loads((folder / "read.json").read_text(encoding="utf-8"))
    curves = ("matrix", "attention", "memory", "in_place")
    for curve in curves:  # JSON has texts as keys
        if isinstance(written.get(curve), dict):
            written[curve] = {
                str(int(key.replace("_", ""), 0)) if key[:1].isdigit() else key: value
                for key, value in written[curve].items()
            }
    return differences(written, read)


def _valid_machines() -> list[Case]:
    files: dict[str, Content] = {"r.yaml": _RATES, "m.yaml": preset(), "c.yaml": _CONFIG}
    cases = [Case(files, ["rates", "r.yaml"], readers), Case(files, ["machine", "m.yaml"], readers)]
    for case, name in zip(cases, ("r.yaml", "m.yaml"), strict=True):
        case.oracle = partial(_as_described, case, name)
    return [*cases, Case(files, ["plan", "c.yaml", "--rates", "r.yaml"], main)]


def _valid_hosts() -> list[Case]:
    case = Case({"hosts": _HOSTS}, ["hostfile", "hosts"], readers)
    case.oracle = lambda folder, output: _as_listed(case, output)
    return [case]


KINDS = (
    Kind("hostfiles", _hostfile, _valid_hosts),
    Kind("rates, machines", _machine, _valid_machines),
)
