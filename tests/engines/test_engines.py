"""Real vLLM next to transformers: the same answers, new weights in place, clear failures."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from benchmarks.random_model import random_llama, train_tokenizer
from ift_scale.config import FreeConfig, MmluSource, ProbeConfig
from ift_scale.engines.process import EngineProcess
from ift_scale.engines.protocol import EngineSpec, Sampling, ScoreRequest
from ift_scale.errors import EnvironmentProblem, IFTScaleError
from ift_scale.probe.free import FreeAsker
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.questions import mmlu, world
from ift_scale.scoring.cloze import Cloze, FewShotTexts
from ift_scale.scoring.letters import FewShot, LetterAsker

pytestmark = pytest.mark.engine

ENGINES = ("vllm", "transformers")


def _start(name: str, model: Path, folder: Path) -> EngineProcess:
    spec = EngineSpec(str(model), "float32", ProbeConfig(engine=name))  # type: ignore[arg-type]
    return EngineProcess(spec, folder / f"{name}.log").ready()


@pytest.fixture(scope="module")
def engines(
    sharded_export: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, EngineProcess]]:
    """The engines with the base model, loaded as the trainer exports it."""
    folder = tmp_path_factory.mktemp("logs")
    started = {name: _start(name, sharded_export, folder) for name in ENGINES}
    yield started
    for engine in started.values():
        engine.close()


@pytest.fixture(scope="module")
def requests(world_model: Path) -> list[ScoreRequest]:
    questions = world.load()
    asked = [q for q in questions if q.kind == "choice" and q.split == "test"][::4]
    return (
        LetterAsker(FewShot(PromptTokenizer(world_model), Demonstrations(questions, 5, 42)), plain)
        .write(asked)
        .requests
    )


def _perturbed(model: Path, folder: Path) -> Path:
    """Changes all weights, including the tied embedding, so engines must repack everything."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    weights = {
        name: tensor + 0.1 * tensor.float().std() * torch.randn(tensor.shape)
        for name, tensor in weights.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_loads_a_sharded_folder(
    engines: dict[str, EngineProcess], world_model: Path, name: str
) -> None:
    tokens = PromptTokenizer(world_model).encode(["The oldest tool is made of copper, willow and"])[
        0
    ]
    logits = AutoModelForCausalLM.from_pretrained(world_model, dtype=torch.float32)(
        torch.tensor([tokens])
    ).logits[0, -1]
    asked = [300, 400, 500]
    answer = engines[name].score([ScoreRequest(tokens[:4], tokens[4:], asked)])
    assert answer.tolist() == pytest.approx(logits.log_softmax(-1)[asked].tolist(), abs=2e-3)


def test_engines_agree(engines: dict[str, EngineProcess], requests: list[ScoreRequest]) -> None:
    ours, reference = (engines[name].score(requests).reshape(-1, 4) for name in ENGINES)
    assert np.abs(ours - reference).max() < 1e-3
    assert (ours.argmax(1) == reference.argmax(1)).all()


def test_engines_agree_on_texts(engines: dict[str, EngineProcess], world_model: Path) -> None:
    """Likelihoods of continuations and greedy answers; samples by number and by seed."""
    questions = world.load()
    tokenizer = PromptTokenizer(world_model)
    demonstrations = Demonstrations(questions, 5, 42)
    choice = [q for q in questions if q.kind == "choice" and q.split == "test"][::40]
    cloze = Cloze(FewShotTexts(tokenizer, demonstrations), "sum").write(choice).requests
    ours, reference = (engines[name].loglikelihood(cloze) for name in ENGINES)
    assert np.abs(ours - reference).max() < 1e-3 and len(ours) == 4 * len(choice)
    for name, sums in zip(ENGINES, (ours, reference), strict=True):
        by_token = engines[name].token_logprobs(cloze)
        assert [len(row) for row in by_token] == [len(r.continuation) for r in cloze]
        assert np.allclose([row.sum() for row in by_token], sums, atol=1e-5)
    config = ProbeConfig(free=FreeConfig(ask=True))
    free = FreeAsker(tokenizer, demonstrations, config).write(
        [q for q in questions if q.kind == "free"][::40]
    )
    greedy = Sampling(config.free.max_tokens, tokenizer.line_end_tokens)
    first, second = (engines[name].generate(free.requests, greedy) for name in ENGINES)
    assert sum(a == b for a, b in zip(first, second, strict=True)) >= 0.95 * len(
        first
    )  # a tie may fall either way
    assert all(not set(tokens) & set(tokenizer.line_end_tokens) for (tokens,) in first)
    sampling = greedy._replace(temperature=0.8, num_samples=3, seed=5)
    for name in ENGINES:
        drawn = engines[name].generate(free.requests, sampling)
        assert [len(samples) for samples in drawn] == [3] * len(free.requests)
        assert drawn == engines[name].generate(free.requests, sampling)


