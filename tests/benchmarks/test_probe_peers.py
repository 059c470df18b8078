"""The authors' probing loop in both forms, and what the benchmark makes of them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ift_scale.prompts.templates import VICUNA

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _module(name: str) -> ModuleType:
    """A driver, none of which is in a package."""
    spec = importlib.util.spec_from_file_location(Path(name).name, BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    sys.modules[Path(name).name] = found
    spec.loader.exec_module(found)
    return found


authors_loop, bench_probe, deviations = map(
    _module, ("peers/authors_loop", "bench_probe", "deviations")
)


def _result(peer: str, predictions: str, tokens: str, rate: float = 1.0) -> dict[str, Any]:
    answers = [
        {
            "id": str(n),
            "prediction": p,
            "probabilities": [0.6, 0.4],
            "prompt_tokens": 9,
            "tokens_sha256": tokens,
        }
        for n, p in enumerate(predictions)
    ]
    return {
        "peer": peer,
        "questions_per_second": rate,
        "seconds": {"scoring": 1.0},
        "answers": answers,
    }


def test_the_released_form_is_reported_and_the_others_must_agree() -> None:
    names = [*bench_probe.SIDES, *bench_probe.OTHERS]
    results = {f"{name} float32": [_result(name, "ABAB", "in prompt")] for name in names}
    results[f"{bench_probe.RELEASED} float32"] = [
        _result("authors_loop", "AAAA", "alone", rate=1.5)
    ]
    rows = {row.who: row for row in bench_probe.rows_of(results, ("float32",), quick=True).rows}
    assert set(rows) == set(names)
    released, in_prompt = (
        rows["authors' loop"].gate,
        rows["authors' loop, letters in the prompt"].gate,
    )
    assert (
        (released.gap, released.tolerance) == (0.5, None)
        and in_prompt.gap == 0
        and in_prompt.tolerance == pytest.approx(0.005)
    )
    assert rows["ours vllm"].ratios["authors' loop"].value == pytest.approx(1 / 1.5)
    results["ours vllm float32"] = [_result("ours", "AAAA", "in prompt")]
    with pytest.raises(SystemExit, match="ours vllm float32 predicts otherwise"):
        bench_probe.rows_of(results, ("float32",), quick=True)
    results["ours vllm float32"] = [_result("ours", "ABAB", "alone")]
    with pytest.raises(SystemExit, match="was asked other tokens"):
        bench_probe.rows_of(results, ("float32",), quick=True)
    commands = bench_probe.commands(
        Path("w"), ("float32",), Path("all"), Path("part"), Path("few"), 0
    )
    loops = {
        name: command for name, (command, _) in commands.items() if name.startswith("authors'")
    }
    assert [command[command.index("--letters") + 1] for command in loops.values()] == [
        "alone",
        "in-prompt",
    ]
    assert len({output for _, output in commands.values()}) == len(commands)


def test_a_prefix_space_makes_the_released_letters_other_tokens() -> None:
    model = deviations.Model(deviations.BASE)
    alone = authors_loop.letter_ids(model.tokenizer, "", 4)
    in_prompt = authors_loop.letter_ids(model.tokenizer, "Which?\nAnswer:", 4)
    assert model.tokenizer.convert_ids_to_tokens(alone) == ["▁A", "▁B", "▁C", "▁D"]
    assert model.tokenizer.convert_ids_to_tokens(in_prompt) == ["A", "B", "C", "D"]
    theirs, ours = (model.ask(["Which?\nA. x\nB. y\nAnswer:"], 4, form) for form in (None, ""))
    assert theirs.mass[0] < 0.01 < ours.mass[0] and theirs.probs.sum() == pytest.approx(1)
    assert (
        " ASSISTANT:' }}" in VICUNA
    )  # the blank after it, which the released code's prompt has, is the answer's in ours


def test_the_released_schedules_and_correlation() -> None:
    rows = [line.split(" | ") for line in deviations.learning_rates((668,)).splitlines()]
    assert rows[-1] == [
        "| 668",
        "18",
        "1",
        "10.00",
        "9.00",
        "17.00 |",
    ]  # 18 steps: a first one at 0, or all but it at the peak
    x, control = deviations.np.arange(8.0), deviations.np.array([0.0, 0, 1, 1, 2, 2, 3, 3])
    rho, p = deviations.released_correlation(x, x, control)
    assert rho == pytest.approx(1) and p < 1e-6
