"""`launch/setup.sh` with stand-ins on PATH: the interpreter that it takes, the packages that it
installs, and when it creates the environment again."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCK = "configs/locks/cpu.txt"
TORCH = next(line for line in (ROOT / LOCK).read_text().splitlines() if line.startswith("torch=="))

# An interpreter. It prints what the script asks for, creates an environment whose python is a link
# to itself, and logs calls of pip. Calls that match FAIL fail.
PYTHON = r"""#!/bin/bash
case "$1" in
  -) cat >/dev/null; echo "{problem}" ;;
  -c) echo "{version}" ;;
  -m)
    if [ "$2" = venv ]; then
      echo "venv {version}" >>"$LOG"
      rm -rf "$4"; mkdir -p "$4/bin"; ln -s "$(readlink -f "$0")" "$4/bin/python"
    else
      echo "pip $*" >>"$LOG"
      [ -z "${{FAIL:-}}" ] || ! [[ "$*" =~ $FAIL ]]
    fi ;;
esac
"""
UV = r"""#!/bin/bash
echo "uv $*" >>"$LOG"
case "$1 $2" in
  "python find") [ -e "$MANAGED" ] && echo "$MANAGED" ;;
  "python install") [ -e "$MANAGED.later" ] && mv "$MANAGED.later" "$MANAGED" ;;
  "venv -q") mkdir -p "${@: -1}/bin"; ln -sf "$6" "${@: -1}/bin/python" ;;
  "pip install") [ -z "${FAIL:-}" ] || ! [[ "$*" =~ $FAIL ]] ;;
