"""Cases of settings: configuration files with variants and bases, and `--set`."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from benchmarks.fuzz.case import Case, Content, Kind, Random, copied
from benchmarks.fuzz.mutate import mutated
from benchmarks.fuzz.values import any_value
from ift_scale.cli import main

ROWS: dict[str, list[dict[str, Any]]] = {
    split: [
        {
            "id": number,
            "question": f"What is {split} {number} of {count}?",
            "choices": ["one", "two", "three", f"four {number}"],
            "answer": number % 4,
            "explanation": f"It is {number}.",
        }
        for number in range(count)
    ]
    for split, count in {"dev": 3, "train": 4, "test": 3}.items()
}


def lines(rows: list[dict[str, Any]]) -> bytes:
    """Returns rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


POOL: dict[str, Content] = {f"pool/{split}.jsonl": lines(rows) for split, rows in ROWS.items()}
BASE = """\
output_dir: run
model: {path: world, dtype: auto}
questions:
  sources:
    - {kind: paper, domain: law, path: pool, max_train: 4}
  seed: 7
  audit: {near: false, threshold: 0.8}
probe: {engine: transformers, num_shots: 2}
construct:
  settings: [harmonious, incompatible]
  seeds: [0, 1]
  general: {path: world, share: 0.1}
train:
  learning_rate: 2e-5
  epochs: 2
  global_batch_size: 8
  zero_stage: 2
  max_length: 512
  precision: float32
  checkpoint: {every: 10}
evaluate: {template: vicuna}
analyse: {bootstrap_samples: 200, confidence_level: 0.9}
cluster: {partition: gpu, time: "12:00:00", nodes: 2, options: [--exclusive]}
"""
STUDY = """\
extends: base.yaml
variants:
  small: {train: {epochs: 1}}
  large:
    train: {epochs: 3, learning_rate: 1e-4}
    questions: {seed: 3}
"""
_TRUE = {"true", "yes", "on"}
_FALSE = {"false", "no", "off"}


def same(text: str, value: Any) -> bool:
    """True if `value` is what `text` means in YAML, read without tricks."""
    if value is None:
        return text.lower() in ("", "~", "null")
    if isinstance(value, bool):
        return text.lower() in (_TRUE if value else _FALSE)
    if isinstance(value, str):
        return text == value or (value == "off" and text.lower() in _FALSE)
    plain = text.replace("_", "")
    for read in (lambda: int(plain, 0), lambda: float(plain)):
        with suppress(ValueError):
            return bool(read() == value)
    return False


def differences(written: Any, read: Any, name: str = "") -> str | None:
    """Returns the first value of a file, as texts, that is not what was read; None if all are."""
    if isinstance(written, dict):
        written = _merged(written)
        for key, part in written.items():
            inner = read.get(key, KeyError) if isinstance(read, dict) else KeyError
            if inner is KeyError:
                return f"{name}.{key} was dropped"
            if (found := differences(part, inner, f"{name}.{key}")) is not None:
                return found
        return None
    if isinstance(written, list):
        if not isinstance(read, list) or len(read) != len(written):
            return f"{name}: {written!r} was read as {read!r}"
        pairs = enumerate(zip(written, read, strict=True))
        inside = (differences(a, b, f"{name}.{number}") for number, (a, b) in pairs)
        return next((text for text in inside if text is not None), None)
    return None if same(written, read) else f"{name}: {written!r} was read as {read!r}"


def _merged(mapping: dict[str, Any]) -> dict[str, Any]:
    base = mapping.get("<<")
    own = {key: value for key, value in mapping.items() if key != "<<"}
    bases = base if isinstance(base, list) else [base] if isinstance(base, dict) else []
    for one in reversed(bases):
        own = {**one, **own} if isinstance(one, dict) else own
    return own


def as_texts(content: Content) -> dict[str, Any] | None:
    """Returns the mapping in a YAML file with every scalar as its text; None if there is none."""
    if not isinstance(content, bytes):
        return None
    for encoding in ("utf-8-sig", "utf-16"):
        try:
            found = yaml.load(content.decode(encoding), yaml.BaseLoader)
        except (UnicodeError, yaml.YAMLError):
            continue
        return found if isinstance(found, dict) else None
    return None


