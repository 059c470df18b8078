"""Every benchmark as data: what it measures and against whom, what must hold before a speed is kept, its size and its minutes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ift_scale.errors import ConfigError, EnvironmentProblem, did_you_mean

QUICK = Path("runs/bench-quick")
"""Where the rows of quick runs go."""
CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Size:
    """What is run. `minutes`: whatever the repeats; `each`: of one repeat, on two idle cores."""

    what: str
    minutes: float
    each: float
    least: int = 3
    most: int = 5

    def total(self, repeats: int) -> float:
        return self.minutes + repeats * self.each


@dataclass(frozen=True)
class Benchmark:
    """`driver`: a file of benchmarks/ that knows --quick and --repeats. `peers`: environments of benchmarks/peers that it needs."""

    name: str
    measures: str
    against: str
    gate: str
    driver: str
    cpu: Size
    gpu: str
    """What a GPU runs of it (benchmarks/gpu), or why nothing."""
    peers: tuple[str, ...] = ()
    in_all: bool = True
    """Part of `run all`."""

    @property
    def module(self) -> str:
        return f"benchmarks.{Path(self.driver).stem}"


PEERS = {"lm-eval": "install.sh", "trl": "install_trl.sh"}
"""The installer of each peer's environment, in benchmarks/peers."""

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "probe",
            "questions a second of scoring, token ids in, probabilities out",
            "the authors' loop, lm-evaluation-harness (hf, vllm)",
            "the same tokens asked; predictions as the authors' loop's in float32 on 99.5% of the questions (bfloat16: 90%)",
            "bench_probe.py",
            Size(
                "588 real MMLU 5-shot prompts, a random Llama of 22 M parameters, float32 and bfloat16",
                0.5,
                5.0,
                2,
            ),
            "gpu/probe.py: 2,000 MMLU questions, a 7B-shaped Llama; one request an option",
            ("lm-eval",),
        ),
        Benchmark(
            "engines",
            "vLLM against transformers: questions a second, start-up",
            "one another",
            "log-probabilities within 0.01 nats",
            "bench_engines.py",
            Size("the world's pool and 196 MMLU prompts", 0.7, 0.25, 2),
            "not yet",
        ),
        Benchmark(
            "models",
            "every family of models: distance of few-shot, 0-shot and exported log-probabilities from plain transformers",
            "a forward pass per prompt by the model's own code, the prompt tokenised whole by the folder's own tokenizer",
            "nothing: a difference is the result",
            "bench_models.py",
            Size(
                "22 tiny random models with tokenizers of the real kinds, 18 MMLU questions",
                16.0,
                0.0,
                1,
                1,
            ),
            "not yet",
            in_all=False,
        ),
        Benchmark(
            "train",
            "tokens a second and seconds of an optimizer step; what each of our measures brings",
            "TRL in its best setting, TRL with transformers' loss, the paper's recipe (HF Trainer, rows padded to 2,048)",
            "the same tokens in the same steps; every step's loss within 1e-4 of ours (bfloat16: 5e-3)",
            "bench_train.py",
            Size(
                "two ranks, ZeRO-2, a random Llama of 22 M parameters on real instructions",
                6.0,
                3.0,
                2,
            ),
            "gpu/train.py: 1B-, 3B- and 7B-shaped Llamas; gpu/peer_trl.py: TRL with Liger-Kernel; gpu/exact.py",
            ("trl",),
        ),
        Benchmark(
            "kernels",
            "milliseconds of an op, forward and backward",
            "plain PyTorch; on a GPU torch.compile and Liger-Kernel",
            "outputs and gradients within 0.01% of float64 (bfloat16: 2%)",
            "bench_kernels.py",
            Size("the references on one thread", 0.3, 0.15),
            "bench_kernels.py: shapes of 7B models in bfloat16",
        ),
        Benchmark(
            "end-to-end",
            "tokens a second, wall time, accuracy and consistency of the same arms trained by ours and by TRL",
            "TRL's SFTTrainer",
            "the same tokens in the same steps, losses within 1e-3 of ours, predictions of the trained models equal on 97%",
            "bench_end_to_end.py",
            Size("H, I and S of the world's medicine, several seeds, two ranks", 0.8, 0.7),
            "not yet",
            ("trl",),
        ),
        Benchmark(
            "memory",
            "most bytes held in each moment of a training step, and of its export",
            "what the memory model predicts",
            "in the dearest moment the prediction is at most 10% above what is held, and at most 5% below",
            "bench_memory.py",
            Size("small Llamas, checkpointing none, selective and full", 0.6, 0.0, 1, 1),
            "gpu/train.py: peak against the memory model",
        ),
        Benchmark(
            "start-up",
            "seconds to the first optimizer step and to the first scored question, part by part",
            "none",
            "the step's loss is a number and the question has an answer",
            "bench_start_up.py",
            Size("one arm of the world, two ranks; one question of it", 0.2, 1.0, 2),
            "not yet",
        ),
        Benchmark(
            "pipeline",
            "the probe without an engine: questions a second and memory, from a thousand to a million questions",
            "none",
            "every question is in the merged table",
            "bench_pipeline.py",
            Size("real MMLU prompts under new ids", 3.5, 0.45, 2),
            "the same as on a CPU: it uses none",
        ),
        Benchmark(
            "questions",
            "the questions stage with and without near duplicates: questions a second and memory",
            "none",
            "every question is in the stage's file",
            "bench_questions.py",
            Size("10,000 and 100,000 questions of the paper's format", 0.6, 0.0, 1, 1),
            "the same as on a CPU: it uses none",
        ),
        Benchmark(
            "checkpoint",
            "seconds and bytes of saving, loading and exporting against the model's size",
            "none",
            "parameters are bit for bit what was saved; the export answers as the trained model does",
            "bench_checkpoint.py",
            Size("random Llamas of 0.5 to 83 M parameters, ZeRO-2", 0.4, 0.3, 2),
            "not yet",
        ),
        Benchmark(
            "scaling",
            "how a step's time grows with set size, example length, vocabulary, ranks and ZeRO stage",
            "none",
            "the first step's loss is the same whatever the ranks and the stage",
            "bench_growth.py",
            Size("small Llamas, 1, 2 and 4 ranks, ZeRO 0 to 3", 0.5, 1.0, 2),
            "not yet: one GPU is all there was",
        ),
        Benchmark(
            "simulator",
            "steps over a grid of models, stages, loads and ranks beside what the simulator predicts from the machine's rates",
            "the simulator (docs/simulator.md)",
            "nothing: every point's error is told",
            "bench_simulator.py",
            Size(
                "46 points, 1 and 2 ranks; also writes configs/machines/cpu-*.yaml, so `all` leaves it out",
                12.0,
                0.0,
                5,
                5,
            ),
            "not yet",
            in_all=False,
        ),
        Benchmark(
            "demo",
            "where the time of a whole experiment goes, and what it finds",
            "none",
            "the run ends with every arm evaluated",
            "bench_demo.py",
            Size(
                "configs/demo.yaml from nothing: four domains, three settings, three seeds",
                0.0,
                1.9,
                1,
                2,
            ),
            "not yet",
        ),
    )
}


