"""The amount of work of each stage of a variant, and which of it another variant shares.

Before construct, the sizes of sets are unknown. They are bounded by the pools' train questions,
divided among the kinds of questions that the settings draw from. After construct they are counted.
Equal keys mean that two variants need the same artifact, which is made once. For files that do not
exist yet, the keys here contain less than the pipeline's: arms counted as shared are shared, and
arms that may turn out equal are reported as such.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ift_scale.config import Config, ConstructConfig, TrainConfig, precision_in_force
from ift_scale.config.instructions import InstructionSource
from ift_scale.config.train import settings_of_result
from ift_scale.construct import general, official, own
from ift_scale.construct.arms import arms_of
from ift_scale.engines.protocol import identity
from ift_scale.instructions.read import Skipped, read
from ift_scale.io import integrity
from ift_scale.io.manifests import Manifest, digest_of, read_manifest
from ift_scale.plan import asked
from ift_scale.plan.questions import PlannedQuestions, Prompts
from ift_scale.probe.selection import is_probed
from ift_scale.records import Arm
from ift_scale.stage import trained_arm
from ift_scale.train.data.packing import steps_per_epoch
from ift_scale.train.measurement import schedule
from ift_scale.treatments import Derived, buckets_of, dose_of
from ift_scale.write import assignment as writers
from ift_scale.write import needs as writing

_LISTS = {"settings", "sizes", "consistency_ratios", "unknown_ratios", "seeds", "export"}


@dataclass(frozen=True)
class ArmWork:
    """One arm's work.

    `examples`: seen in training, over all epochs. `exact`: True if they were counted, False if
    bounded. `likely`: equal for two variants' arms that may turn out the same, depending on their
    sets' files. `validated`: forward passes without a backward pass: validation examples,
    over all measurements, and those of `train.kl`.
    """

    arm: Arm
    examples: float
    exact: bool
    asked: dict[str, int]
    """Questions by the stage that asks them (`asked.STAGES`)."""
    key: str
    asked_keys: dict[str, str]
    likely: str
    validated: float = 0.0
    derived: Derived | None = None
    """How the arm is made of a trained one, if it is not trained itself."""

    @property
    def train_items(self) -> float:
        """Examples seen, with a third for each forward pass of validation."""
        return self.examples + self.validated / 3


@dataclass(frozen=True)
class Amounts:
    """One variant's work. `texts`: number of texts to write, a maximum unless `texts_exact`."""

    name: str
    config: Config
    parameters: int
    prompts: Prompts
    num_probed: int
    num_free: int
    """Free questions among them."""
    probe_key: str
    texts: int
    texts_exact: bool
    write_key: str
    arms: tuple[ArmWork, ...]
    base_asked: dict[str, int]
    """Questions that the base model is asked, by stage."""
    base_keys: dict[str, str]

    @property
    def root(self) -> Path:
        """The variant's folder."""
        return Path(self.config.output_dir)

    @property
    def prompt_tokens(self) -> float:
        """Tokens of all prompts of the probe."""
        of_choice = self.prompts.views * self.prompts.tokens + self.prompts.cloze
        num_choice = self.num_probed - self.num_free
        return num_choice * of_choice + self.num_free * self.prompts.free


