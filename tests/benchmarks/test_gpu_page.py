"""docs/gpu.md: what it says of rows, here made up, and that without rows it says so."""

from typing import Any

import pytest

from benchmarks.suite import gpu
from benchmarks.suite.rows import Gate, Row, Sheet, ratios
from ift_scale.estimate.memory import GIB

CARD = "a made-up card"
RIGHT = Gate(checked="made up", gap=0.001, tolerance=0.05)
SETTINGS = {"zero_stage": 2, "activation_checkpointing": "selective", "compile": False}
TRL = "TRL 9.9, layers by Liger-Kernel, loss by TRL"


def training(case: str, speed: float, share: float, peak: float, predicted: float) -> list[Row]:
    sheet = Sheet("train", True, CARD)
    about: dict[str, Any] = {
        "settings": SETTINGS,
        "kernels": "liger",
        "optimizer": "AdamW, fused",
        "attention": "varlen",
    }
    sheet.add(case, "tokens per second", "1/s", [speed], RIGHT, better="higher", about=about)
    sheet.add(
        case, "share of the matrix rate", "share", [share], RIGHT, better="higher", about=about
    )
    sheet.add(case, "seconds per step", "s", [1.5], RIGHT, about=about)
    sheet.add(case, "peak memory", "B", [peak * GIB], RIGHT, about=about)
    sheet.add(case, "estimated memory", "B", [predicted * GIB], RIGHT, about=about)
    return sheet.rows


def peer(case: str, speed: float) -> list[Row]:
    sheet = Sheet("train", True, CARD)
    sheet.add(
        case,
        "tokens per second",
        "1/s",
        [speed],
        RIGHT,
        TRL,
        "higher",
        about={"settings": SETTINGS},
    )
    return sheet.rows


def probing(ours: float, theirs: float, limit: float) -> list[Row]:
    sheet = Sheet("probe", True, CARD)
    about = {"questions": 1500, "mean_prompt_tokens": 640.0, "limit_questions_per_second": limit}
    against = ratios([ours], {"one request an option": [theirs]}, "higher")
    sheet.add(
        "7b bfloat16",
        "questions per second",
        "1/s",
        [ours],
        RIGHT,
        "ours vllm",
        "higher",
        ratios=against,
        about=about,
    )
    sheet.add(
        "7b bfloat16",
        "questions per second",
        "1/s",
        [theirs],
        RIGHT,
        "one request an option",
        "higher",
        about=about,
    )
    return sheet.rows


def timed(**milliseconds: float) -> list[Row]:
    sheet = Sheet("kernels", True, CARD)
    for who, value in milliseconds.items():
        sheet.add("rms_norm bfloat16 8192x4096", "milliseconds", "ms", [value], RIGHT, who)
    return sheet.rows


