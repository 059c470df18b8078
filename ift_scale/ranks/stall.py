"""One sentence about a launch that hangs: which ranks did not arrive, and what to check.

Pure functions on what the ranks report about themselves (`heartbeat`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NETWORK = (
    "the network between the nodes (NCCL_DEBUG=INFO prints what NCCL uses; NCCL_SOCKET_IFNAME and "
    "GLOO_SOCKET_IFNAME choose the interface)"
)


LOG = "The log has the stacks of all ranks"
_MOST = 8


@dataclass(frozen=True)
class RankReport:
    """What a rank reports when the launch hangs: its `Activity`, and where its threads are.

    `collective`: the collective or message that it waits for, empty if none.
    """

    rank: int
    host: str
    label: str
    look_at: str
    position: int
    place: str
    collective: str
    waits: bool = False


def late(reports: Sequence[RankReport]) -> list[RankReport]:
    """Returns the ranks that the others wait for; all of them if it is unknown.

    These are the ranks that wait for nobody, or, if no rank is seen to wait (collectives of NCCL
    return at once), those at the earliest phase.
    """
    busy = [report for report in reports if not (report.waits or report.collective)]
    if busy and len(busy) < len(reports):
        return busy
    first = min(report.position for report in reports)
    return [report for report in reports if report.position == first]


def explain(reports: Mapping[int, RankReport], silent: Mapping[int, str], seconds: float) -> str:
    """Returns the sentence. `seconds`: for how long no rank has advanced.

    `silent`: the ranks that did not report in time, with what is known of their processes.
    """
    since = f"no rank has advanced for {seconds:.0f} s"
    answered = [report for rank, report in reports.items() if rank not in silent]
    if silent:
        parts = [f"rank {r} does not respond{reason(silent[r], reports.get(r))}" for r in silent]
        return _join(f"{since}: {'; '.join(parts)}", _phases(answered))
    absent = late(answered)
    others = [report for report in answered if report not in absent]
    check = absent[0].look_at or NETWORK
    if others:
        named = [f"rank {r.rank} on {r.host} did not arrive, it is {_where(r)}" for r in absent]
        more = f"; and {len(named) - _MOST} more" if len(named) > _MOST else ""
        problem = "; ".join(named[:_MOST]) + more
    elif len(absent) == 1:
        problem = f"rank {absent[0].rank} on {absent[0].host} hangs {_where(absent[0])}"
    elif all(report.collective for report in absent):
        problem, others, check = "all ranks wait in a collective", absent, NETWORK
    else:
        problem, others = "all ranks are in the same phase", absent
    return _join(f"{since}: {problem}", _phases(others), f"Check {check}. {LOG}")


def reason(problem: str, report: RankReport | None) -> str:
    """Returns what is known of a rank that does not respond, to follow "does not respond"."""
    doing = f" while {report.label} ({report.place})" if report else ""
    return f"{doing}: {problem}"


def _join(*sentences: str) -> str:
    return " ".join(f"{sentence.rstrip('.')}." for sentence in sentences if sentence)


def _where(report: RankReport) -> str:
    return f"{report.label} ({report.place})"


def _phases(reports: Sequence[RankReport]) -> str:
    """Returns one clause per phase: "Ranks 0, 2 are LABEL, in all_reduce (PLACE)."."""
    by_phase: dict[str, list[int]] = {}
    for report in reports:
        waits = f", in {report.collective}" if report.collective else ""
        by_phase.setdefault(f"{report.label}{waits} ({report.place})", []).append(report.rank)
    clauses = []
    for phase, ranks in by_phase.items():
        names = ", ".join(map(str, ranks[:_MOST])) + (", ..." if len(ranks) > _MOST else "")
        subject = f"Ranks {names} are" if len(ranks) > 1 else f"Rank {names} is"
        clauses.append(f"{subject} {phase}.")
    return " ".join(clauses)
