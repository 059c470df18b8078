"""The main tables as LaTeX, for a paper: booktabs, every text escaped."""

from collections.abc import Sequence
from typing import Any

from ift_scale.report.facts import SHARED, Facts, overall
from ift_scale.report.html import NONE, absent, interval, number, p_value
from ift_scale.report.sections import accuracy, differences

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "−": "$-$", "×": r"$\times$", "∞": r"$\infty$", "–": "--", "\n": " ", "\u00a0": "~",
}  # fmt: skip


def escape(text: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def table(
    rows: Sequence[dict[str, Any]], caption: str, label: str, missing: str, heads: int = 1
) -> str:
    """A floating table; a row may not begin with a bracket, which \\\\ would take for its argument."""
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
    told = f"{caption}. {NONE}: {missing}" if gaps else f"{caption}."
    return "\n".join(
        [
            r"\begin{table}", r"  \centering", rf"  \caption{{{escape(told)}}}", rf"  \label{{tab:{label}}}",
            rf"  \begin{{tabular}}{{{'l' * heads}{'r' * (len(columns) - heads)}}}", r"  \toprule", line(columns), r"  \midrule",
            *(line([row.get(name) for name in columns]) for row in rows), r"  \bottomrule", r"  \end{tabular}", r"\end{table}", "",
        ]
    )  # fmt: skip


def tables(facts: Facts) -> str:
    """Main table, differences and correlation, those that the run has."""
    parts = [r"% Made by ift-scale; needs \usepackage{booktabs}.", ""]
    main = accuracy.wide(facts, overall(facts["settings"]), facts["base"])
    caption = f"Accuracy in percent, {facts.place}, {facts.level} intervals over {accuracy.over_what(facts)}"
    parts.append(table(main, caption, "accuracy", accuracy.NOT_ASKED))
    shared = facts["settings"][facts["settings"].domain == SHARED]
    if len(shared):
        caption = f"Accuracy in percent over the domains that every setting has ({accuracy.told(shared)}), {facts.level} intervals"
        parts.append(
            table(
                accuracy.wide(facts, shared, facts["base"]),
                caption,
                "accuracy-shared",
                accuracy.NOT_ASKED,
            )
        )
    if len(chosen := overall(facts["comparisons"])):
        caption = f"Paired differences in percentage points, {facts.place}, {facts.level} intervals"
        parts.append(
            table(differences.rows(chosen), caption, "differences", "not computed.", heads=2)
        )
    if len(facts["correlation"]):
        rows = [
            {
                "measure": row["measure"], "group": row["group"], "n": number(row["n"], 0),
                "partial rho": interval(row, "rho", share=False, sign=True, ends=("low", "high")),
                "p": p_value(row["p"]), "p within domains": p_value(row["p_within"]),
                "remark": "" if absent(row["reason"]) else row["reason"],
            }
            for row in facts["correlation"].to_dict("records")
        ]  # fmt: skip
        caption = f"Spearman's partial correlation with accuracy, {facts.level} intervals"
        parts.append(table(rows, caption, "correlation", "not defined, see the remark.", heads=2))
    return "\n".join(parts)