def cells(text: str, start: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if start in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_training_is_told_by_setting_and_against_trl() -> None:
    rows = [
        *training("1b bfloat16", 60_000, 0.5, 40, 42),
        *peer("1b bfloat16", 30_000),
        *training("1b bfloat16, compile True", 66_000, 0.55, 38, 42),
    ]
    text = gpu.train(rows)
    found = cells(text, "| 1b bfloat16 | ours |")
    assert found[:9] == [
        CARD,
        "1b bfloat16",
        "ours",
        "2",
        "selective",
        "off",
        "liger",
        "AdamW, fused",
        "varlen",
    ]
    assert found[10:] == ["1.5", "50.0%", f"2.00 times {TRL}"]
    assert cells(text, f"| {TRL} | 2 |")[-1] == "" and "compile True" in text


def test_memory_is_told_with_the_predictions_error() -> None:
    rows = [
        *training("7b bfloat16", 9_000, 0.66, 100, 112),
        *training("1b bfloat16", 60_000, 0.5, 40, 38),
    ]
    assert cells(gpu.memory(rows), "7b bfloat16")[2:] == ["100.00", "112.00", "+12.0%", "nan"]
    assert "| **not met**: -5% to +12% over 2 cases |" in gpu.goals(rows)
    assert "| -5% to -5% over 1 cases |" in gpu.goals(rows[5:])


def test_goals_are_judged_from_the_rows() -> None:
    rows = [
        *training("7b bfloat16", 9_000, 0.66, 100, 102),
        *peer("7b bfloat16", 8_000),
        *probing(50, 10, 100),
    ]
    text = gpu.goals(rows)
    assert (
        "| 66 (7b bfloat16) percent |" in text
        and f"| **not met**: 1.12 (7b bfloat16, {TRL}) |" in text
    )
    assert "| **not met**: 50 (7b bfloat16) percent |" in text
    assert gpu.goals([]).count("not measured") == 4


def test_probing_is_told_against_the_limit_and_the_peer() -> None:
    found = cells(gpu.probe(probing(50, 10, 100)), "| ours vllm |")
    assert (
        found[3:7] == ["1,500 of 640 tokens", "50 (50 to 50)", "100", "50.0%"]
        and "5 (5 to 5) times one request an option" in found[7]
    )


def test_the_fastest_kernel_is_marked() -> None:
    heads, _, line = gpu.kernels(
        [*timed(plain=3.0, compile=1.2, triton=1.5), *timed_elsewhere()]
    ).splitlines()[:3]
    assert (
        heads
        == "| GPU | op, type and shape | PyTorch, ms | torch.compile, ms | our Triton, ms | Liger-Kernel, ms |"
    )
    assert (
        line == f"| {CARD} | rms_norm bfloat16 8192x4096 | 3 | **1.2** | 1.5 | wrong or not run |"
    )


def timed_elsewhere() -> list[Row]:
    return [row.model_copy(update={"device": "another card"}) for row in timed(liger=1.0)]


def test_machines_and_exactness_are_told() -> None:
    sheet = Sheet("train", True, CARD)
    for quantity in ("losses", "gradient"):
        sheet.add("exact bfloat16, stage 3", f"difference of {quantity}", "share", [0.03], RIGHT)
    assert cells(gpu.exact(sheet.rows), "stage 3") == [
        CARD,
        "bfloat16, stage 3",
        "3.0e-02 (5e-02)",
        "3.0e-02 (5e-02)",
    ]
    assert CARD in gpu.machines(sheet.rows) and "torch 2" in gpu.machines(sheet.rows)


def test_rows_of_a_cpu_are_not_told_of_a_gpu() -> None:
    rows = [
        row.model_copy(update={"device": "cpu"})
        for row in training("7b bfloat16", 9_000, 0.66, 100, 102)
    ]
    assert gpu.train(rows) == gpu.train([]) and gpu.missing(rows) == gpu.missing([])


@pytest.mark.parametrize("name", gpu.BLOCKS)
def test_without_rows_every_block_says_so(name: str) -> None:
    text = gpu.BLOCKS[name]([])
    assert gpu.NOTHING in text or text.count("not measured") == 4


def test_what_was_run_is_no_longer_missing() -> None:
    assert gpu.missing([]).startswith(
        f"{gpu.NOTHING}:"
    ) and "TRL on the same tokens" in gpu.missing([])
    text = gpu.missing([*training("1b bfloat16", 1, 0.5, 1, 1), *peer("1b bfloat16", 1)])
    assert (
        text.startswith(f"{gpu.NOTHING}:")
        and "TRL on" not in text
        and "training steps of 1B (" not in text
    )
    assert "training steps of 7B, the whole" in text
    assert "training steps of 1B under other settings" in text


def test_a_part_that_was_cut_off_is_still_missing() -> None:
    """3B comes before 1B's other settings, and our probing before the peer's."""
    sheet = Sheet("probe", True, CARD)
    sheet.add(
        "7b bfloat16", "share of the matrix rate", "share", [0.4], RIGHT, "ours vllm", "higher"
    )
    text = gpu.missing(
        [*training("3b bfloat16", 1, 0.5, 1, 1), *sheet.rows, *peer("7b bfloat16", 1)]
    )
    assert "steps of 3B" not in text and "steps of 1B under other settings" in text
    assert "probing MMLU" not in text and "one request per option" in text
    assert "training steps of 7B, the whole" in text, "TRL's steps are not ours"
    rest = [
        *training("1b bfloat16, compile True", 1, 0.5, 1, 1),
        *probing(50, 10, 100),
        *training("7b, 12 layers bfloat16", 1, 1, 1, 1),
    ]
    text = gpu.missing(rest)
    assert (
        "other settings" not in text
        and "one request an option" not in text
        and "slice of 7B" not in text
    )
    assert "training steps of 1B (" in text and "training steps of 7B, the whole" in text
