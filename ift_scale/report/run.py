"""The report stage: tables, manifests and training curves in; one self-contained HTML page and its CSV files out."""

import json
import shutil
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment

from ift_scale import artifacts
from ift_scale.artifacts import Manifest
from ift_scale.config import Config, resolved_yaml
from ift_scale.records import Arm
from ift_scale.report import live, plots
from ift_scale.report.findings import findings

VERSION = 3
PAGE = "index.html"
TRAIN_PARTS = ("build", "steps", "live", "export")
"""Seconds of an arm; `live` is not in those of arms trained before it was measured."""


@dataclass(frozen=True)
class Sources:
    """What a report is made of."""

    tables: Path
    train: Path
    arms: list[Arm]
    manifests: dict[str, list[Manifest]]
    """Manifests of each stage, an arm's own for train and evaluate."""
    run_seconds: dict[str, dict[str, float]]
    """Seconds of a stage's whole latest run, by part: what no single arm's manifest holds."""
    chance: float
    knowledge: dict[str, Any]
    """The probe's knowledge.json."""


def interval_text(row: pd.Series, name: str, scale: float = 100, digits: int = 1) -> str:
    value, low, high = (row[f"{name}{end}"] * scale for end in ("", "_low", "_high"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def wide_accuracy(settings: pd.DataFrame, base: pd.DataFrame, domains: list[str]) -> pd.DataFrame:
    """One row a domain and setting, one column a group."""
    rows = []
    for domain in domains:
        part = settings[settings.domain == domain]
        for setting in dict.fromkeys(part.setting):
            cells = {
                row.group: interval_text(pd.Series(row._asdict()), "accuracy") for row in part[part.setting == setting].itertuples()
            }
            rows.append({"domain": domain, "setting": plots.LABELS[setting], **cells})
        means = (base if domain == "all" else base[base.domain == domain]).groupby("group", sort=False).accuracy.mean()
        rows.append({"domain": domain, "setting": "base model, few-shot", **{g: f"{v * 100:.1f}" for g, v in means.items()}})
    return pd.DataFrame(rows)


def throughput(manifests: dict[str, list[Manifest]]) -> pd.DataFrame:
    """What each stage did and how fast: questions or tokens a second while it computed, engine start and loading aside."""
    rows = []
    for stage, unit in (("probe", "scoring"), ("train", "steps"), ("evaluate", "scoring")):
        found = manifests.get(stage, [])
        if not found:
            continue
        seconds = sum(m.seconds[unit] for m in found)
        total = sum(sum(m.seconds.get(p, 0.0) for p in TRAIN_PARTS) if stage == "train" else m.seconds["total"] for m in found)
        questions = sum(m.counts.get("computed_questions", 0) for m in found)
        tokens = sum(m.counts.get("prompt_tokens", m.counts.get("tokens", 0)) for m in found)
        rows.append(
            {
                "stage": stage,
                "artifacts": len(found),
                "questions": f"{questions:,.0f}" if questions else "-",
                "tokens": f"{tokens:,.0f}",
                "seconds computing": f"{seconds:.1f}",
                "seconds in all": f"{total:.1f}",
                "questions/s": f"{questions / seconds:,.0f}" if questions and seconds else "-",
                "tokens/s": f"{tokens / seconds:,.0f}" if seconds else "-",
            }
        )
    return pd.DataFrame(rows)


def knowledge(manifest: Manifest) -> pd.DataFrame:
    columns = ("known_right", "known_wrong", "uncertain", "near_threshold", "set_size")
    domains = dict.fromkeys(name.split("/")[0] for name in manifest.counts if name.endswith("/set_size"))
    return pd.DataFrame(
        [{"domain": d, **{c.replace("_", " "): int(manifest.counts[f"{d}/{c}"]) for c in columns}} for d in domains]
    )


def reliability(found: dict[str, Any]) -> pd.DataFrame:
    """How sure it is that the base model knows what it answers: one row a measure that was asked for."""
    rows = [
        ("expected calibration error", f"{found['ece']:.3f}", "mean distance of confidence and accuracy, ten bins"),
        ("Brier score", f"{found['brier']:.3f}", "squared distance of probabilities and truth, 0 to 2"),
    ]
    for num_choices, row in found["letters"].items():
        about = f"{num_choices} options"
        rows.append((f"spread of recall, {about}", f"{row['recall_std']:.3f}", "standard deviation over the right answer's letter"))
        if "letter_bias" in row:
            rows.append(
                (f"letter bias, {about}", f"{row['letter_bias']:.3f}", "the letters' own pull: 0 none, 1 - 1/options at most")
            )
    if "views" in found:
        rows.append(("agreement of views", f"{found['views']['agreement']:.3f}", "share of orders and draws that predict the same"))
    if "cloze" in found:
        rows.append(("accuracy by the options' text", f"{found['cloze']['accuracy']:.3f}", "likeliest text for its length"))
        rows.append(("agreement of text and letter", f"{found['cloze']['agreement']:.3f}", "share of questions"))
    for name, grades in (("choice", found.get("grades")), ("free", found.get("free", {}).get("grades"))):
        rows += [(f"{grade}, {name} questions", f"{count:,}", "SliCK's grade") for grade, count in (grades or {}).items()]
    if "free" in found:
        rows.append(("exact match, free questions", f"{found['free']['exact_match']:.3f}", f"of {found['free']['questions']:,}"))
        rows.append(("F1, free questions", f"{found['free']['f1']:.3f}", "over tokens, best alias"))
    return pd.DataFrame(rows, columns=["measure", "value", "what it is"])


def part_seconds(sources: Sources) -> dict[str, float]:
    """Seconds by part of the run, in the order of the stages."""
    parts: dict[str, float] = {}
    for stage, manifests in sources.manifests.items():
        if stage == "train":
            launched = sources.run_seconds.get("train", {})
            parts["train: tokenise"] = launched.get("tokenise", 0.0)
            parts["train: launch, imports"] = launched.get("launch_and_imports", 0.0)
            for name in TRAIN_PARTS:
                parts[f"train: {name}"] = sum(m.seconds.get(name, 0.0) for m in manifests)
        elif stage in ("probe", "evaluate"):
            parts[f"{stage}: engine start"] = sum(m.seconds["engine_start"] for m in manifests)
            if stage == "evaluate":
                parts["evaluate: new weights"] = sum(m.seconds["load_weights"] for m in manifests)
            parts[f"{stage}: scoring"] = sum(m.seconds["scoring"] for m in manifests)
        else:
            parts[stage] = sum(m.seconds["total"] for m in manifests)
    return parts


def live_share(manifests: list[Manifest]) -> str:
    """Share of the arms' training time that live knowledge took."""
    asked = sum(m.seconds.get("live", 0.0) for m in manifests)
    return f"{asked / (asked + sum(m.seconds['steps'] for m in manifests)):.1%}"


def loss_curves(train: Path, arms: list[Arm]) -> dict[str, list[float]]:
    curves = {}
    for arm in arms:
        lines = (train / arm.name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        curves[arm.name] = [json.loads(line)["loss"] for line in lines]
    return curves


def _html(table: pd.DataFrame) -> str:
    return table.to_html(index=False, border=0, na_rep="-", float_format=lambda value: f"{value:.3f}")


def page(config: Config, sources: Sources, asked: pd.DataFrame) -> str:
    """`asked`: the table of live knowledge."""
    arms, settings, comparisons, base = (
        pd.read_csv(sources.tables / f"{n}.csv") for n in ("arms", "settings", "comparisons", "base")
    )
    domains = list(dict.fromkeys(settings.domain))
    overall = "all" if "all" in domains else domains[0]
    shown = comparisons.copy()
    shown["comparison"] = [f"{plots.SHORT[a]} - {plots.SHORT[b]}" for a, b in zip(shown["first"], shown["second"], strict=True)]
    shown["difference, points"] = [interval_text(row, "difference") for _, row in shown.iterrows()]
    shown = shown[shown.domain == overall][["comparison", "group", "questions", "seeds", "difference, points"]]
    probe = sources.manifests["probe"][0]
    text = (resources.files("ift_scale.report") / "page.html.j2").read_text(encoding="utf-8")
    return (
        Environment(autoescape=False)
        .from_string(text)
        .render(
            title=Path(config.output_dir).name,
            subtitle=f"{config.model.path} | {len(sources.arms)} arms | made {probe.created[:10]} on {probe.machine}",
            findings=findings(comparisons, base, sources.chance),
            num_seeds=len(config.construct.seeds),
            num_domains=len(set(arms.domain)),
            probed=f"{sources.knowledge['questions']:,}",
            level=round(config.analyse.confidence_level * 100),
            main_table=_html(wide_accuracy(settings, base, [overall])),
            comparison_table=_html(shown),
            knowledge_table=_html(knowledge(sources.manifests["construct"][0])),
            reliability_table=_html(reliability(sources.knowledge)),
            throughput_table=_html(throughput(sources.manifests)),
            domain_table=_html(wide_accuracy(settings, base, [d for d in domains if d != overall] or [overall])),
            versions=", ".join(f"{name} {version}" for name, version in probe.versions.items())
            + f" | commit {probe.commit or 'unknown'}",
            config_yaml=resolved_yaml(config),
            letter_mass_base=f"{probe.counts['mean_letter_mass']:.3f}",
            letter_mass_arms=f"{arms.letter_mass.mean():.3f}",
            csv_files=["arms.csv", "settings.csv", "comparisons.csv", "base.csv"] + [live.FILE] * bool(len(asked)),
            live_share=live_share(sources.manifests["train"]),
            plots={
                "accuracy": plots.accuracy(settings, arms, base, sources.chance),
                "differences": plots.differences(comparisons) if len(comparisons) else "",
                "consistency": plots.measure(settings, "consistency", "rank correlation"),
                "kl": plots.measure(settings, "kl", "KL, nats"),
                "scatter": plots.consistency_against_accuracy(arms),
                "losses": plots.losses(loss_curves(sources.train, sources.arms), {a.name: a.setting for a in sources.arms}),
                "live": plots.live(asked) if len(asked) else "",
                "live_grades": plots.live_grades(asked) if live.graded(asked) else "",
                "calibration": plots.calibration(sources.knowledge["calibration"]),
                "letters": plots.letters(sources.knowledge["letters"]),
                "seconds": plots.stage_seconds(part_seconds(sources)),
            },
        )
    )


def run(config: Config, folder: Path, key: str, inputs: dict[str, str], sources: Sources) -> None:
    started = time.monotonic()
    with artifacts.atomic_folder(folder) as temporary:
        asked = live.table(sources.train, sources.arms)
        (temporary / PAGE).write_text(page(config, sources, asked), encoding="utf-8")
        if len(asked):
            asked.to_csv(temporary / live.FILE, index=False)
        for file in sorted(sources.tables.glob("*.csv")):
            shutil.copy(file, temporary / file.name)
        seconds = {"total": time.monotonic() - started}
        artifacts.write_manifest(temporary, "report", key, {}, inputs, {"arms": len(sources.arms)}, seconds)