class FirstUse:
    """Remembers which keys have been seen."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def first(self, key: str) -> bool:
        """True at the first call with `key`."""
        new = key not in self._seen
        self._seen.add(key)
        return new


def own_arms(study: Sequence[Amounts], stage: str) -> list[list[ArmWork]]:
    """Returns for each variant the arms that no earlier variant makes."""
    shared = FirstUse()
    return [
        [
            work
            for work in one.arms
            if stage == "train" or stage in work.asked
            if shared.first(work.key if stage == "train" else work.asked_keys[stage])
        ]
        for one in study
    ]


def amounts_of(
    name: str, config: Config, parameters: int, tally: PlannedQuestions, prompts: Prompts
) -> Amounts:
    """Returns the work of a variant. `parameters`: of its base model."""
    probe_key = digest_of(
        [
            config.questions.model_dump(),
            config.model.model_dump(),
            identity(config.probe, config.model.dtype),
        ]
    )
    write_key = digest_of([writers.settings_of(config), probe_key])
    texts, exact = _texts(config, tally)
    arms = tuple(_arms(config, tally, probe_key, write_key))
    of_base = asked.of_base(
        config,
        tally.count,
        [work.arm for work in arms],
        {trained_arm(work.arm).name: work.asked.get("learnt", 0) for work in arms},
    )
    domains = sorted({domain for work in arms for domain in work.arm.own_domains})
    return Amounts(
        name,
        config,
        parameters,
        prompts,
        tally.count(lambda group: is_probed(config.probe, group)),
        tally.count(lambda group: is_probed(config.probe, group) and group.kind == "free"),
        probe_key,
        texts,
        exact,
        write_key,
        arms,
        of_base,
        {
            stage: digest_of(
                [
                    config.model.model_dump(),
                    asked.settings_of(config, stage),
                    domains if stage == "evaluate" else _sets(config, probe_key, write_key),
                ]
            )
            for stage in of_base
        },
    )


def _texts(config: Config, tally: PlannedQuestions) -> tuple[int, bool]:
    """Returns (number of texts that models write, True if it is exact).

    At most one of each kind, target and author is written per train question. After the write stage
    they are counted.
    """
    written = read_manifest(Path(config.output_dir) / "write")
    if written is not None and "texts" in written.counts:
        return int(written.counts["texts"]), True
    kinds = {
        (requirement.kind, requirement.target, requirement.author)
        for requirement in writing.requirements(config)
        if getattr(
            config.write, writing.Need("", requirement.kind, None, requirement.author).role
        ).kind
        != "dataset"
    }
    return len(kinds) * sum(_pool(config.construct, tally).values()), not kinds


def _pool(construct: ConstructConfig, tally: PlannedQuestions) -> dict[str, int]:
    """Returns the number of train questions that sets can use, by domain."""
    sizes: dict[str, int] = {}
    for group, count in tally.groups.items():
        in_pool = (group.collection, group.split, group.kind) == (
            "pool",
            "train",
            construct.questions,
        )
        if in_pool and (construct.domains is None or group.domain in construct.domains):
            sizes[group.domain] = sizes.get(group.domain, 0) + count
    return sizes


def largest_set(construct: ConstructConfig, num_questions: int) -> int:
    """Returns the maximum number of examples of a domain's set, general instructions included.

    Settings that draw from questions known right and known wrong, or from several grades, divide
    the pool among them, and all sets have the same size.
    """
    drawn = {bucket for setting in construct.all_settings() for bucket in buckets_of(setting)}
    sides = len(drawn & {"right"}) + bool(drawn & {"wrong", "mistaken"})
    grades = len(drawn & {"HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"})
    size = num_questions // max(1, sides, grades)
    return _with_general(construct, min(size, construct.size or size))


def _general_share(construct: ConstructConfig) -> float:
    return 0.0 if general.path_of(construct.general) is None else construct.general.share


def _with_general(construct: ConstructConfig, size: int) -> int:
    share = _general_share(construct)
    return size + round(size * share / (1 - share))


def _sizes(
    config: Config, tally: PlannedQuestions, arms: Sequence[Arm], constructed: Manifest | None
) -> dict[str, tuple[int, bool]]:
    """Returns (examples, True if counted) of each arm's set."""
    construct = config.construct
    pool = _pool(construct, tally)
    released = official.load(Path(construct.official)) if construct.official else None
    sizes = {}
    for arm in arms:
        file = Path(config.output_dir) / "construct" / f"{arm.name}.jsonl"
        if constructed is not None and f"{arm.name}.jsonl" in constructed.files and file.is_file():
            integrity.check(file.parent, (file.name,))
            sizes[arm.name] = _num_lines(file), True
        elif (data := own.set_of(arm, construct)) is not None:
            sizes[arm.name] = own.num_examples(data), True
        elif released is not None:
            sizes[arm.name] = _with_general(construct, len(released[arm.domain][arm.setting])), True
        else:
            largest = min(largest_set(construct, pool[domain]) for domain in arm.own_domains)
            size = dose_of(arm.setting).size
            bound = largest if size is None else min(largest, _with_general(construct, size))
            sizes[arm.name] = bound, False
    return sizes


