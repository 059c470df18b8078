"""How much work each stage of a variant is, and which of it another variant does too.

Before construct the sizes of sets are not known: they are bounded by the pools' train questions, shared out among the kinds of
questions that the settings draw from. After it they are counted. Equal keys say that two variants need the same artifact, which is
made once; the keys here hold less than the pipeline's own where files are not there yet, so that what is called shared is shared,
and what may turn out so is called so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ift_scale.config import Config, ConstructConfig, precision_in_force
from ift_scale.config.train import settings_of_result
from ift_scale.construct import general, official
from ift_scale.construct.arms import arms_of
from ift_scale.engines.protocol import identity
from ift_scale.evaluate.groups import is_asked
from ift_scale.io.manifests import Manifest, digest_of, read_manifest
from ift_scale.plan.questions import Prompts, Tally
from ift_scale.probe.asked import wanted
from ift_scale.records import Arm
from ift_scale.scoring.question_file import GroupKey
from ift_scale.treatments import buckets_of
from ift_scale.write import deal as writers
from ift_scale.write import needs as writing

_LISTS = {"settings", "consistency_ratios", "unknown_ratios", "seeds", "export"}


@dataclass(frozen=True)
class ArmWork:
    """One arm. `examples`: seen in training, over all epochs; `exact`: counted, not bounded. `likely`: equal where two variants'
    arms may come out the same, which only their sets' files can say."""

    arm: Arm
    examples: float
    exact: bool
    questions: int
    key: str
    evaluate_key: str
    likely: str


@dataclass(frozen=True)
class Amounts:
    """One variant's work. `prompt_tokens` of the probe, `texts` to be written at most or (where exact) in all."""

    name: str
    config: Config
    parameters: int
    prompts: Prompts
    asked: int
    probe_key: str
    texts: int
    texts_exact: bool
    write_key: str
    arms: tuple[ArmWork, ...]

    @property
    def root(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def prompt_tokens(self) -> float:
        return self.asked * self.prompts.views * self.prompts.tokens


def amounts_of(
    name: str, config: Config, parameters: int, tally: Tally, prompts: Prompts
) -> Amounts:
    probe_key = digest_of(
        [
            config.questions.model_dump(),
            config.model.model_dump(),
            identity(config.probe, config.model.dtype),
        ]
    )
    write_key = digest_of([writers.settings_of(config), probe_key])
    texts, exact = _texts(config, tally)
    return Amounts(
        name,
        config,
        parameters,
        prompts,
        tally.count(lambda group: wanted(config.probe, group)),
        probe_key,
        texts,
        exact,
        write_key,
        tuple(_arms(config, tally, probe_key, write_key)),
    )


def _texts(config: Config, tally: Tally) -> tuple[int, bool]:
    """Texts that models write: at most one of each kind, target and author for every train question; counted where there."""
    written = read_manifest(Path(config.output_dir) / "write")
    if written is not None and "texts" in written.counts:
        return int(written.counts["texts"]), True
    kinds = {
        (wish.kind, wish.target, wish.author)
        for wish in writing.wishes(config.construct)
        if getattr(config.write, writing.Need("", wish.kind, None, wish.author).role).kind
        != "dataset"
    }
    return len(kinds) * sum(_pool(config.construct, tally).values()), not kinds


def _pool(construct: ConstructConfig, tally: Tally) -> dict[str, int]:
    """Train questions of each domain that sets are drawn from."""
    found: dict[str, int] = {}
    for group, count in tally.groups.items():
        in_pool = (group.collection, group.split, group.kind) == (
            "pool",
            "train",
            construct.questions,
        )
        if in_pool and (construct.domains is None or group.domain in construct.domains):
            found[group.domain] = found.get(group.domain, 0) + count
    return found


def largest_set(construct: ConstructConfig, num_questions: int) -> int:
    """Examples of a domain's set, general instructions included, at most: settings that draw from questions known right and known
    wrong, or from several grades, share the pool between them, and all sets have one size."""
    drawn = {bucket for setting in construct.all_settings() for bucket in buckets_of(setting)}
    sides = len(drawn & {"right"}) + bool(drawn & {"wrong", "mistaken"})
    grades = len(drawn & {"HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"})
    size = num_questions // max(1, sides, grades)
    return _with_general(construct, min(size, construct.size or size))


def _with_general(construct: ConstructConfig, size: int) -> int:
    if general.path_of(construct.general) is None:
        return size
    share = construct.general.share
    return size + round(size * share / (1 - share))


def _sizes(
    config: Config, tally: Tally, arms: Sequence[Arm], constructed: Manifest | None
) -> dict[str, tuple[int, bool]]:
    """(examples, whether counted) of each arm's set."""
    construct = config.construct
    pool = _pool(construct, tally)
    released = official.load(Path(construct.official)) if construct.official else None
    found = {}
    for arm in arms:
        file = Path(config.output_dir) / "construct" / f"{arm.name}.jsonl"
        if constructed is not None and f"{arm.name}.jsonl" in constructed.files and file.is_file():
            found[arm.name] = _num_lines(file), True
        elif released is not None:
            found[arm.name] = _with_general(construct, len(released[arm.domain][arm.setting])), True
        else:
            found[arm.name] = (
                min(largest_set(construct, pool[domain]) for domain in arm.own_domains),
                False,
            )
    return found


def _num_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _arms(config: Config, tally: Tally, probe_key: str, write_key: str) -> list[ArmWork]:
    arms = arms_of(config, tally.groups)
    constructed = read_manifest(Path(config.output_dir) / "construct")
    sizes = _sizes(config, tally, arms, constructed)
    settings = settings_of_result(config.train)
    how = [
        settings,
        precision_in_force(config.train),
        config.evaluate.template,
        config.model.model_dump(),
    ]
    asked = [
        identity(config.evaluate, config.model.dtype),
        config.questions.model_dump(),
        config.construct.refusal,
    ]
    found = []
    for arm in arms:
        file = f"{arm.name}.jsonl"
        made = (
            constructed.files[file]
            if constructed is not None and file in constructed.files
            else _set_key(config, probe_key, write_key)
        )
        key = digest_of([made, how, arm.model_dump()])
        size, exact = sizes[arm.name]
        questions = tally.count(partial(_asked, arm, config.evaluate.generate))
        likely = digest_of([how, arm.model_dump(), probe_key])
        found.append(
            ArmWork(
                arm,
                size * config.train.epochs,
                exact,
                questions,
                key,
                digest_of([key, asked]),
                likely,
            )
        )
    return found


def _asked(arm: Arm, generate: bool, group: GroupKey) -> bool:
    return is_asked(arm, generate, group)


def _set_key(config: Config, probe_key: str, write_key: str) -> str:
    """What a set that is not there yet depends on, beside its arm. The other settings of its variant decide about its size by the
    kinds of questions that they draw from, where no size is set, and about what can be matched."""
    construct = config.construct
    parts: list[object] = [probe_key, write_key, construct.model_dump(exclude=_LISTS)]
    if construct.size is None:
        parts.append(
            sorted(
                {bucket for setting in construct.all_settings() for bucket in buckets_of(setting)}
            )
        )
    if construct.matching.by_selection:
        parts.append(sorted(construct.all_settings()))
    return digest_of(parts)