def folder() -> Path:
    """benchmarks/ of the checkout; EnvironmentProblem where the package is installed without it."""
    found = CHECKOUT / "benchmarks"
    if not (found / "peers").is_dir():
        raise EnvironmentProblem(
            f"{found}: the benchmarks lie beside the package in a checkout, and this is an installation without them. "
            "Clone the repository and install it with `pip install -e .`."
        )
    return found


def results_folder() -> Path:
    return folder() / "results"


def environment(peer: str) -> Path:
    """The interpreter of a peer's environment."""
    return folder() / "peers" / {"lm-eval": ".venv", "trl": ".venv-trl"}[peer] / "bin" / "python"


def chosen(name: str) -> list[Benchmark]:
    """The benchmark of this name, or all of them but those that also write documents and settings anew."""
    if name == "all":
        return [benchmark for benchmark in BENCHMARKS.values() if benchmark.in_all]
    if name not in BENCHMARKS:
        raise ConfigError(
            "bench run",
            [f"there is no benchmark {name!r}; {did_you_mean(name, [*BENCHMARKS, 'all'])}"],
        )
    return [BENCHMARKS[name]]


def missing_peers(benchmarks: Iterable[Benchmark]) -> list[str]:
    needed = {peer for benchmark in benchmarks for peer in benchmark.peers}
    return sorted(peer for peer in needed if not environment(peer).exists())


def repeats_within(benchmarks: Sequence[Benchmark], minutes: float) -> dict[str, int]:
    """Repeats by benchmark that fit into MINUTES: the least of each, then one more for whoever has fewest, as far as it goes.

    ConfigError where even the least take longer.
    """
    found = {b.name: b.cpu.least for b in benchmarks}

    def total() -> float:
        return sum(b.cpu.total(found[b.name]) for b in benchmarks)

    if total() > minutes:
        problem = f"--budget {minutes:g}: the fewest repeats of these benchmarks take about {total():.0f} minutes"
        raise ConfigError("bench run", [f"{problem}; give as many, or name one benchmark"])
    open_ones = {b.name: b for b in benchmarks}
    while open_ones:
        name = min(open_ones, key=lambda n: found[n])
        size = open_ones[name].cpu
        if found[name] < size.most and total() + size.each <= minutes:
            found[name] += 1
        else:
            del open_ones[name]
    return found