def resolved(folder: Path) -> list[Any]:
    """Returns the settings that commands have stored below `folder`."""
    files = sorted(path for path in folder.rglob("config.yaml") if path.is_file())
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in files]


def _as_written(case: Case, folder: Path, output: str) -> str | None:
    """Compares one configuration file with the settings in force."""
    written = as_texts(case.files["c.yaml"])
    found = resolved(folder)
    if written is None or len(found) != 1:
        return None
    written.pop("variants", None)
    written.pop("extends", None)
    written.get("cluster", {}).pop("options", None)  # quoted for sbatch
    return differences(written, found[0])


def _config(random: Random) -> Case:
    argv = random.choice(
        [["questions", "c.yaml"]] * 5
        + [["submit", "c.yaml", "--dry-run"], ["show", "c.yaml"], ["audit", "c.yaml"]]
    )
    case = Case({"c.yaml": BASE.encode(), **POOL}, list(argv), main, ["c.yaml"])
    if random.random() < 0.15:
        _odd_output(random, case)
    else:
        mutated(random, case)
    written = copied(case)
    case.oracle = lambda folder, output: _as_written(written, folder, output)
    return case


def _odd_output(random: Random, case: Case) -> None:
    """Sets output_dir to a path that cannot be a folder, or puts a file where a folder is due."""
    long = "x" * 300
    odd = random.choice(
        (
        "file", "file/run", "loop", "loop/run", "dangling", long, f"{long}/a", "a/" * 1500,
        "/dev/null",
         "/proc/x", "'a\\0b'", "\"a\\0b\"", "''", "~", "' '", ".", "1", "1:30", "true", "fifo",
         "fifo/a")
    )  # fmt: skip
    case.files |= {
        "file": b"x",
        "loop": ("link", "loop"),
        "dangling": ("link", "absent/deep"),
        "fifo": ("fifo",),
    }
    text = BASE.replace("output_dir: run", f"output_dir: {odd}")
    if random.random() < 0.3:
        text = BASE
        inside = random.choice(
            (
            "questions", ".lock", "config.yaml", "questions/manifest.json", "logs",
            ".questions.incomplete")
        )  # fmt: skip
        special: Content = random.choice(
            (b"x", ("folder",), ("link", "absent"), ("fifo",), ("link", Path(inside).name))
        )
        case.files[f"run/{inside}"] = special
        case.changed.append(f"run/{inside}")
    case.files["c.yaml"] = text.encode()
    case.changed.append(f"output_dir {odd[:20]}")


def _study(random: Random) -> Case:
    files: dict[str, Content] = {"c.yaml": STUDY.encode(), "base.yaml": BASE.encode(), **POOL}
    argv = random.choice(
        [["questions", "c.yaml"]] * 3
        + [["questions", "c.yaml", "--variant", "small"], ["show", "c.yaml"]]
    )
    case = Case(files, list(argv), main, ["c.yaml", "c.yaml", "base.yaml"])
    if random.random() < 0.4:
        added = random.choice(_VARIANTS)
        case.files["c.yaml"] = (STUDY + added).encode()
        case.changed.append(added)
    else:
        mutated(random, case)
    written = copied(case)
    case.oracle = lambda folder, output: _variants_as_written(written, folder)
    return case


_VARIANTS = (
    "  1: {}\n  '1': {train: {epochs: 5}}\n",
    "  yes: {}\n",
    "  1.0: {}\n",
    "  small: {train: {epochs: 9}}\n",
    "  own: {output_dir: elsewhere}\n",
    "  own: {variants: {a: {}}}\n",
    "  own: {extends: base.yaml}\n",
    "  own: []\n",
    "  own:\n",
    "  report: {}\n",
    "  a/b: {}\n",
    "  ../up: {}\n",
    f"  {'n' * 300}: {{}}\n",
    "  own: {train: {epochs: 1:30}}\n",
    "  own: {train: {zero_stage: true}}\n",
    "  own: &own {train: {epochs: 4}}\n  more: {<<: *own, questions: {seed: 1}}\n",
    "  own: {train: null}\n",
    "  own: {trian: {epochs: 1}}\n",
)


