"""Every causal language model class of transformers: training path, proof, scoring, speed.

    python -m benchmarks.bench_classes [--type llama] [--no-trl] [--vllm]

Each class is built small from its example config (`class_configs`), with weights that are not flat
(`ift_scale.train.proof`), and saved to a folder. Then, on one core:

    proof      the training path that is exact and fastest, and why faster ones are not taken;
               seconds of the proof in a running process, and from the cache
    scoring    the transformers engine's strategy, and its largest difference in nats from one
               forward pass per row
    speed      tokens per CPU second of optimizer steps: the chosen path, the model's own code on
               one example at a time, and TRL, on the same examples
    vLLM       with --vllm, and then alone (half a minute per class): its largest difference in
               nats; the other stored rows stay

A class is measured in a child process, which is ended if it takes too long.
"""

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks.class_configs import model_types
from benchmarks.suite.classes import LOSS_TOLERANCE
from benchmarks.suite.registry import environment
from benchmarks.suite.rows import Gate, Row, Sheet, out_folder, read_file
from ift_scale.io.files import write_jsonl
from ift_scale.io.progress import say

PEER = Path(__file__).parent / "peers" / "trl_classes.py"
PYTHON = environment("trl")
SLOW, TRL, VLLM = "one example at a time", "TRL", "vllm"
MOST_SECONDS = 180.0
VLLM_HIDDEN = 128
"""Hidden size of the models for vLLM, whose attention on a CPU needs heads of 32."""
_REASON = 300


def measure(model_type: str, work: Path) -> dict[str, Any]:
    """Returns everything about one class except its peers; errors are part of the result."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    found: dict[str, Any] = {}
    for name, part in (
        ("build", _build),
        ("proof", _proof),
        ("scoring", _scoring),
        ("speed", _speed),
    ):
        try:
            found |= part(model_type, work, found)
        except Exception as error:
            found[f"{name}_error"] = why(error).replace(f"{work}/", "")
            if name in ("build", "proof"):
                break
    return found


def why(error: Exception) -> str:
    """Returns one line."""
    text = " ".join((str(error) or type(error).__name__).split())
    return text[:_REASON]


def _build(model_type: str, work: Path, found: dict[str, Any], hidden: int = 64) -> dict[str, Any]:
    """Saves the small model to WORK/MODEL_TYPE."""
    from benchmarks.class_configs import example
    from ift_scale.train.proof.shrink import limits, shrink, text_class, tiny_model

    kind, settings = text_class(example(model_type))
    small = shrink(settings, hidden=hidden)
    model = tiny_model(kind, small, 0)
    model.save_pretrained(work / model_type)
    size = sum(parameter.numel() for parameter in model.parameters())
    return {"class": kind.__name__, "parameters": size, "limits": limits(small)}


def _proof(model_type: str, work: Path, found: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.class_speed import CONFIG
    from ift_scale.train.proof.stored import proof_of

    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        proof = proof_of(work / model_type, CONFIG.max_length)
        seconds.append(time.perf_counter() - started)
    path = proof.fastest(CONFIG)
    chosen = next(v for v in proof.verdicts if v.path.name == path.name and v.is_exact)
    return {
        "path": path.name,
        "attention": path.attention,
        "own_head": path.head is None,
        "terms": sorted(path.terms),
        "difference": chosen.difference,
        "tolerance": proof.tolerance,
        "rejected": {v.path.name: v.reason[:_REASON] for v in proof.faster_than(path)},
        "proof_seconds": seconds[0],
        "cached_seconds": seconds[1],
        "training_path": path.model_dump(mode="json"),
    }


def _scoring(model_type: str, work: Path, found: dict[str, Any]) -> dict[str, Any]:
    from ift_scale.config import EngineConfig
    from ift_scale.engines.protocol import EngineSpec
    from ift_scale.engines.transformers import TransformersEngine

    spec = EngineSpec(str(work / model_type), "float32", EngineConfig(engine="transformers"))
    engine = TransformersEngine(spec)
    gap = scoring_gap(engine, work / model_type)
    used = {name for name, _ in engine._selector.verified}
    return {"scoring_gap": gap, "strategies": sorted(used)}


def scoring_gap(engine: Any, folder: Path) -> float:
    """Returns the largest difference in nats of an engine from one forward pass per row."""
    import numpy as np

    requests = _requests(folder)
    return float(np.abs(engine.score(requests) - plain_scores(folder, requests)).max())


def _requests(folder: Path) -> list[Any]:
    """Returns requests with and without a common prefix, shorter and longer than every limit."""
    from transformers import AutoConfig

    from ift_scale.engines.protocol import ScoreRequest
    from ift_scale.train.proof.small_fields import SPECIAL_TOKENS

    rng = random.Random(0)
    vocabulary = AutoConfig.from_pretrained(folder).get_text_config().vocab_size

    def tokens(count: int) -> list[int]:
        return [rng.randrange(SPECIAL_TOKENS, vocabulary) for _ in range(count)]

    plan = ((24, (3, 12, 20, 6)), (6, (2, 5, 3)), (0, (1, 9, 30, 14, 40)))
    made = []
    for prefix_length, lengths in plan:
        prefix = tokens(prefix_length)
        made += [ScoreRequest(prefix, tokens(length), tokens(4)) for length in lengths]
    return made


def plain_scores(folder: Path, requests: Sequence[Any]) -> Any:
    """Returns each option's log-probability from a forward pass of its row alone, flat.

    Every row has a model of its own: dynamic rotary frequencies are kept from longer rows.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    attention = "eager" if _caps_scores(folder) else None
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    ).eval()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    values = []
    for request in requests:
        for buffer, stored in buffers:
            buffer.copy_(stored)
        with torch.no_grad():
            logits_V = model(input_ids=torch.tensor([request.prompt])).logits[0, -1].double()
        values.append(logits_V.log_softmax(-1)[request.options].numpy())
    return np.concatenate(values)


