"""The pre-commit hooks are the commands of `make lint`, with the versions of the lock."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / ".pre-commit-config.yaml"
REPOS = yaml.safe_load(CONFIG.read_text())["repos"]
HOOKS = [hook for repo in REPOS for hook in repo["hooks"]]


def test_the_hooks_are_the_commands_of_make_lint() -> None:
    rule = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    commands = {line.removesuffix(" .") for line in re.findall(r"\$\(BIN\)/(.+)", rule)}
    entries = [hook["entry"].removesuffix(" --force-exclude") for hook in HOOKS]
    assert {entry.removeprefix(".venv/bin/") for entry in entries} == commands


def test_the_hooks_use_the_versions_of_the_lock() -> None:
    assert {repo["repo"] for repo in REPOS} == {"local"}, "others would install their own versions"
    lock = (ROOT / "configs" / "locks" / "cpu.txt").read_text().splitlines()
    for hook in HOOKS:
        assert hook["language"] == "system" and hook["entry"].startswith(".venv/bin/")
        tool = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert f"{tool}=={metadata.version(tool)}" in lock


def test_pre_commit_accepts_the_configuration() -> None:
    pytest.importorskip("pre_commit", reason="needs pre-commit: pip install pre-commit")
    command = [sys.executable, "-m", "pre_commit", "validate-config", str(CONFIG)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
