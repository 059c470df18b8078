"""Opens the runs that a command works on: locks the folder, and connects the ranks if several.

In: a configuration file and the command's options. Out: one `Pipeline` per run or variant.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ift_scale.config import Config, resolved_yaml
from ift_scale.config.file import load_study
from ift_scale.io.files import remove_incomplete, write_text
from ift_scale.io.locks import locked
from ift_scale.io.manifests import digest_of, remove_merged_shards
from ift_scale.io.progress import say
from ift_scale.ranks import environment
from ift_scale.ranks.environment import Ranks
from ift_scale.stages import STAGES

if TYPE_CHECKING:
    from ift_scale.pipeline import Pipeline


def open_runs(
    config: str,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    on_ranks: bool = False,
    part: tuple[int, int] | None = None,
) -> Iterator["AbstractContextManager[Pipeline]"]:
    """Yields the run of CONFIG, or those of its variants in order, each to be opened by `with`.

    `only`: names of variants, all if empty. `on_ranks`: a launcher may have started the command as
    several ranks; rank 0 locks the folder, and the others work in it. `part`: (number, of), the
    part of the arms; the folder is then shared with the commands for the other parts.
    """
    ranks = ranks_here(on_ranks)
    study = load_study(config, overrides)
    for name in only:
        if name not in study.variants:
            raise click.UsageError(
                f"--variant {name}: {config} has {', '.join(study.variants) or 'no variants'}"
            )
    for name, variant in study.variants.items():
        if only and name not in only:
            continue
        say(f"variant {name}")
        siblings = [Path(v.output_dir) for v in study.variants.values() if v is not variant]
        yield open_run(variant, ranks, siblings, part)
    if not study.variants:
        yield open_run(study.config, ranks, [], part)


def ranks_here(on_ranks: bool) -> Ranks | None:
    """Returns the ranks that a launcher has started; click.UsageError unless `on_ranks`."""
    ranks = environment.from_environment()
    if ranks is not None and ranks.world_size > 1 and not on_ranks:
        names = ", ".join(stage.name for stage in STAGES if stage.on_ranks)
        raise click.UsageError(
            f"this command is a single process, but a launcher has started {ranks.world_size}; "
            f"only {names} share their work among ranks, and --ray starts its own"
        )
    return ranks


@contextmanager
def open_run(
    config: Config, ranks: Ranks | None, siblings: list[Path], part: tuple[int, int] | None
) -> "Iterator[Pipeline]":
    """Opens one run: locks its folder, connects the ranks, and writes its settings there."""
    # Imported after the configuration is known to be valid, so that errors in it appear at once.
    from ift_scale.pipeline import Pipeline
    from ift_scale.ranks.rendezvous import meet
    from ift_scale.stage import Part

    several = ranks is not None and ranks.world_size > 1
    root = Path(config.output_dir)
    rendezvous = meet(ranks, root) if ranks is not None and several else None
    resolved = resolved_yaml(config)
    own_part = None if part is None else Part(*part)
    pipeline = Pipeline(config, ranks, siblings, own_part, rendezvous)
    if rendezvous is not None:
        rendezvous.check(digest_of([resolved, part]), root)
        if not pipeline.context.is_rank_zero:
            rendezvous.receive()  # waits until rank 0 has locked the folder
            yield pipeline
            return
    with ExitStack() as held:
        with rendezvous.leading() if rendezvous is not None else nullcontext():
            held.enter_context(locked(root, shared=part is not None))
            if not several and part is None:  # otherwise others may already be writing
                remove_incomplete(root)
                remove_merged_shards(root)
            write_text(root / "config.yaml", resolved)
        if rendezvous is not None:
            rendezvous.broadcast("")
        yield pipeline