def _caps_scores(folder: Path) -> bool:
    """transformers' SDPA leaves the cap of attention scores out (5.19)."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("attn_logit_softcapping") is not None


def _speed(model_type: str, work: Path, found: dict[str, Any]) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks import class_speed
    from ift_scale.train.model.path import TrainingPath

    tokens = class_speed.load(work)
    chosen = TrainingPath.model_validate(found["training_path"])
    paths = {"ours": chosen, SLOW: TrainingPath(name="single", head=None, attention="eager")}
    rates, losses = {}, {}
    for name, path in paths.items():
        model = AutoModelForCausalLM.from_pretrained(
            work / model_type, dtype=torch.float32, attn_implementation=path.attention or "eager"
        )
        losses[name], seconds = class_speed.train(model, path, tokens)
        rates[name] = class_speed.rate(seconds, tokens)
    return {"rates": rates, "losses": losses}


def measured_in_child(names: Sequence[str], work: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (model type, result); a child that takes too long is replaced."""
    context = multiprocessing.get_context("spawn")
    pool = context.Pool(1)
    try:
        for name in names:
            try:
                yield name, pool.apply_async(measure, (name, work)).get(MOST_SECONDS)
            except multiprocessing.TimeoutError:
                pool.terminate()
                pool = context.Pool(1)
                yield name, {"build_error": f"not measured within {MOST_SECONDS:.0f} s"}
    finally:
        pool.terminate()
        pool.join()


def trl(work: Path, log: Path) -> dict[str, Any]:
    """Returns TRL's losses and seconds, or its error, by model type."""
    from benchmarks.class_speed import BATCH, LEARNING_RATE

    output = work / "trl.json"
    options = ["--batch", str(BATCH), "--learning-rate", str(LEARNING_RATE)]
    command = [str(PYTHON), str(PEER), str(work), str(output), *options]
    settings = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        subprocess.run(command, stdout=file, stderr=file, env=settings, check=True)
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def add_trl(found: dict[str, Any], peer: dict[str, Any], tokens: Any) -> None:
    """Adds TRL's speed to a class' result if its losses are ours, else the reason."""
    from benchmarks.class_speed import rate

    if "rates" not in found:
        return
    if "error" in peer:
        found["trl_error"] = peer["error"][:_REASON]
        return
    found["losses"][TRL] = peer["losses"]
    found["rates"][TRL] = rate(peer["seconds"], tokens)