def test_engines_agree_on_real_mmlu_prompts(shared_data: Path, tmp_path: Path) -> None:
    """A random Llama on 5-shot prompts of all subjects, thousands of tokens long, in pairs."""
    files = [shared_data / "mmlu" / "dev.jsonl.gz"]
    train_tokenizer(files).save_pretrained(tmp_path / "model")
    random_llama(layers=2, hidden_size=128).save_pretrained(tmp_path / "model")
    questions = [
        q
        for _, q in mmlu.load(
            MmluSource(kind="mmlu", path=str(shared_data / "mmlu"), max_per_subject=2), seed=0
        )
    ]
    asked = [q for q in questions if q.split == "test"]
    asker = LetterAsker(
        FewShot(PromptTokenizer(tmp_path / "model"), Demonstrations(questions, 5, 42)), plain
    )
    requests = [
        r
        for r in asker.write(sorted(asked, key=lambda q: q.topic)).requests
        if len(r.prompt) < 4000
    ]
    assert len(requests) > 50
    answers = {}
    for name in ENGINES:
        engine = _start(name, tmp_path / "model", tmp_path)
        answers[name] = engine.score(requests).reshape(-1, 4)
        engine.close()
    assert np.abs(answers["vllm"] - answers["transformers"]).max() < 0.01
    assert (answers["vllm"].argmax(1) == answers["transformers"].argmax(1)).mean() >= 0.98


def test_cached_prefixes_change_nothing(
    engines: dict[str, EngineProcess], requests: list[ScoreRequest]
) -> None:
    engines["vllm"].reset_cache()
    cold, warm = (np.array(engines["vllm"].score(requests)) for _ in range(2))
    assert np.abs(cold - warm).max() < 1e-3


def test_new_weights_in_a_warm_engine(
    engines: dict[str, EngineProcess],
    requests: list[ScoreRequest],
    world_model: Path,
    tmp_path: Path,
) -> None:
    other = _perturbed(world_model, tmp_path / "other")
    before = np.array(engines["vllm"].score(requests))
    for engine in engines.values():
        engine.load_weights(other)
    ours, reference = (np.array(engines[name].score(requests)) for name in ENGINES)
    assert np.abs(ours - reference).max() < 1e-3
    assert np.abs(ours - before).max() > 0.01
    for engine in engines.values():
        engine.load_weights(world_model)
    assert np.abs(np.array(engines["vllm"].score(requests)) - before).max() < 1e-3


def test_weights_that_did_not_change_are_noticed(
    engines: dict[str, EngineProcess], world_model: Path, tmp_path: Path
) -> None:
    """Loading the same weights again changes no answer, like a reload that failed silently.

    The last test that uses the shared engines: the error ends vLLM's.
    """
    same = Path(shutil.copytree(world_model, tmp_path / "same"))
    with pytest.raises(EnvironmentProblem, match="output did not change"):
        engines["vllm"].load_weights(same)


@pytest.mark.parametrize("name", ENGINES)
def test_a_file_cut_short_is_the_users_to_fetch_again(
    name: str, world_model: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(world_model, tmp_path / "broken"))
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(
        IFTScaleError, match=r"model.safetensors: is incomplete or damaged: .* fetch the file again"
    ) as caught:
        _start(name, broken, tmp_path)
    assert caught.value.exit_code == 2


def test_an_engine_that_fails_shows_its_log(world_model: Path, tmp_path: Path) -> None:
    spec = EngineSpec(str(world_model), "float32", ProbeConfig(), factory="pathlib:Path")
    with pytest.raises(
        EnvironmentProblem, match=r"the inference engine failed: .*\nthe last lines of .*log:"
    ) as caught:
        EngineProcess(spec, tmp_path / "engine.log").ready()
    assert caught.value.exit_code == 3


def test_a_killed_engine_is_reported(world_model: Path, tmp_path: Path) -> None:
    engine = _start("transformers", world_model, tmp_path)
    engine._child.kill()
    with pytest.raises(EnvironmentProblem, match=r"the inference engine died \(exit code -9\)"):
        engine.score([ScoreRequest([1], [2], [3, 4])])
    engine.close()
