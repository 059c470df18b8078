"""Compares a run's files with those of another run of the same settings, times aside.

Left out are times, dates, and what counts interruptions or memory: named fields of JSON, columns of
tables, and the parts of the report about time. So are the launcher, the job of the last launch, and
in manifests the digests of files that differ in these only. Everything else is compared bit by bit,
and both folders must have the same files.
"""

import csv
import json
import re
from pathlib import Path
from typing import Any

_VARYING = frozenset(
    {
        "seconds",
        "seconds_left",
        "share",  # of an arm's time
        "tokens_per_second_per_gpu",
        "peak_memory_gib",
        "export_peak_bytes",
        "created",
        "commit",
        "resumed",
        "computed_questions",  # by the command that ended the stage; others are in kept shards
        "prompt_tokens",
        "launcher",
    }
)
"""Fields of JSON, and columns of tables."""
_VARYING_IN_PAGE = (
    r'<section id="throughput".*?</section>',
    r'<section id="live".*?<figure>',  # its first sentence has a share of the time
    r"created \d{4}-\d\d-\d\d",
    r"\n *launcher: \w+",
)
_LAST_LAUNCH = "train/.job.json"
_NOT_COMPARED = frozenset({".lock", "logs"})


def files(folder: Path) -> dict[str, Path]:
    """Returns all files of a run by their relative names, except locks and logs."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        str(name): path
        for name, path in found.items()
        if name.parts[0] not in _NOT_COMPARED and name.suffix != ".lock"
    }


def differences(folder: Path, reference: Path) -> list[str]:
    """Returns the names of files that are missing, left over or different, each with the reason.

    Both folders must have the same name, which the report shows.
    """
    ours, theirs = files(folder), files(reference)
    found = [f"{name}: missing" for name in theirs.keys() - ours.keys()]
    found += [f"{name}: left over" for name in ours.keys() - theirs.keys()]
    found += [
        f"{name}: different"
        for name in ours.keys() & theirs.keys() - {_LAST_LAUNCH}
        if _content(ours[name], folder) != _content(theirs[name], reference)
    ]
    return sorted(found)


def _content(path: Path, root: Path) -> Any:
    """Returns what must be equal of a file of the run in `root`."""
    if path.suffix not in (".json", ".jsonl", ".csv", ".html", ".yaml"):
        return path.read_bytes()
    text = path.read_text(encoding="utf-8").replace(str(root), "RUN")
    if path.suffix == ".csv":
        rows = csv.DictReader(text.splitlines())
        return [{n: v for n, v in row.items() if n not in _VARYING} for row in rows]
    if path.suffix in (".html", ".yaml"):
        for pattern in _VARYING_IN_PAGE:
            text = re.sub(pattern, "", text, flags=re.DOTALL)
        return text
    lines = [text] if path.suffix == ".json" else text.splitlines()
    values = [_without_times(json.loads(line)) for line in lines]
    if path.name == "manifest.json":
        (manifest,) = values
        manifest["files"] = sorted(manifest["files"])
        if manifest["stage"] == "report":
            del manifest["key"]  # the report depends on the other manifests, times included
    return values


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {n: _without_times(v) for n, v in value.items() if n not in _VARYING}
    return [_without_times(v) for v in value] if isinstance(value, list) else value
