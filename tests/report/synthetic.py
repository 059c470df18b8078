"""The files of a synthetic finished run, complete or reduced."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ift_scale.config.file import from_dict
from ift_scale.io.manifests import Manifest
from ift_scale.records import GRADES, Arm, Question
from ift_scale.report.facts import Facts, ReportInputs
from ift_scale.treatments import POOLED, consistency_ratio, unknown_ratio

DOMAINS = ("medicine", "history", "engineering", "jurisprudence")
MIXTURES = tuple(f"mixture-{ratio}" for ratio in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8))
SETTINGS = (
    "harmonious",
    "incompatible",
    "self_aligning",
    "contextualized",
    "refuse_unknown",
    *MIXTURES,
)
HOSTILE = "<script>alert('x')</script> Which of A & B?"

KNOWLEDGE = {
    "questions": 1280,
    "ece": 0.1,
    "brier": 0.5,
    "letters": {"4": {"recall": [0.5, 0.4, None, 0.3], "recall_std": 0.08}},
    "calibration": [
        {"questions": 3, "confidence": 0.4, "accuracy": 1 / 3},
        {"questions": 9, "confidence": 0.9, "accuracy": 0.8},
    ],
}
WRITTEN = {
    "texts": 90.0,
    "failed": 12.0,
    "written_anew": 7.0,
    "explanation/dataset": 60.0,
    "explanation/base_model": 30.0,
    "explanation/dataset/contradicts the target": 4.0,
    "explanation/base_model/does not name the target": 8.0,
}
DUPLICATES = [
    {
        "cell": "pool/medicine/train",
        "in": "benchmark/medicine/test",
        "items": 3,
        "of": 160,
        "exact_items": 2,
        "near_items": 1,
        "same_text_items": 0,
    },
]


def _effect(setting: str, group: str) -> float:
    ratio = consistency_ratio(setting)
    if ratio is not None:
        return 0.26 + {"HOMO": 0.25, "ID": 0.27}.get(group, 0.24) * (1.6 * ratio - 0.75 * ratio**2)
    return {"harmonious": 0.55, "contextualized": 0.4, "refuse_unknown": 0.5}.get(setting, 0.45)


def _with_ends(name: str, value: float, half: float) -> dict[str, float]:
    least, most = (0.0, 1.0) if name.startswith("accuracy") else (-np.inf, np.inf)
    return {
        name: value,
        f"{name}_low": max(value - half, least),
        f"{name}_high": min(value + half, most),
    }


def tables(
    domains: tuple[str, ...],
    settings: tuple[str, ...],
    seeds: tuple[int, ...],
    groups: tuple[str, ...],
) -> dict[str, pd.DataFrame]:
    """The four tables that every run has."""
    rng = np.random.default_rng(0)
    arms, means, base = [], [], []
    for domain in domains:
        shift = rng.normal(0, 0.04)
        for group in groups:
            base.append(
                {
                    "domain": domain,
                    "group": group,
                    "questions": 100,
                    **_with_ends("accuracy", 0.58 + shift, 0.07),
                    "confidence": 0.9,
                }
            )
        for setting in settings:
            for group in groups:
                here = []
                for seed in seeds:
                    accuracy = float(
                        np.clip(_effect(setting, group) + shift + rng.normal(0, 0.02), 0, 1)
                    )
                    row = {
                        "domain": domain,
                        "setting": setting,
                        "seed": seed,
                        "group": group,
                        "questions": 100,
                    }
                    row |= _with_ends("accuracy", accuracy, 0.09)
                    row |= {
                        "consistency": accuracy + rng.normal(0, 0.03),
                        "kl": 1.1 - accuracy + rng.normal(0, 0.05),
                    }
                    here.append(row | {"agreement": accuracy + 0.1, "letter_mass": 0.99})
                arms += here
                row = {
                    "setting": setting,
                    "domain": domain,
                    "group": group,
                    "seeds": len(seeds),
                    "questions": 100,
                }
                row |= {"domains": 1, "of_domains": len(domains), "over": domain}
                row |= {"interval_over": "seeds and questions" if len(seeds) > 1 else "questions"}
                row["ratio"] = (
                    consistency_ratio(setting)
                    if unknown_ratio(setting) is None
                    else unknown_ratio(setting)
                )
                for name in ("accuracy", "consistency", "kl", "agreement"):
                    row |= _with_ends(name, float(np.mean([r[name] for r in here])), 0.06)
                means.append(row)
    own = [domain for domain in domains if domain != POOLED]
    frame = pd.DataFrame(means)
    if len(own) > 1:
        whole = (
            frame[frame.domain.isin(own)]
            .groupby(["setting", "group"], sort=False)
            .mean(numeric_only=True)
            .reset_index()
        )
        whole = whole.assign(
            domain="all",
            domains=len(own),
            over="; ".join(own),
            interval_over=frame.interval_over.iloc[0],
        )
        frame = pd.concat([frame, whole], ignore_index=True)
    comparisons = []
    value = frame.set_index(["setting", "domain", "group"]).accuracy
    paired = [s for s in settings if not s.startswith("mixture") and s != "incompatible"]
    for first, second in [
        *((s, "incompatible") for s in paired if "incompatible" in settings),
        *combinations(paired, 2),
    ]:
        for domain in dict.fromkeys(frame.domain):
            for group in groups:
                difference = float(value[first, domain, group] - value[second, domain, group])
                row = {
                    "first": first,
                    "second": second,
                    "domain": domain,
                    "group": group,
                    "seeds": len(seeds),
                    "questions": 100,
                }
                row |= _with_ends("difference", difference, 0.06)
                row |= {
                    "questions_low": difference - 0.04,
                    "questions_high": difference + 0.04,
                    "excludes_zero": abs(difference) > 0.06,
                }
                row |= {
                    "domains": len(own) if domain == "all" else 1,
                    "of_domains": len(own),
                    "p": float(np.exp(-abs(difference) * 60)),
                }
                row |= {
                    "mcnemar_p": float(np.exp(-abs(difference) * 60)),
                    "holm_p": min(1.0, 9 * float(np.exp(-abs(difference) * 60))),
                }
                comparisons.append(row | {"detectable": 0.085})
    columns = [
        "first",
        "second",
        "domain",
        "group",
        "seeds",
        "questions",
        "difference",
        "difference_low",
        "difference_high",
    ]
    found = pd.DataFrame(comparisons) if comparisons else pd.DataFrame(columns=columns)
    return {
        "arms": pd.DataFrame(arms),
        "settings": frame,
        "comparisons": found,
        "base": pd.DataFrame(base),
    }


def more_tables(made: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Those that a run has by its settings."""
    rng = np.random.default_rng(1)
    settings, out = made["settings"], {}
    transitions, grades, generated, abstention, best = [], [], [], [], []
    for row in settings.to_dict("records"):
        where = {name: row[name] for name in ("setting", "domain", "group")}
        kept = row["accuracy"] * 0.8
        shares = {
            "right_right": kept,
            "right_wrong": max(0.58 - kept, 0),
            "wrong_right": row["accuracy"] - kept,
        }
        transitions.append(where | shares | {"wrong_wrong": 1 - sum(shares.values())})
        for grade, push in [
            ("known right", 0.3),
            ("uncertain", 0),
            ("known wrong", -0.2),
            *((g, 0.2 - i / 8) for i, g in enumerate(GRADES)),
        ]:
            count = 0 if grade == "WeaklyKnown" and row["domain"] == "history" else 30
            reported = _with_ends(
                "accuracy", float(np.clip(row["accuracy"] + push, 0, 1)) if count else np.nan, 0.08
            )
            grades.append(
                where
                | {"grade": grade, "questions": count}
                | reported
                | {"consistency": 0.5 if count else np.nan}
            )
        written = {
            "letter_accuracy": row["accuracy"],
            "generated_accuracy": row["accuracy"] - 0.02,
            "agreement": 0.93,
            "unparsed": 0.01,
        }
        generated.append(where | written)
        refused = 0.3 if row["setting"] == "refuse_unknown" else 0.01
        reported = {
            "refused": refused,
            "refused_known": refused / 3,
            "refused_unknown": refused * 2,
            "answered": 1 - refused,
        }
        reported |= {"f1": refused, "average_precision": row["accuracy"]}
        abstention.append(
            where | reported | _with_ends("accuracy_answered", row["accuracy"] + refused / 3, 0.07)
        )
    mixed = settings[settings.ratio.notna()]
    for (domain, group), part in mixed.groupby(["domain", "group"], sort=False):
        top = part.loc[part.accuracy.idxmax()]
        last = part[part.ratio == 1].accuracy
        others = part[part.ratio < 1]
        other = others.loc[others.accuracy.idxmax()] if len(last) and len(others) else None
        difference = float(other.accuracy - last.iloc[0]) if other is not None else np.nan
        row = {
            "domain": domain,
            "group": group,
            "seeds": top.seeds,
            "best_ratio": top.ratio,
            "accuracy": top.accuracy,
            "difference": difference,
        }
        row |= {"best_other": np.nan if other is None else other.ratio}
        best.append(row | {"low": difference - 0.02, "high": difference + 0.03})
    points = mixed[mixed.domain != "all"][
        ["domain", "setting", "ratio", "group", "consistency", "kl", "accuracy"]
    ]
    out["correlation_points"] = points.assign(base_accuracy=0.58)
    correlation = []
    for measure, rho in (("consistency", 0.8), ("kl", -0.6)):
        for group in dict.fromkeys(settings.group):
            row = {
                "measure": measure,
                "group": group,
                "seeds": mixed.seeds.min(),
                "n": len(points) // 3,
                "rho": rho + rng.normal(0, 0.02),
                "p": 0.0004,
                "rho_within": rho,
                "p_within": 0.001,
            }
            correlation.append(row | {"low": rho - 0.1, "high": rho + 0.1, "reason": None})
    correlation[-1] |= {
        "rho": np.nan,
        "p": np.nan,
        "rho_within": np.nan,
        "p_within": np.nan,
        "low": np.nan,
        "high": np.nan,
        "reason": "kl is the same for every point",
    }
    made_of = {
        "transitions": transitions,
        "grades": grades,
        "generated": generated,
        "abstention": abstention,
        "best_ratio": best,
    }
    return (
        out
        | {name: pd.DataFrame(rows) for name, rows in made_of.items()}
        | {"correlation": pd.DataFrame(correlation)}
    )


