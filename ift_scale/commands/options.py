"""Options that several commands have, and how commands report errors. Light imports only."""

import os
import re
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click

from ift_scale.errors import EXIT_STOPPED, IFTScaleError, Stopped, file_error, printable

_RESUMABLE = "Finished work is kept; run the same command to resume."


class ErrorReportingGroup(click.Group):
    """Reports users' errors as one message with its exit code instead of a traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Without `args`, runs the process's own command line, and a stopped one ends the process.

        That leaves out Python's teardown, which takes seconds after large imports.
        """
        try:
            return super().main(args, *rest, **options)
        except SystemExit as ended:
            if args is None and ended.code == EXIT_STOPPED:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(EXIT_STOPPED)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, _stop)
        try:
            return super().invoke(ctx)
        except (IFTScaleError, Stopped) as error:
            click.echo(printable(f"Error: {error}"), err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if (reported := file_error(error)) is None:
                raise
            click.echo(printable(f"Error: {reported}"), err=True)
            ctx.exit(reported.exit_code)
        except KeyboardInterrupt:
            click.echo(f"Stopped. {_RESUMABLE}", err=True)
            ctx.exit(EXIT_STOPPED)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(f"stopped by {signal.Signals(number).name}. {_RESUMABLE}")


set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="a.b=value",
    help="Override a setting of CONFIG; may be repeated.",
)


def config_options(command: Any) -> Any:
    """Adds CONFIG and --set, the same for every command."""
    return click.argument("config", type=click.Path(dir_okay=False))(set_option(command))


variant_option = click.option(
    "--variant",
    "only",
    multiple=True,
    metavar="NAME",
    help="Only this variant of a study; may be repeated.",
)


def ray_options(command: Any) -> Any:
    """Adds --ray and --ray-workers, for stages that Ray may compute."""
    help = (
        "Run on a Ray cluster: at ADDRESS (HOST:PORT), the one found on this node (auto), or one "
        "started for this command (local)."
    )
    workers_help = (
        "Number of engines. Default: one per GPU or tensor-parallel group of the cluster."
    )
    command = click.option(
        "--ray-workers", type=click.IntRange(min=1), metavar="N", help=workers_help
    )(command)
    return click.option(
        "--ray", is_flag=False, flag_value="auto", metavar="[ADDRESS|auto|local]", help=help
    )(command)


_COUNT = re.compile(r"[0-9]{1,9}")


class _PartType(click.ParamType):
    name = "K/N"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        number, _, of = str(value).partition("/")
        if not (_COUNT.fullmatch(number) and _COUNT.fullmatch(of) and int(number) < int(of)):
            self.fail(
                f"{value!r} is not a part K/N with K from 0 to N - 1, such as 0/4", param, ctx
            )
        return int(number), int(of)


part_option = click.option(
    "--part",
    type=_PartType(),
    help="Only the arms K, K + N, ... (from 0), for N commands at the same time, such as the tasks "
    "of a job array.",
)
