"""lm-evaluation-harness's hf backend on option texts: log-likelihoods of continuations.

    OMP_NUM_THREADS=1 benchmarks/peers/.venv/bin/python benchmarks/peers/lm_eval/texts.py
        REQUESTS.jsonl MODEL OUTPUT.json [--repeats 3]

Each line of REQUESTS has `context` and `continuation`, token ids. Output: each request's
log-likelihood in nats, and the CPU seconds of each repeat of `_loglikelihood_tokens` on one
thread, which do not depend on other load.
"""

import json
import os
import time
from pathlib import Path

import click

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@click.command()
@click.argument("requests", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--repeats", default=3, show_default=True)
@click.option("--batch-size", default="8", show_default=True)
def main(requests: Path, model: Path, output: Path, repeats: int, batch_size: str) -> None:
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(1)
    rows = [json.loads(line) for line in requests.read_text(encoding="utf-8").splitlines()]
    language_model = HFLM(
        pretrained=str(model), dtype="float32", batch_size=batch_size, device="cpu"
    )
    # The harness takes the text of a request as its key only; token ids are what it scores.
    asked = [((str(n), ""), row["context"], row["continuation"]) for n, row in enumerate(rows)]
    language_model._loglikelihood_tokens(asked[:4], disable_tqdm=True)
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        scores = language_model._loglikelihood_tokens(asked, disable_tqdm=True)
        seconds.append(time.process_time() - started)
    found = {"loglikelihoods": [float(score) for score, _ in scores], "seconds": seconds}
    output.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