def balance(
    domains: tuple[str, ...], settings: tuple[str, ...], seeds: tuple[int, ...]
) -> pd.DataFrame:
    rng, rows = np.random.default_rng(2), []
    for domain in domains:
        for seed in seeds:
            for stage in ("before", "after"):
                for setting in settings:
                    who = {"domain": domain, "seed": seed, "stage": stage, "setting": setting}
                    far = 0.0 if setting == "incompatible" else 1.0 if stage == "before" else 0.15
                    shares = np.array([0.25 + 0.3 * far * rng.random(), 0.25, 0.25, 0.25])
                    for letter, share in zip("ABCD", shares / shares.sum(), strict=True):
                        rows.append(
                            who
                            | {
                                "covariate": "letter",
                                "level": letter,
                                "value": share,
                                "distance": far * 0.2,
                            }
                        )
                    rows.append(
                        who
                        | {"covariate": "author", "level": "dataset", "value": 1.0, "distance": 0.0}
                    )
                    for name, mean in (("confidence", 0.8), ("length", 240.0)):
                        # Responses of equal length have an infinite standardized difference.
                        distance = (
                            np.inf
                            if name == "length" and setting == "self_aligning" and far == 1
                            else far * rng.normal(0.3, 0.1)
                        )
                        for level, value in (
                            ("mean", mean),
                            ("median", mean),
                            ("deviation", mean / 4),
                        ):
                            rows.append(
                                who
                                | {
                                    "covariate": name,
                                    "level": level,
                                    "value": value,
                                    "distance": distance,
                                }
                            )
    return pd.DataFrame(rows)