esac
"""
HEADERS = "needs its headers (apt-get install python3.12-dev)"


class Machine:
    """A folder of stand-ins for PATH and a checkout with the files that the script reads."""

    def __init__(self, root: Path) -> None:
        self.bin, self.checkout, self.log = root / "bin", root / "checkout", root / "log"
        self.bin.mkdir()
        for tool in (
            "bash",
            "cat",
            "cut",
            "dirname",
            "env",
            "grep",
            "ln",
            "mkdir",
            "mv",
            "readlink",
            "rm",
            "sha256sum",
        ):
            (self.bin / tool).symlink_to(
                next(p for p in (Path("/bin") / tool, Path("/usr/bin") / tool) if p.exists())
            )
        for name in ("launch/setup.sh", LOCK, "setup.py"):
            (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.checkout / name)

        self.add("g++", "#!/bin/sh\n")

    def add(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def python(self, name: str, version: str, problem: str = "") -> Path:
        return self.add(name, PYTHON.format(version=version, problem=problem))

    def run(self, **env: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run(
            ["bash", "launch/setup.sh"],
            cwd=self.checkout,
            env={
                "PATH": str(self.bin),
                "LOG": str(self.log),
                "MANAGED": str(self.bin / "managed"),
                **env,
            },
            capture_output=True,
            text=True,
        )

    def made(self, **env: str) -> list[str]:
        """Runs the script, which must succeed; returns what was called."""
        result = self.run(**env)
        assert result.returncode == 0, result.stderr
        return self.log.read_text().splitlines()

    def refused(self, **env: str) -> str:
        result = self.run(**env)
        assert result.returncode == 3
        assert len(result.stderr.splitlines()) == 1, "one line"
        assert not self.log.read_text(), "nothing may be made"
        return result.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("fake", "uv", "problem"),
    [
        ("", "", ""),
        (
            "sys.version_info = (3, 10, 4)",
            "",
            r"is Python 3\.10 \(3\.11, 3\.12 and 3\.13 are supported\)",
        ),
        ("sys.version_info = (3, 14, 0)", "", r"is Python 3\.14 \(.*\)"),
        (
            "os.path.exists = lambda path: False",
            "",
            r"needs its headers \(apt-get install python3\.\d+-dev\)",
        ),
        (
            "importlib.util.find_spec = lambda name: None",
            "",
            r"needs venv \(apt-get install python3\.\d+-venv\)",
        ),
        ("importlib.util.find_spec = lambda name: None", "/bin/uv", ""),
    ],
)
def test_why_an_interpreter_does_not_fit(fake: str, uv: str, problem: str) -> None:
    code = (
        (ROOT / "launch" / "setup.sh")
        .read_text()
        .split("<<'PY'")[1]
        .split("\n", 1)[1]
        .split("\nPY\n")[0]
    )
    code = f"import importlib.util, os, sys, sysconfig\n{fake}\n{code}"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={"WITH_UV": uv},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(problem, answer.stdout.strip())


def test_the_first_interpreter_that_fits_is_taken(machine: Machine) -> None:
    machine.python("python3", "3.10", "is Python 3.10")
    machine.python("python3.11", "3.11", "needs venv (apt-get install python3.11-venv)")
    machine.add(
        "python3.12", "#!/bin/sh\nexit 127\n"
    )  # a shim of pyenv for a version that is not selected
    machine.python("python3.13", "3.13")
    assert machine.made()[0] == "venv 3.13"
    machine.python("python3", "3.12")
    (machine.checkout / ".venv" / ".ready").unlink()
    assert machine.made()[0] == "venv 3.12"


def test_python_names_another(machine: Machine) -> None:
    machine.python("python3", "3.11")
    other = machine.python("other", "3.13")
    assert machine.made()[0] == "venv 3.11"
    assert machine.made(PYTHON=str(other))[0] == "venv 3.13"
    assert machine.made(PYTHON="other") == []
    assert machine.made() == [], "a finished environment of another supported version is kept"


def test_what_is_missing_is_one_line(machine: Machine) -> None:
    assert "no Python 3.11, 3.12 or 3.13 on PATH" in machine.refused()
    machine.python("python3", "3.9", "is Python 3.9 (3.11, 3.12 and 3.13 are supported)")
    assert "apt-get install python3 " in machine.refused()
    assert "PYTHON=python3 is Python 3.9" in machine.refused(PYTHON="python3")
    assert "PYTHON=/no/python is not an executable" in machine.refused(PYTHON="/no/python")
    machine.python("python3.12", "3.12", HEADERS)
    assert f"python3.12 {HEADERS}" in machine.refused()
    (machine.bin / "g++").unlink()
    assert "no C++ compiler" in machine.refused()


def test_uv_makes_the_environment_and_installs(machine: Machine) -> None:
    machine.add("uv", UV)
    machine.python("python3.13", "3.13")
    called = machine.made()
    assert called[0] == "uv venv -q --seed --clear --python python3.13 .venv"
    assert all("pip install -q --compile-bytecode" in line for line in called[1:])


def test_uv_brings_an_interpreter(machine: Machine) -> None:
    machine.add("uv", UV)
    machine.python("python3.12", "3.12", HEADERS)
    machine.python("managed", "3.12")
    managed = f"uv venv -q --seed --clear --python {machine.bin / 'managed'} .venv"
    assert machine.made()[:2] == ["uv python find --managed-python >=3.11,<3.14", managed]
    (machine.bin / "managed").rename(machine.bin / "managed.later")
    (machine.checkout / ".venv" / ".ready").unlink()
    assert machine.made()[1:4:2] == ["uv python install -q 3.12", managed]


def test_the_build_of_torch(machine: Machine) -> None:
    machine.python("python3", "3.12")
    called = [line for line in machine.made() if "torch" in line]
    assert len(called) == 1 and called[0].endswith(f"--no-deps {TORCH}+cpu")

    def again(fail: str) -> tuple[str, list[str]]:
        (machine.checkout / ".venv" / ".ready").unlink(missing_ok=True)
        result = machine.run(FAIL=fail)
        return result.stdout, [
            line for line in machine.log.read_text().splitlines() if "torch" in line
        ]

    printed, called = again("--no-deps torch")
    assert len(called) == 2 and called[1].endswith(
        f"--index-url https://download.pytorch.org/whl/cpu {TORCH}+cpu"
    )
    assert "CUDA" not in printed
    printed, called = again("cpu$")
    assert len(called) == 3 and called[2].endswith(f"install -q {TORCH}"), (
        "with its own requirements"
    )
    assert f"no CPU build of {TORCH} for Python 3.12" in printed


def test_an_environment_is_made_again_only_if_it_must_be(machine: Machine) -> None:
    machine.python("python3", "3.12")
    assert machine.run(FAIL="-r configs").returncode != 0, "interrupted among the packages"
    assert machine.made()[0] == "venv 3.12"
    assert machine.made() == []
    for name in (LOCK, "setup.py"):
        with (machine.checkout / name).open("a") as file:
            file.write("# changed\n")
        assert machine.made()[0] == "venv 3.12", name
    machine.checkout = machine.checkout.rename(machine.checkout.with_name("moved"))
    assert machine.made()[0] == "venv 3.12", "scripts name the folder"
    machine.bin.joinpath("python3").unlink()
    machine.python("python3.13", "3.13")
    assert machine.made()[0] == "venv 3.13", "its interpreter is gone"


def test_the_lock_serves_every_python_and_the_set_up_names_the_same() -> None:
    lines = (ROOT / LOCK).read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(
        re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; python_full_version [<>]=? '3\.1[23]')?", line)
        for line in pins
    )
    assert '">=3.11,<3.14"' in (ROOT / "setup.py").read_text()
    assert (
        "(3, 11) <= sys.version_info[:2] <= (3, 13)" in (ROOT / "launch" / "setup.sh").read_text()
    )


def test_make_passes_the_interpreter_on(machine: Machine) -> None:
    machine.python("chosen", "3.12")
    (machine.checkout / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    (machine.bin / "make").symlink_to("/usr/bin/make")
    env = {"PATH": str(machine.bin), "LOG": str(machine.log)} | {
        k: v for k, v in os.environ.items() if k == "HOME"
    }
    command = ["make", "PYTHON=chosen", "VENV=elsewhere", "SHELL=/bin/bash", "setup"]
    result = subprocess.run(command, cwd=machine.checkout, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert machine.log.read_text().startswith("venv 3.12\n")
    assert (machine.checkout / "elsewhere" / ".ready").exists()
