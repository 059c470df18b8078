"""Every benchmark as data: what it measures, its peers, its check, its size and duration."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ift_scale.errors import ConfigError, EnvironmentProblem, did_you_mean

QUICK = Path("runs/bench-quick")
"""Folder for the rows of quick runs."""
CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Size:
    """A benchmark's workload and duration on two idle cores."""

    workload: str
    fixed_minutes: float
    minutes_per_repeat: float
    min_repeats: int = 3
    max_repeats: int = 5

    def total(self, repeats: int) -> float:
        return self.fixed_minutes + repeats * self.minutes_per_repeat


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        driver: A file of benchmarks/ with the options --quick and --repeats.
        gate: The condition for storing a figure.
        gpu: What benchmarks/gpu runs of it, or why nothing.
        peers: Required environments of benchmarks/peers.
        in_all: Part of `run all`.
    """

    name: str
    measures: str
    against: str
    gate: str
    driver: str
    cpu: Size
    gpu: str
    peers: tuple[str, ...] = ()
    in_all: bool = True

    @property
    def module(self) -> str:
        return f"benchmarks.{Path(self.driver).stem}"


PEERS = {"lm-eval": "install.sh", "trl": "install_trl.sh"}
"""The installer of each peer's environment in benchmarks/peers."""

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "probe",
            "questions per second of scoring: token ids in, probabilities out",
            "the authors' loop, lm-evaluation-harness (hf, vllm)",
            "the same tokens; predictions equal to the authors' loop's in float32 on 99.5% of the "
            "questions (bfloat16: 90%)",
            "bench_probe.py",
            Size(
                "588 real MMLU 5-shot prompts, a random Llama with 22 M parameters, float32 and "
                "bfloat16",
                0.5,
                5.0,
                2,
            ),
            "gpu/probe.py: 2,000 MMLU questions, a 7B-shaped Llama; one request per option",
            ("lm-eval",),
        ),
        Benchmark(
            "engines",
            "vLLM and transformers: questions per second, start-up",
            "each other",
            "log-probabilities within 0.01 nats",
            "bench_engines.py",
            Size("the world's pool and 196 MMLU prompts", 0.7, 0.25, 2),
            "not yet",
        ),
        Benchmark(
            "models",
            "every model family: distance of few-shot, 0-shot and exported log-probabilities from "
            "plain transformers",
            "one forward pass per prompt by the model's own code, with the folder's own tokenizer "
            "on the whole prompt",
            "none: a difference is the result",
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
            "classes",
            "every causal language model class: training path, proof, scoring strategy, tokens per "
            "second",
            "the model's own code, one example or row at a time; TRL",
            "none: a difference is the result; the losses of all trainers are compared",
            "bench_classes.py",
            Size("small random models of all classes of transformers, one core", 25.0, 0.0, 1, 1),
            "not yet",
            ("trl",),
            in_all=False,
        ),
        Benchmark(
            "train",
            "tokens per second and seconds per optimizer step; the effect of each of our "
            "optimizations",
            "TRL in its best setting, TRL with transformers' loss, the paper's recipe (HF Trainer, "
            "rows padded to 2,048)",
            "the same tokens in the same steps; every step's loss within 1e-4 of ours (bfloat16: "
            "5e-3)",
            "bench_train.py",
            Size(
                "two ranks, ZeRO-2, a random Llama with 22 M parameters on real instructions",
                6.0,
                3.0,
                2,
            ),
            "gpu/train.py: 1B-, 3B- and 7B-shaped Llamas; gpu/peer_trl.py: TRL with Liger-Kernel; "
            "gpu/exact.py",
            ("trl",),
        ),
        Benchmark(
            "kernels",
            "milliseconds per op, forward and backward",
            "plain PyTorch; on a GPU torch.compile and Liger-Kernel",
            "outputs and gradients within 0.01% of float64 (bfloat16: 2%)",
            "bench_kernels.py",
            Size("the references on one thread", 0.3, 0.15),
            "bench_kernels.py: shapes of 7B models in bfloat16",
        ),
        Benchmark(
            "end-to-end",
            "tokens per second, wall time, accuracy and consistency of the same arms trained by "
            "ours and by TRL",
            "TRL's SFTTrainer",
            "the same tokens in the same steps, losses within 1e-3 of ours, 97% of the trained "
            "models' predictions equal",
            "bench_end_to_end.py",
            Size("H, I and S of the world's medicine, several seeds, two ranks", 0.8, 0.7),
            "not yet",
            ("trl",),
        ),
        Benchmark(
            "memory",
            "peak bytes in each phase of a training step, and of its export",
            "the memory model's prediction",
            "in the phase with the highest peak, the prediction is at most 10% above the measured "
            "bytes and at most 5% below",
            "bench_memory.py",
            Size("small Llamas, checkpointing none, selective and full", 0.6, 0.0, 1, 1),
            "gpu/train.py: peak compared with the memory model",
        ),
        Benchmark(
            "start-up",
            "seconds to the first optimizer step and to the first scored question, by part",
            "none",
            "the step's loss is finite and the question has an answer",
            "bench_start_up.py",
            Size("one arm of the world, two ranks; one question of it", 0.2, 1.0, 2),
            "not yet",
        ),
        Benchmark(
            "pipeline",
            "the probe without an engine: questions per second and memory, for a thousand to a "
            "million questions",
            "none",
            "every question is in the merged table",
            "bench_pipeline.py",
            Size("real MMLU prompts under new ids", 3.5, 0.45, 2),
            "as on a CPU: no accelerator is used",
        ),
        Benchmark(
            "questions",
            "the questions stage with and without near duplicates: questions per second and memory",
            "none",
            "every question is in the stage's file",
            "bench_questions.py",
            Size("10,000 and 100,000 questions of the paper's format", 0.6, 0.0, 1, 1),
            "as on a CPU: no accelerator is used",
        ),
        Benchmark(
            "own-data",
            "examples tokenised per second of real instructions, and losses on them",
            "TRL's preparation of a data set, and its losses",
            "the same tokens and supervised positions; losses of the same steps within 1e-4",
            "bench_own_data.py",
            Size(
                "999 real instructions, 40 times, in the world model's chat template", 0.7, 1.2, 2
            ),
            "as on a CPU: no accelerator is used",
            ("trl",),
            in_all=False,
        ),
        Benchmark(
            "checkpoint",
            "seconds and bytes of saving, loading and exporting, by model size",
            "none",
            "parameters are bit-identical to the saved ones; the export answers like the trained "
            "model",
            "bench_checkpoint.py",
            Size("random Llamas of 0.5 to 83 M parameters, ZeRO-2", 0.4, 0.3, 2),
            "not yet",
        ),
        Benchmark(
            "scaling",
            "growth of a step's time with set size, example length, vocabulary, ranks, ZeRO stage",
            "none",
            "the first step's loss is the same for every number of ranks and every stage",
            "bench_growth.py",
            Size("small Llamas, 1, 2 and 4 ranks, ZeRO 0 to 3", 0.5, 1.0, 2),
            "not yet: only one GPU was available",
        ),
        Benchmark(
            "simulator",
            "measured steps over a grid of models, stages, loads and ranks, and the simulator's "
            "predictions from the machine's rates",
            "the simulator (docs/simulator.md)",
            "none: every point's error is reported",
            "bench_simulator.py",
            Size(
                "46 points, 1 and 2 ranks; also writes configs/machines/cpu-*.yaml, so it is not "
                "part of `all`",
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
            "seconds by part of a whole experiment, and its results",
            "none",
            "every arm of the run is evaluated",
            "bench_demo.py",
            Size(
                "configs/demo.yaml from scratch: four domains, three settings, three seeds",
                0.0,
                1.9,
                1,
                2,
            ),
            "not yet",
        ),
        Benchmark(
            "cloze",
            "accuracy and calibration of letters and option texts on dev questions of real facts",
            "none",
            "log-probabilities of vllm and transformers within 1e-3 nats",
            "bench_cloze.py",
            Size("181 dev questions of three domains, SmolLM2-135M-Instruct", 2.3, 0.0, 1, 1),
            "not yet",
            in_all=False,
        ),
        Benchmark(
            "screen",
            "how well the screen separates known from contradicting examples: area under the "
            "ROC curve and calibration by kind of answer",
            "what the embedded world's model was trained to believe",
            "none: the areas are the result",
            "bench_screen.py",
            Size("1,221 planted facts as six kinds of examples", 12.0, 0.0, 1, 1),
            "not yet",
            in_all=False,
        ),
        Benchmark(
            "screen-released",
            "the same for the authors' released sets, harmonious against incompatible",
            "what LLaMA-2-7B knows",
            "none: the areas are the result",
            "bench_screen_released.py",
            Size("80 questions of each set, twice, SmolLM2-135M-Instruct", 30.0, 0.0, 1, 1),
            "not yet",
            in_all=False,
        ),
        Benchmark(
            "screen-training",
            "accuracy after training on screened, unscreened and randomly drawn data of the same "
            "size, on held-out questions",
            "each other",
            "every arm of the run is evaluated",
            "bench_screen_training.py",
            Size("choice questions of four domains of the world, five seeds", 6.0, 0.0, 1, 1),
            "not yet",
            in_all=False,
        ),
        Benchmark(
            "screen-speed",
            "examples with longer answers per CPU second: the log-likelihoods of a screen",
            "lm-evaluation-harness (hf)",
            "mean log-likelihoods per token within 1e-4 nats of the peer; ours within 1e-3 nats of "
            "float64 where they differ most",
            "bench_screen_speed.py",
            Size("16 rows of an Alpaca file, SmolLM2-135M-Instruct", 1.0, 3.0, 1, 3),
            "not yet",
            peers=("lm-eval",),
            in_all=False,
        ),
        Benchmark(
            "kills",
            "seconds until all processes of a killed or signalled run are gone, at moments of all "
            "stages; what its resumption leaves",
            "an undisturbed run",
            "no process remains, the run resumes, and its files are bit-identical, times aside",
            "bench_kills.py",
            Size(
                "a run of two arms, one rank and two, three ways to start them",
                2.0,
                25.0,
                1,
                1,
            ),
            "not yet",
            in_all=False,
        ),
        Benchmark(
            "soak",
            "growth of memory, open files and threads in long work",
            "none",
            "growth after the first fifth of the work is not above 1% of the memory, one file, one "
            "thread, or not beyond its interval",
            "bench_soak.py",
            Size("50,000 questions, 2,000 optimizer steps, 200 arms", 12.0, 0.0, 1, 1),
            "not yet",
            in_all=False,
        ),
        Benchmark(
            "fuzz",
            "malformed input of every kind: how many are read rightly, refused with words, or "
            "neither",
            "none",
            "every input ran to its end or to its limit of 20 s",
            "bench_fuzz.py",
            Size("10,000 inputs of 17 kinds, each in a process of its own", 12.0, 0.0, 1, 1),
            "as on a CPU: no accelerator is used",
            in_all=False,
        ),
        Benchmark(
            "kl",
            "what the divergence from the base model adds to an optimizer step, from a cache and "
            "from a frozen copy",
            "the same step without it",
            "losses of all three within 1e-6",
            "bench_kl.py",
            Size("one step of a random Llama with half of its products in the head", 0.5, 0.3),
            "not yet",
            in_all=False,
        ),
        Benchmark(
            "real",
            "seconds by part of a whole experiment with a real model, and its results",
            "none",
            "every arm of the run is evaluated",
            "bench_real.py",
            Size("configs/real.yaml from scratch: two domains, 30 arms", 0.0, 60.0, 1, 1),
            "not yet",
            in_all=False,
        ),
        Benchmark(
            "real-speed",
            "option texts and training tokens per CPU second with a real model on one thread",
            "lm-evaluation-harness (hf), TRL with the plain loss",
            "log-likelihoods within 1e-3 nats, losses within 1e-4",
            "bench_real_speed.py",
            Size("40 dev questions, 4 steps of 32 examples, SmolLM2-135M-Instruct", 4.0, 1.5),
            "not yet",
            peers=("lm-eval", "trl"),
            in_all=False,
        ),
    )
}


