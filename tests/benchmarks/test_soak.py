"""Growth of memory, open files and threads is found, and nothing else is taken for it."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks import soak

PROCESS = """
import sys, threading, time
leak, kept = sys.argv[1], [bytearray(32 << 20)]
for line in sys.stdin:
    if leak == "memory":
        kept.append(bytearray(b"x" * (1 << 17)))
    elif leak == "open files" and int(line) % 10 == 0:
        kept.append(open("/dev/null"))
    elif leak == "threads" and int(line) % 20 == 0:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    print("done", flush=True)
"""
STEPS = 120


def _samples(leak: str) -> list[tuple[float, dict[str, float]]]:
    """Samples of a process that leaks at every step, or at some, or not at all."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PROCESS, leak]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        samples = []
        for step in range(1, STEPS + 1):
            process.stdin.write(f"{step}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            found = soak.sample(process.pid)
            assert found is not None
            samples.append((float(step), found))
        process.kill()
    return samples


@pytest.mark.parametrize(
    ("leak", "growing"),
    [
        ("none", set()),
        ("memory", set(soak.MEMORY)),
        ("open files", {soak.FILES}),
        ("threads", {soak.THREADS}),
    ],
)
def test_a_planted_leak_is_found(leak: str, growing: set[str]) -> None:
    found = soak.growths(_samples(leak))
    counted = {soak.FILES, soak.THREADS} if leak != "memory" else set(found)
    assert {name for name in counted if not found[name].is_flat} == growing


def test_growth_is_that_of_the_work_after_the_first_fifth() -> None:
    """A warm-up is not growth; afterwards 0.05 a step is, with noise around it."""
    noise = np.random.default_rng(0).normal(0, 1, 1000)
    for slope in (0.0, 0.05):
        memory = [100 + min(i, 100) + slope * i + noise[i] for i in range(1000)]
        samples = [(float(i), {soak.RSS: value}) for i, value in enumerate(memory)]
        growth = soak.growths(samples)[soak.RSS]
        assert growth.low < slope * 0.8 * 999 < growth.high
        assert growth.is_flat == (slope == 0)


def test_a_process_that_has_ended_has_no_sample() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert soak.sample(process.pid) is None