def _num_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def validation_work(train: TrainConfig, size: int, num_in_file: int) -> tuple[float, float]:
    """Returns (examples of an epoch, validation examples over all measurements) of an arm.

    `size`: examples of its set; `num_in_file`: of the validation file. Examples count as equally
    long, and a share holds out that share exactly.
    """
    validation, num_measured = train.validation, float(num_in_file)
    if validation.share is not None:
        num_measured = validation.share * size
        size = size - round(num_measured)
    if not num_measured or not size:
        return size, 0.0
    epoch_steps = steps_per_epoch(size, train.global_batch_size)
    num_steps, every = train.epochs * epoch_steps, validation.every
    if every == "auto":
        cost = train.epochs * size
        every = schedule.at_least_each_epoch(num_measured, cost, num_steps, epoch_steps)
    return size, num_measured * schedule.num_measurements(every, num_steps)


def _kl_work(train: TrainConfig, size: float) -> float:
    """Returns the forward passes of `train.kl` for an arm with `size` examples per epoch.

    A general text counts as an example that is trained on (three passes). A frozen copy computes
    every example in every epoch, the cache once, and each text in every step.
    """
    kl = train.kl
    steps = train.epochs * steps_per_epoch(round(size), train.global_batch_size)
    texts = kl.text.batch_size * steps if kl.text is not None else 0
    base = 0.0
    if kl.is_on:
        passes = train.epochs if kl.copies_base else 1
        base = passes * size * (kl.weight > 0) + texts * kl.copies_base
    return 3 * texts + base


def _num_in_validation_file(train: TrainConfig) -> int:
    path = train.validation.path
    return 0 if path is None else sum(1 for _ in read(InstructionSource(path=path), Skipped()))


def _arms(config: Config, tally: PlannedQuestions, probe_key: str, write_key: str) -> list[ArmWork]:
    arms = arms_of(config, tally.groups)
    constructed = read_manifest(Path(config.output_dir) / "construct")
    trained_arms = [arm for arm in arms if trained_arm(arm) == arm]
    sizes = _sizes(config, tally, trained_arms, constructed)
    settings = settings_of_result(config.train)
    how = [
        settings,
        precision_in_force(config.train),
        config.evaluate.template,
        config.model.model_dump(),
    ]
    sets = _sets(config, probe_key, write_key)
    work = []
    num_in_file = _num_in_validation_file(config.train)
    for arm in arms:
        trained, kind = trained_arm(arm), dose_of(arm.setting).kind
        file = f"{trained.name}.jsonl"
        set_key = (
            constructed.files[file]
            if constructed is not None and file in constructed.files
            else _set_key(config, probe_key, write_key)
        )
        key = digest_of([set_key, how, arm.model_dump()])
        size, exact = sizes[trained.name]
        num_trained, validated = validation_work(config.train, size, num_in_file)
        validated += _kl_work(config.train, num_trained)
        if kind is not None:
            num_trained, validated = 0, 0.0
        items = round(size * (1 - _general_share(config.construct)))
        of_arm = asked.of_arm(config, tally.count, arm, items)
        likely = digest_of([how, arm.model_dump(), probe_key])
        work.append(
            ArmWork(
                arm,
                num_trained * config.train.epochs,
                exact,
                of_arm,
                key,
                {
                    # Probes are fitted on questions that no set of the run has.
                    stage: digest_of(
                        [key, asked.settings_of(config, stage), sets if stage == "hidden" else None]
                    )
                    for stage in of_arm
                },
                likely,
                validated,
                kind,
            )
        )
    return work


def _sets(config: Config, probe_key: str, write_key: str) -> list[object]:
    """Returns what all future sets of a variant depend on."""
    return [probe_key, write_key, config.construct.model_dump()]


def _set_key(config: Config, probe_key: str, write_key: str) -> str:
    """Returns a digest of what a future set depends on, apart from its arm.

    The other settings of its variant matter too: without a fixed size, they determine it by the
    kinds of questions they draw from, and they determine what can be matched.
    """
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
