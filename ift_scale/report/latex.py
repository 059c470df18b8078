"""The main tables as LaTeX for a paper: booktabs, all text escaped."""

from collections.abc import Sequence
from typing import Any

from ift_scale.report.coverage import SHARED, overall
from ift_scale.report.facts import Facts
from ift_scale.report.sections import accuracy, consistency, differences
from ift_scale.report.text import NONE, absent

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",
    "×": r"$\times$",
    "∞": r"$\infty$",
    "–": "--",
    "\n": " ",
    "\u00a0": "~",
} | {letter: f"\\{letter}" for letter in "&%$#_{}"}


def escape(text: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def table(
    rows: Sequence[dict[str, Any]], caption: str, label: str, missing: str, heads: int = 1
) -> str:
    """Returns a floating table.

    A cell that begins with a bracket is put in braces: \\\\ would read it as its argument.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def line(cells: Sequence[Any]) -> str:
        texts = [escape(NONE if absent(cell) else str(cell)) for cell in cells]
        return (
            "  "
            + " & ".join(f"{{{text}}}" if text.startswith("[") else text for text in texts)
            + r" \\"
        )

    gaps = any(
        NONE in str(NONE if absent(row.get(name)) else row[name]).split()
        for row in rows
        for name in columns
    )
    text = f"{caption}. {NONE}: {missing}" if gaps else f"{caption}."
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escape(text)}}}",
        rf"  \label{{tab:{label}}}",
        rf"  \begin{{tabular}}{{{'l' * heads}{'r' * (len(columns) - heads)}}}",
        r"  \toprule",
        line(columns),
        r"  \midrule",
        *(line([row.get(name) for name in columns]) for row in rows),
        r"  \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def tables(facts: Facts) -> str:
    """Returns the main table, the differences and the correlation, as far as the run has them."""
    parts = [r"% Made by ift-scale; needs \usepackage{booktabs}.", ""]
    main = accuracy.wide(facts, overall(facts["settings"]), facts["base"])
    caption = (
        f"Accuracy in percent, {facts.scope}, {facts.level} intervals over "
        f"{accuracy.over_what(facts)}"
    )
    parts.append(table(main, caption, "accuracy", accuracy.NOT_ASKED))
    shared = facts["settings"][facts["settings"].domain == SHARED]
    if len(shared):
        caption = (
            "Accuracy in percent over the domains that every setting has "
            f"({accuracy.shared_domains(shared)}), {facts.level} intervals"
        )
        parts.append(
            table(
                accuracy.wide(facts, shared, facts["base"]),
                caption,
                "accuracy-shared",
                accuracy.NOT_ASKED,
            )
        )
    if len(chosen := overall(facts["comparisons"])):
        caption = f"Paired differences in percentage points, {facts.scope}, {facts.level} intervals"
        parts.append(
            table(differences.rows(chosen), caption, "differences", "not computed.", heads=2)
        )
    if len(facts["correlation"]):
        rows = consistency.correlation_rows(facts)
        caption = f"Rank correlation with accuracy: partial, and within domains ({facts.level})"
        missing = "undefined: see the remark."
        parts.append(table(rows, caption, "correlation", missing, heads=2))
    return "\n".join(parts)