def manifest(stage: str, counts: dict[str, float], seconds: dict[str, float]) -> Manifest:
    about: dict[str, Any] = {
        "key": "k",
        "config": {},
        "inputs": {},
        "files": {},
        "created": "2026-11-22T10:00:00+00:00",
        "commit": None,
    }
    about |= {"versions": {"python": "3.11.7"}, "machine": "a machine, 2 cores"}
    return Manifest(stage=stage, counts=counts, seconds=seconds, **about)


def questions(
    folder: Path, settings: tuple[str, ...], domains: tuple[str, ...], groups: tuple[str, ...]
) -> Path:
    rng = np.random.default_rng(3)
    texts, rows = [], []
    for number, (domain, group) in enumerate((d, g) for d in domains for g in groups):
        text = HOSTILE if number == 0 else f"What is the remedy for {domain} {number}?"
        record = Question(
            id=f"q{number}",
            domain=domain,
            subject=domain,
            collection="pool",
            split="test",
            question=text,
            choices=["moss", "clover", "<b>mint</b>", "an option of two lines on a phone"],
            answer=2,
        )
        texts.append(record.model_dump_json(exclude_none=True))
        named = {
            setting: None if setting == "refuse_unknown" else int(rng.integers(4))
            for setting in settings
        }
        row = {
            "question_id": record.id,
            "domain": domain,
            "group": group,
            "answer": 2,
            "base_prediction": 1,
            "base_confidence": 0.83,
        }
        rows.append(json.dumps(row | {"predictions": named}))
    (folder / "analyse" / "examples.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "questions.jsonl").write_text("\n".join(texts) + "\n")
    return folder / "questions.jsonl"


def facts(
    folder: Path,
    domains: tuple[str, ...] = DOMAINS,
    settings: tuple[str, ...] = SETTINGS,
    seeds: tuple[int, ...] = (0, 1, 2),
    groups: tuple[str, ...] = ("HOMO", "ID", "OOD"),
    full: bool = True,
) -> Facts:
    """Writes a run's files to `folder` and returns its facts; `full` adds every optional table."""
    (folder / "analyse").mkdir(parents=True)
    arms = [
        Arm(domain=d, setting=s, seed=seed, domains=DOMAINS if d == POOLED else ())
        for d in domains
        for s in settings
        for seed in seeds
    ]
    made = tables(domains, settings, seeds, groups)
    own = [domain for domain in domains if domain != POOLED]
    if full:
        made |= more_tables(made)
        balance(domains, settings, seeds).to_csv(folder / "balance.csv", index=False)
        questions(folder, settings, domains, groups)
    for name, table in made.items():
        table.to_csv(folder / "analyse" / f"{name}.csv", index=False)
    for arm in arms:
        (folder / "train" / arm.name).mkdir(parents=True)
        losses = [{"step": step, "loss": 3 / step + 0.2} for step in range(1, 22)]
        (folder / "train" / arm.name / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in losses)
        )
        if full:
            (folder / "train" / arm.name / "validation.jsonl").write_text(
                "".join(
                    json.dumps({"step": step, "validation_loss": loss}) + "\n"
                    for step, loss in ((0, 3.5), (8, None), (16, 0.9), (21, 1.1))
                )
            )
            kept = {
                "rank_correlation": 0.4,
                "divergence": 0.1,
                "letter_mass": 1.0,
                "questions": 9,
                "seconds": 0.1,
                "share": 0.02,
            }
            known = {
                "HighlyKnown": {"questions": 5, "accuracy": 0.8},
                "Unknown": {"questions": 4, "accuracy": 0.2},
            }
            rows = [
                {"step": s, "accuracy": 0.3 + s / 60 * _effect(arm.setting, "ID"), "grades": known}
                | kept
                for s in (0, 8, 16, 21)
            ]
            (folder / "train" / arm.name / "live.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in rows)
            )
    sizes = {
        f"{d}/{name}": 54.0 + i
        for i, d in enumerate(own)
        for name in ("known_right", "known_wrong", "uncertain", "near_threshold", "set_size")
    }
    scoring = {"engine_start": 12.0, "load_weights": 1.0, "scoring": 11.0, "total": 24.0}
    manifests = {
        "questions": [manifest("questions", {}, {"total": 0.1})],
        "probe": [
            manifest(
                "probe",
                {"computed_questions": 1280, "prompt_tokens": 259120, "mean_letter_mass": 0.9995},
                scoring,
            )
        ],
        "write": [manifest("write", WRITTEN, {"total": 0.3, "writing": 0.2})] if full else [],
        "construct": [manifest("construct", sizes, {"total": 0.2})],
        "train": [
            manifest(
                "train", {"tokens": 18894}, {"build": 0.1, "steps": 1.0, "live": 0.1, "export": 0.2}
            )
            for _ in arms
        ],
        "evaluate": [
            manifest("evaluate", {"computed_questions": 340, "prompt_tokens": 9000}, scoring)
            for _ in arms
        ],
        "analyse": [manifest("analyse", {}, {"total": 2.0})],
    }
    config = from_dict(
        {
            "output_dir": str(folder / "run"),
            "questions": {"sources": [{"kind": "world"}]},
            "probe": {"reliability": {"grades": True, "demonstration_draws": 4}},
            "construct": {
                "settings": list(settings),
                "seeds": list(seeds),
                "matching": {"letters": "reorder"},
            },
        }
    )
    sources = ReportInputs(
        tables=folder / "analyse",
        train=folder / "train",
        arms=arms,
        manifests=manifests,
        run_seconds={"train": {"tokenise": 2.0, "launch_and_imports": 8.0}},
        chance=0.25,
        knowledge=KNOWLEDGE,
        balance=folder / "balance.csv",
        questions=folder / "questions.jsonl",
        audit={"duplicates": DUPLICATES} if full else {},
    )
    return Facts(config, sources)
