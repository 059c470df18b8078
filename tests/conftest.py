"""Shared fixtures: small questions, a small tokenizer and model folder, the shared data folder."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Models of half a million parameters gain nothing from a second thread, and threads that wait for
# an occupied core spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs files that start engines first, so that short ones fill the gaps of several workers."""
    long = {item.path for item in items if item.get_closest_marker("engine")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real questions are not here: {SHARED_DATA} does not exist")
    return SHARED_DATA


@pytest.fixture(scope="session")
def world_model() -> Path:
    """The stored base model of the built-in world."""
    return ROOT / "ift_scale" / "world" / "base_model"


@pytest.fixture(scope="session")
def sharded_export(world_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's base model as the trainer exports it, in 300 kB shards with template chatml."""
    import torch
    from transformers import AutoModelForCausalLM

    from ift_scale.prompts.templates import TEMPLATES
    from ift_scale.prompts.tokenizer import PromptTokenizer
    from ift_scale.train.engine import export

    folder = tmp_path_factory.mktemp("sharded") / "model"
    model = AutoModelForCausalLM.from_pretrained(world_model, dtype=torch.float32)
    tokenizer = PromptTokenizer(world_model).tokenizer
    tokenizer.chat_template = TEMPLATES["chatml"]
    export.export(model, False, folder, world_model, tokenizer, torch.float32, shard_bytes=300_000)
    return folder


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A pool folder in the paper's format: 5 dev, 6 train, 3 test questions with four options."""
    import json

    folder = tmp_path / "pool"
    folder.mkdir()
    for split, count in {"dev": 5, "train": 6, "test": 3}.items():
        rows = [
            {
                "id": i,
                "question": f"What is {split} {i}?",
                "choices": ["one", "two", "three", "four"],
                "answer": i % 4,
            }
            for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
