"""Shell completion: click's own, by the script that `ift-scale completion` prints."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ift_scale.cli import main

COMMAND = str(Path(sys.executable).parent / "ift-scale")


def _completed(words: str, position: int) -> list[str]:
    """What click offers for the word at `position` of a command line, as bash asks for it."""
    asked = {"_IFT_SCALE_COMPLETE": "bash_complete", "COMP_WORDS": words}
    environment = os.environ | asked | {"COMP_CWORD": str(position)}
    done = subprocess.run([COMMAND], env=environment, capture_output=True, text=True, check=True)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_commands_and_options_are_completed() -> None:
    assert _completed("ift-scale constr", 1) == ["construct"]
    assert set(_completed("ift-scale p", 1)) == {"plan", "probe"}
    assert _completed("ift-scale show --vari", 2) == ["--variant"]
    assert _completed("ift-scale sf", 1) == ["sft"]
    assert set(_completed("ift-scale sft world x --", 4)) >= {"--output", "--weight", "--set"}
    assert _completed("ift-scale completion z", 2) == ["zsh"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0 and f"_IFT_SCALE_COMPLETE={shell}_complete" in result.output


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_with_the_script() -> None:
    script = (
        f'PATH="{Path(COMMAND).parent}:$PATH"\n'
        'eval "$(ift-scale completion bash)"\n'
        "COMP_WORDS=(ift-scale evalu) COMP_CWORD=1\n"
        "_ift_scale_completion ift-scale\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "evaluate", done.stderr
