"""The families' benchmark: every family is described, and the difficult ones agree with plain transformers."""

from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DIFFICULT = ("Llama-2", "Llama-3", "Mistral", "Phi-3", "gpt-oss", "GLM-4")
"""BOS before each turn; letters that merge with the colon; a sliding window; LongRoPE; sinks and experts; other start tokens."""


@pytest.fixture(scope="module")
def bench_models() -> ModuleType:
    from benchmarks import bench_models

    return bench_models


def test_every_family_has_a_tokenizer_with_a_template(bench_models: ModuleType) -> None:
    kinds = bench_models.tokenizer_kinds
    assert {family.tokenizer for family in bench_models.FAMILIES.values()} == set(kinds.KINDS)
    assert all(
        (kinds.TEMPLATES / f"{kind.template}.jinja").is_file() for kind in kinds.KINDS.values()
    )


@pytest.mark.parametrize("name", DIFFICULT)
@pytest.mark.engine
def test_a_family_is_as_plain_transformers(
    name: str, bench_models: ModuleType, shared_data: Path, tmp_path: Path
) -> None:
    sheet = bench_models.Sheet("models", True)
    bench_models.measure(
        sheet, name, bench_models.FAMILIES[name], 1, ["transformers"], tmp_path, tmp_path
    )
    assert [row.quantity for row in sheet.rows] == ["few-shot", "0-shot"]
    for row in sheet.rows:
        assert row.value <= bench_models.TOLERANCE["transformers"]
        assert row.about["tokens_equal"] == row.about["examples"] and row.about["flipped"] == 0


@pytest.mark.engine
def test_vllm_takes_an_export_of_a_class_that_it_wraps(
    bench_models: ModuleType, shared_data: Path, tmp_path: Path
) -> None:
    """vLLM changes transformers' OLMo-2 in its own process, where the exported weights are checked before they are loaded."""
    sheet = bench_models.Sheet("models", True)
    bench_models.measure(
        sheet, "OLMo-2", bench_models.FAMILIES["OLMo-2"], 1, ["vllm"], tmp_path, tmp_path
    )
    assert len(sheet.rows) == 2 and all(
        row.value <= bench_models.TOLERANCE["vllm"] for row in sheet.rows
    )