def folder() -> Path:
    """Returns benchmarks/ of the checkout; EnvironmentProblem if the package is installed alone."""
    found = CHECKOUT / "benchmarks"
    if not (found / "peers").is_dir():
        raise EnvironmentProblem(
            f"{found}: not found. The benchmarks are part of a checkout, not of an installed "
            "package. Clone the repository and install it with `pip install -e .`."
        )
    return found


def results_folder() -> Path:
    return folder() / "results"


def environment(peer: str) -> Path:
    """Returns the Python interpreter of a peer's environment."""
    return folder() / "peers" / {"lm-eval": ".venv", "trl": ".venv-trl"}[peer] / "bin" / "python"


def select(name: str) -> list[Benchmark]:
    """Returns the benchmark of this name; for "all", those that write only their rows."""
    if name == "all":
        return [benchmark for benchmark in BENCHMARKS.values() if benchmark.in_all]
    if name not in BENCHMARKS:
        raise ConfigError(
            "bench run",
            [f"unknown benchmark {name!r}; {did_you_mean(name, [*BENCHMARKS, 'all'])}"],
        )
    return [BENCHMARKS[name]]


def missing_peers(benchmarks: Iterable[Benchmark]) -> list[str]:
    needed = {peer for benchmark in benchmarks for peer in benchmark.peers}
    return sorted(peer for peer in needed if not environment(peer).exists())


def repeats_within(benchmarks: Sequence[Benchmark], minutes: float) -> dict[str, int]:
    """Returns the repeats by benchmark that fit into MINUTES.

    Starts from each benchmark's minimum and adds repeats where there are fewest. Raises ConfigError
    if the minimum takes longer.
    """
    found = {b.name: b.cpu.min_repeats for b in benchmarks}

    def total() -> float:
        return sum(b.cpu.total(found[b.name]) for b in benchmarks)

    if total() > minutes:
        problem = (
            f"--budget {minutes:g}: the minimum number of repeats of these benchmarks takes about "
            f"{total():.0f} minutes"
        )
        raise ConfigError("bench run", [f"{problem}; increase the budget, or name one benchmark"])
    open_ones = {b.name: b for b in benchmarks}
    while open_ones:
        name = min(open_ones, key=lambda n: found[n])
        size = open_ones[name].cpu
        if found[name] < size.max_repeats and total() + size.minutes_per_repeat <= minutes:
            found[name] += 1
        else:
            del open_ones[name]
    return found
