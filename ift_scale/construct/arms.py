"""The arms of a run: which sets the configuration asks for, built from pools or taken from the authors' release."""

from collections.abc import Iterable
from pathlib import Path

from ift_scale.config import Config, ConstructConfig
from ift_scale.construct import official, official_rules
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.records import Arm
from ift_scale.scoring.question_file import GroupKey
from ift_scale.treatments import POOLED


def arms_of(config: Config, groups: Iterable[GroupKey]) -> list[Arm]:
    """The arms that the configuration asks for; DataError for a domain that no pool has, or that has no such set."""
    settings = config.construct
    wanted = (
        ("pool", "test", "choice") if settings.official else ("pool", "train", settings.questions)
    )
    known = list(
        dict.fromkeys(g.domain for g in groups if (g.collection, g.split, g.kind) == wanted)
    )
    released = official.available(Path(settings.official)) if settings.official else None
    if released is not None:
        known = [domain for domain in known if domain in released]
    domains = settings.domains or known
    for domain in domains:
        if domain not in known:
            lacks = f"no source has {wanted[1]} questions of it" + (
                ", or the release has no set" if released else ""
            )
            raise DataError(Place("construct.domains"), lacks, did_you_mean(domain, known), domain)
    places: list[tuple[str, tuple[str, ...]]] = [(domain, ()) for domain in domains]
    if settings.across_domains:
        if len(domains) < 2:
            raise DataError(
                Place("construct.across_domains"),
                "there is one domain only",
                "Add pools, or set it to false",
                domains,
            )
        places.append((POOLED, tuple(domains)))
    arms = [
        Arm(domain=domain, setting=setting, seed=seed, domains=parts)
        for domain, parts in places
        for setting in settings.all_settings()
        for seed in settings.seeds
        if released is None or setting in released[domain]
    ]
    if not arms:
        raise DataError(
            Place("construct"),
            "no set can be made",
            "Give a pool whose domain the sets have, or other settings",
        )
    return arms


def released(config: ConstructConfig, arms: Iterable[Arm]) -> official.Sets:
    """The authors' sets of the arms' domains; DataError if one of them breaks the paper's rules."""
    folder = Path(str(config.official))
    wanted = {domain for arm in arms for domain in arm.own_domains}
    sets = {domain: found for domain, found in official.load(folder).items() if domain in wanted}
    official_rules.check({folder: sets})
    return sets
