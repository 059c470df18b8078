"""The log-likelihoods of a screen on real instructions, compared with lm-evaluation-harness.

    benchmarks/peers/install.sh
    python -m benchmarks.bench_screen_speed --data FILE [--model models/smollm2] [--repeats 1]

Draws examples with longer answers from instruction data and writes the requests of `ift-scale
screen`: the response after its instruction and after an empty one, in a few-shot frame. Both
programs score the same token ids on one thread and are timed by their CPU seconds. The answers
that a screen samples are not part of it.

Figures are stored only if the mean log-likelihoods per token agree within 1e-4 nats, and if ours,
summed over the response on which the programs differ most, is within 1e-3 nats of the model in
float64. Sums over hundreds of tokens of two float32 programs differ by more than that.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.bench_cloze import MODEL
from benchmarks.bench_real_speed import (
    LM_EVAL,
    NATS,
    add_rates,
    score_by_lm_eval,
    score_by_us,
)
from benchmarks.suite.registry import CHECKOUT
from benchmarks.suite.rows import Gate, Sheet
from ift_scale import draws
from ift_scale.commands.screen import PROBE
from ift_scale.config.file import from_dict
from ift_scale.config.instructions import InstructionSource
from ift_scale.engines.protocol import TextRequest
from ift_scale.io.files import read_jsonl
from ift_scale.io.progress import say
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Question
from ift_scale.screen.asker import BlockAsker
from ift_scale.screen.gather import gather
from ift_scale.screen.screening import context_of

DATA = CHECKOUT.parent / "shared" / "data" / "general" / "alpaca_en_demo.jsonl.gz"
NUM_EXAMPLES, NUM_QUICK = 16, 2
NATS_PER_TOKEN = 1e-4


def calls(model: Path, data: Path, num: int, folder: Path) -> list[Sequence[TextRequest]]:
    """Returns the requests about `num` drawn examples, by the calls in which a screen makes them.

    These are, for each half of the data, the responses with and then those without instructions.
    """
    raw = {"output_dir": str(folder), "model": {"path": str(model)}, "probe": PROBE}
    config = from_dict(raw)
    source, path = InstructionSource(path=str(data)), folder / "examples.jsonl"
    gathered = gather([source], config, False, path)
    long = {q.id: q for q in read_jsonl(path, Question) if q.subject == "long"}
    chosen = [long[id] for id in draws.sample(long, num, "screen-speed")]
    asker = BlockAsker(
        PromptTokenizer(model),
        gathered.demonstrations,
        config.probe,
        config.screen,
        context_of(config, model),
    )
    block = asker.write(chosen)
    if block.too_long:
        raise SystemExit(f"{len(block.too_long)} examples exceed the model's context")
    return [call for part in block.parts for call in (part.written.given, part.written.alone)]


def checked(
    model: Path, requests: Sequence[TextRequest], ours: np.ndarray, theirs: np.ndarray
) -> tuple[Gate, dict[str, float]]:
    """Returns the check of the log-likelihoods (N,), and the largest differences of sums, in nats.

    Exits if a check fails.
    """
    gaps = np.abs(ours - theirs)
    tokens = np.array([len(request.continuation) for request in requests])
    worst, per_token = int(gaps.argmax()), float((gaps / tokens).max())
    exact = in_float64(model, requests[worst])
    about = {
        "sum_ours_from_peer": float(gaps[worst]),
        "sum_ours_from_float64": abs(float(ours[worst]) - exact),
        "sum_peer_from_float64": abs(float(theirs[worst]) - exact),
        "tokens": float(tokens[worst]),
    }
    say(f"{per_token:.2g} nats per token; {about}")
    if per_token > NATS_PER_TOKEN or about["sum_ours_from_float64"] > NATS:
        raise SystemExit("log-likelihoods differ: nothing is stored")
    name = "mean log-likelihood per token of ours and lm-eval, nats"
    return Gate(checked=name, gap=per_token, tolerance=NATS_PER_TOKEN), about


def in_float64(model: Path, request: TextRequest) -> float:
    """Returns the log-likelihood of a request by the model's own code in float64."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    continuation = torch.tensor(request.continuation)
    ids = torch.tensor([request.prompt + request.continuation])
    with torch.inference_mode():
        logits = loaded(ids).logits[0, -len(continuation) - 1 : -1]
    logprobs = torch.log_softmax(logits, -1)
    return float(logprobs.gather(1, continuation[:, None]).sum())


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), default=MODEL)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=DATA,
    show_default=True,
    help="Instructions in any format of `ift-scale sft`.",
)
@click.option("--repeats", default=1, show_default=True)
@click.option("--quick", is_flag=True, help="Two examples, one repeat.")
def main(model: Path, data: Path, repeats: int, quick: bool) -> None:
    """Store the rows of `screen-speed`."""
    torch.set_num_threads(1)
    sheet, num = Sheet("screen-speed", quick), NUM_QUICK if quick else NUM_EXAMPLES
    with tempfile.TemporaryDirectory() as folder:
        asked = calls(model, data, num, Path(folder))
        case = f"{num} examples of {data.name.split('.')[0]}, {model.name}, float32, one thread"
        repeats = 1 if quick else repeats
        requests = [request for call in asked for request in call]
        ours, seconds = score_by_us(model, asked, repeats)
        theirs, peer_seconds = score_by_lm_eval(model, requests, repeats, Path(folder))
    gate, about = checked(model, requests, ours, theirs)
    rates = {"ours": [num / s for s in seconds], LM_EVAL: [num / s for s in peer_seconds]}
    add_rates(sheet, case, "examples per CPU second", rates, LM_EVAL, gate, **about)
    say(f"stored in {sheet.store()}")


if __name__ == "__main__":
    main()
