"""The README's commands and its configuration work as they are printed."""

import re
import shlex
from pathlib import Path

import yaml
from click.testing import CliRunner

from ift_scale.cli import main
from ift_scale.config.file import from_dict

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def _commands() -> list[list[str]]:
    lines = "".join(_blocks("bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_configuration_is_valid() -> None:
    (text,) = _blocks("yaml")
    config = from_dict(yaml.safe_load(text), "README.md")
    assert [source.kind for source in config.questions.sources] == ["paper", "mmlu"]


def test_the_prediction_is_printed() -> None:
    (command,) = [words for words in _commands() if "--machine" in words]
    result = CliRunner().invoke(main, command[1:])
    assert result.exit_code == 0 and "512" in result.output and "MFU" in result.output


def test_it_is_one_page() -> None:
    prose = re.sub(r"<!-- bench:.*?<!-- /bench -->|^```.*?^```", "", TEXT, flags=re.M | re.S)
    assert len(prose.split()) < 750
