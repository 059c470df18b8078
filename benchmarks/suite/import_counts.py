"""Which packages each command imports before it does any work. Run as a process of its own; prints one JSON object.

Every command is called in a fork of a process that has imported the command line and nothing else: with --help, or, where it takes
a configuration, with one that is not there, so that it ends when it has imported what reading it needs. The stages' commands are
one function, of which the first is called.
"""

import json
import os
import sys

NO_CONFIG = "no-such-configuration.yaml"
# torch's build for CUDA imports cuda-bindings ("cuda"); its build for CPUs does not.
_NOT_ASKED_FOR = (
    "_",
    "benchmarks",
    "ift_scale",
    "cuda",
    "encodings",
    "cython_runtime",
    "sitecustomize",
    "usercustomize",
)


def packages() -> list[str]:
    """Names of what is imported that is neither Python's own nor ours."""
    names = {name.partition(".")[0] for name in sys.modules}
    return sorted(
        name for name in names - sys.stdlib_module_names if not name.startswith(_NOT_ASKED_FOR)
    )


def of_call(arguments: list[str]) -> list[str]:
    """What is imported when the command line has ended with these arguments, in a process of its own."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        from ift_scale.cli import main

        try:
            main(arguments, prog_name="ift-scale")
        except SystemExit:
            pass
        finally:
            os.write(write_end, json.dumps(packages()).encode())
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        found: list[str] = json.loads(pipe.read())
    os.waitpid(child, 0)
    return found


def calls() -> list[list[str]]:
    import click

    from ift_scale.cli import main
    from ift_scale.stages import STAGES

    found = [["--help"]]
    for name, command in main.commands.items():
        if name in [stage.name for stage in STAGES[1:]]:
            continue
        takes_config = any(
            isinstance(p, click.Argument) and p.name == "config" and p.required
            for p in command.params
        )
        found.append([name, NO_CONFIG] if takes_config else [name, "--help"])
    return found


if __name__ == "__main__":
    every = calls()  # imports the command line, before the forks
    print(
        json.dumps({" ".join(call).replace(NO_CONFIG, "CONFIG"): of_call(call) for call in every})
    )