def _variants_as_written(case: Case, folder: Path) -> str | None:
    """Compares every variant's own settings with those in its folder."""
    written = as_texts(case.files["c.yaml"])
    if written is None or "--variant" in case.argv or case.argv[0] == "show":
        return None
    variants = written.get("variants")
    if not isinstance(variants, dict):
        return None
    found = resolved(folder)
    if variants and len(found) != len(variants):
        return f"{len(variants)} variants were written, {len(found)} were run"
    own = {Path(one["output_dir"]).name: one for one in found}
    for name, change in variants.items():
        if name not in own:
            return f"variant {name!r} was read under another name: {sorted(own)}"
        if isinstance(change, dict) and (text := differences(change, own[name], name)) is not None:
            return text
    return None


_KEYS = (
    "train.epochs",
    "train.learning_rate",
    "train.zero_stage",
    "train.checkpoint.every",
    "train.hpz",
    "train.hostfile",
    "questions.seed",
    "questions.sources.0.max_train",
    "questions.sources.0.path",
    "questions.sources.0",
    "questions.sources.1",
    "questions.sources.-1.path",
    "questions.sources.²",
    "questions.sources.00.path",
    "questions.sources",
    "questions.audit.near",
    "construct.seeds",
    "construct.settings",
    "construct.general.path",
    "construct.general.share",
    "cluster.time",
    "cluster.partition",
    "cluster.options",
    "output_dir",
    "model.path",
    "analyse.confidence_level",
    "train.epoch",
    "trian.epochs",
    "output_dir.x",
    "extends",
    "variants",
    "",
    ".",
    "a..b",
    "train",
    "train.",
)
_GIVEN = (
    "1", "2", "0", "-1", "01", "010", "1:30", "1:30:00", "true", "yes", "1.0", "1e-4", "1e3", ".5",
    ".inf", ".nan", "null", "~", "", " ", "''", "pool", "file", "loop", "x" * 300, "[0, 1]",
    "[0, 0]",
    "[", "{a: 1", "{}", "[]", "=", "a=b", "*a", "&a [*a]", "!!int 3", "!!python/name:x", "9" * 5000,
    "[" * 1000, '"\\ud800"', '"\\0"', "2024-01-01", "0x10", "1_000", "{<<: {a: 1}}", "off", "auto",
    "--exclusive", "12:00:00", "{kind: paper, domain: law, path: pool}", "\udcff", "a\nb", "# c",
    "1 # c",
)  # fmt: skip


def _set(random: Random) -> Case:
    key, given = random.choice(_KEYS), random.choice(_GIVEN)
    if random.random() < 0.25:
        given = json.dumps(any_value(random), ensure_ascii=False)
    form = random.choice(("{}={}",) * 8 + ("{}", "{}=", "={1}"))
    files: dict[str, Content] = {
        "c.yaml": BASE.encode(),
        "file": b"x",
        "loop": ("link", "loop"),
        **POOL,
    }
    override = form.format(key, given).replace("\0", "")
    case = Case(files, ["questions", "c.yaml", "--set", override], main, changed=[override[:80]])
    case.oracle = lambda folder, output: _set_as_written(folder, key, given, form)
    return case


def _set_as_written(folder: Path, key: str, given: str, form: str) -> str | None:
    found = resolved(folder)
    if len(found) != 1 or form != "{}={}" or key.endswith("options"):
        return None
    try:
        written = yaml.load(given, yaml.BaseLoader)
    except yaml.YAMLError:
        return None
    value: Any = found[0]
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value.get(part)
    return differences("" if written is None else written, value, key)


def _valid() -> list[Case]:
    """A configuration and a study, each read by all commands of this module."""
    plain: dict[str, Content] = {"c.yaml": BASE.encode(), **POOL}
    study: dict[str, Content] = {"c.yaml": STUDY.encode(), "base.yaml": BASE.encode(), **POOL}
    commands = [["questions", "c.yaml"], ["submit", "c.yaml", "--dry-run"], ["show", "c.yaml"]]
    first = [Case(plain, argv, main) for argv in commands]
    for case in first[:1]:
        case.oracle = lambda folder, output: _as_written(Case(plain, [], main), folder, output)
    whole = Case(study, ["questions", "c.yaml"], main)
    whole.oracle = lambda folder, output: _variants_as_written(whole, folder)
    return [*first, whole]


KINDS = (
    Kind("YAML configs", _config, _valid),
    Kind("studies", _study, _valid),
    Kind("--set", _set, _valid),
)
