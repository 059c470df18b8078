"""The arms of a run: the sets that the configuration requests, from pools or from the release."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ift_scale.config import Config
from ift_scale.config.construct import ConstructConfig
from ift_scale.construct import official, official_rules
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.records import Arm
from ift_scale.scoring.question_file import GroupKey
from ift_scale.stage import with_derived
from ift_scale.treatments import POOLED, Dose


def arms_of(config: Config, groups: Iterable[GroupKey]) -> list[Arm]:
    """Returns the arms that the configuration requests, those derived from a trained arm included.

    Raises DataError for a domain without pool or without a released set, and if no arm is left.
    """
    groups = list(groups)
    trained = [*_constructed(config.construct, groups), *_own_arms(config.construct, groups)]
    return with_derived(trained, config.train)


def _own_arms(settings: ConstructConfig, groups: Sequence[GroupKey]) -> list[Arm]:
    """Returns the arms of the users' own sets; without a domain, their own is that of all pools."""
    pools = tuple(dict.fromkeys(group.domain for group in groups if group.collection == "pool"))
    return [
        Arm(
            domain=own.domain or POOLED,
            setting=own.name,
            seed=seed,
            domains=() if own.domain else pools,
        )
        for own in settings.sets
        for seed in settings.seeds
    ]


def _constructed(settings: ConstructConfig, groups: Sequence[GroupKey]) -> list[Arm]:
    """Returns the arms of the sets that are built from pools. DataError as for `arms_of`."""
    if not settings.all_settings():
        return []
    source = (
        ("pool", "test", "choice") if settings.official else ("pool", "train", settings.questions)
    )
    known = list(
        dict.fromkeys(g.domain for g in groups if (g.collection, g.split, g.kind) == source)
    )
    available = official.available(Path(settings.official)) if settings.official else None
    if available is not None:
        known = [domain for domain in known if domain in available]
    domains = settings.domains or known
    for domain in domains:
        if domain not in known:
            problem = f"no source has {source[1]} questions of this domain" + (
                ", or the release has no set of it" if available else ""
            )
            remedy = did_you_mean(domain, known)
            raise DataError(Place("construct.domains"), problem, remedy, domain)
    combinations: list[tuple[str, tuple[str, ...]]] = [(domain, ()) for domain in domains]
    if settings.across_domains:
        if len(domains) < 2:
            raise DataError(
                Place("construct.across_domains"),
                "requires at least two domains",
                "Add pools, or set it to false",
                domains,
            )
        combinations.append((POOLED, tuple(domains)))
    arms = [
        Arm(domain=domain, setting=Dose(setting, size).setting, seed=seed, domains=parts)
        for domain, parts in combinations
        for setting in settings.all_settings()
        for size in (None, *settings.sizes)
        for seed in settings.seeds
        if available is None or setting in available[domain]
    ]
    if not arms:
        raise DataError(
            Place("construct"),
            "no set can be built",
            "Add a pool for a domain that has sets, or choose other settings",
        )
    return arms


def released(config: ConstructConfig, arms: Iterable[Arm]) -> official.Sets:
    """Returns the released sets of the arms' domains; DataError if one breaks the paper's rules."""
    folder = Path(str(config.official))
    domains = {domain for arm in arms for domain in arm.own_domains}
    sets = {domain: rows for domain, rows in official.load(folder).items() if domain in domains}
    official_rules.check({folder: sets})
    return sets