def loss_gap(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Returns the largest relative difference of a step's loss."""
    return max(abs(b / a - 1) for a, b in zip(ours, theirs, strict=True))


@contextmanager
def vllm_engine(folder: Path, log: Path) -> Iterator[Any]:
    from ift_scale.config import ProbeConfig
    from ift_scale.engines.process import EngineProcess
    from ift_scale.engines.protocol import EngineSpec

    config = ProbeConfig(engine="vllm", cpu_kv_cache_gib=1)
    engine = EngineProcess(EngineSpec(str(folder), "float32", config), log)
    try:
        yield engine.ready()
    finally:
        engine.close()


def measure_vllm(model_type: str, work: Path, logs: Path) -> dict[str, Any]:
    """Returns vLLM's largest difference in nats, or why it does not run the class here."""
    from ift_scale.errors import IFTScaleError
    from ift_scale.train.proof.shrink import CannotShrink

    try:
        _build(model_type, work, {}, VLLM_HIDDEN)
        with vllm_engine(work / model_type, logs / f"classes-{model_type}.log") as engine:
            return {"vllm_gap": scoring_gap(engine, work / model_type)}
    except (IFTScaleError, CannotShrink, RuntimeError, ValueError) as error:
        return {"vllm_error": why(error)}


def add_rows(sheet: Sheet, model_type: str, found: dict[str, Any]) -> None:
    """Adds the class' rows: the proof's seconds with all about it, and tokens per second."""
    from benchmarks.suite.rows import ratios

    rates, losses = found.pop("rates", {}), found.pop("losses", {})
    found.pop("training_path", None)
    gaps = {who: loss_gap(losses["ours"], losses[who]) for who in losses if who != "ours"}
    proven = Gate(
        checked="logits and gradients of the path against the model's own code",
        gap=found.get("difference"),
        tolerance=found.get("tolerance"),
    )
    about = {**found, "loss_gaps": gaps}
    sheet.add(model_type, "proof", "s", [found.get("proof_seconds", 0.0)], proven, about=about)
    for who, values in rates.items():
        others = {name: each for name, each in rates.items() if name != who}
        sheet.add(
            model_type,
            "tokens per second",
            "1/s",
            values,
            Gate(
                checked="relative difference of a step's loss from ours",
                gap=gaps.get(who),
                # TRL computes some classes otherwise, which the table shows.
                tolerance=None if who == TRL else LOSS_TOLERANCE,
            ),
            who,
            "higher",
            ratios=ratios(values, others, "higher") if who == "ours" else {},
        )


def add_vllm_row(sheet: Sheet, model_type: str, found: dict[str, Any]) -> None:
    """Adds vLLM's largest difference, or 0 with the error."""
    say(f"{model_type}: vLLM: {found.get('vllm_gap', found.get('vllm_error'))}")
    gate = Gate(checked="a forward pass per row; the difference is the figure")
    gap = found.get("vllm_gap", 0.0)
    sheet.add(model_type, "scoring", "nats", [gap], gate, VLLM, about=found)


def add_proof_row(sheet: Sheet, model_type: str, work: Path, stored: Sequence[Row]) -> None:
    """Adds the row of the proof, with what is stored about the class besides.

    Raises ValueError if the path is another one, with which scoring and speed are out of date.
    """
    (old,) = (row for row in stored if (row.case, row.quantity) == (model_type, "proof"))
    shutil.rmtree(work / "cache", ignore_errors=True)
    found = _build(model_type, work, {})
    found |= _proof(model_type, work, found)
    if found["path"] != old.about["path"]:
        raise ValueError(f"{model_type}: path {found['path']}; measure the class without --proof")
    del found["training_path"]
    gate = old.gate.model_copy(update={"gap": found["difference"], "tolerance": found["tolerance"]})
    about = {**old.about, **found}
    sheet.add(model_type, "proof", "s", [found["proof_seconds"]], gate, about=about)
    say(f"{model_type}: {found['proof_seconds']:.2f} s, {found['rejected']}")


def put(rows: Sequence[Row], folder: Path, only: str | None = None) -> Path:
    """Stores rows in place of those of the same types, sorted; vLLM's are replaced apart.

    `only`: the quantity whose rows are replaced, instead of all.
    """
    path, measured = folder / "classes.jsonl", {(row.case, row.who == VLLM) for row in rows}
    kept = [
        row
        for row in read_file(path)
        if (row.case, row.who == VLLM) not in measured or only not in (None, row.quantity)
    ]
    merged = sorted([*kept, *rows], key=lambda row: row.case)
    write_jsonl(path, merged)
    return path


@click.command()
@click.option(
    "--type",
    "names",
    multiple=True,
    help="Only this model type, the stored rows of others stay; may be repeated.",
)
@click.option("--trl/--no-trl", "with_trl", default=True, help="Measure TRL too.")
@click.option("--vllm", "only_vllm", is_flag=True, help="Measure vLLM, and nothing else.")
@click.option("--proof", "only_proof", is_flag=True, help="Prove again, and nothing else.")
@click.option("--repeats", default=1, help="Not used: steps are the repeats.")
@click.option("--logs", default=Path("runs/benchmark-logs"), type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Three classes, each with another path.")
def main(
    names: tuple[str, ...],
    with_trl: bool,
    only_vllm: bool,
    only_proof: bool,
    repeats: int,
    logs: Path,
    quick: bool,
) -> None:
    """Measure every class and store the rows of `classes`."""
    if with_trl and not (only_vllm or only_proof) and not PYTHON.is_file():
        raise click.UsageError("TRL is not installed; run `python -m benchmarks peers install trl`")
    chosen = ("llama", "gpt2", "mamba") if quick else names or model_types()
    sheet = Sheet("classes", quick)
    with tempfile.TemporaryDirectory() as root:
        work = Path(root)
        if only_vllm:
            for name in chosen:
                add_vllm_row(sheet, name, measure_vllm(name, work, logs))
                put(sheet.rows, out_folder(quick))
        elif only_proof:
            stored = read_file(out_folder(quick) / "classes.jsonl")
            os.environ["XDG_CACHE_HOME"] = str(work / "cache")
            for name in chosen:
                add_proof_row(sheet, name, work, stored)
            say(f"stored: {put(sheet.rows, out_folder(quick), 'proof')}")
            return
        else:
            add_all_rows(sheet, chosen, work, logs if with_trl else None)
    say(f"stored: {put(sheet.rows, out_folder(quick))}")


def add_all_rows(sheet: Sheet, names: Sequence[str], work: Path, peer_logs: Path | None) -> None:
    """Adds the rows of these types; those of TRL too if there is a folder for its log."""
    from benchmarks import class_speed

    tokens = class_speed.prepare(work)
    results = {}
    for name, found in measured_in_child(names, work):
        results[name] = found
        say(f"{name}: {summary(found)}")
    peers = trl(work, peer_logs / "classes-trl.log") if peer_logs is not None else {}
    for name, found in results.items():
        if name in peers:
            add_trl(found, peers[name], tokens)
        add_rows(sheet, name, found)


def summary(found: dict[str, Any]) -> str:
    """Returns a line about a class for the log."""
    for part in ("build", "proof"):
        if f"{part}_error" in found:
            return f"{part}: {found[f'{part}_error']}"
    return (
        f"{found['path']}, differs by {found['difference']:.1e}, {found['proof_seconds']:.1f} s; "
        f"scoring {found.get('scoring_gap', found.get('scoring_error'))}"
        + (f"; speed: {found['speed_error']}" if "speed_error" in found else "")
    )


if __name__ == "__main__":
    main()
