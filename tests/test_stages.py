"""A new stage takes one folder and one line: one that the package does not have is added here."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from ift_scale import stages
from ift_scale.cli import stage_command
from ift_scale.config.file import from_dict
from ift_scale.errors import ArtifactError
from ift_scale.io.files import atomic_folder
from ift_scale.io.manifests import digest_of, read_manifest
from ift_scale.io.progress import Bar
from ift_scale.pipeline import Pipeline
from ift_scale.records import QUESTIONS_FILE
from ift_scale.stage import Context, Stage, Task
from ift_scale.stages import Entry

COUNT = Entry("count", "Count the questions.")


class CountStage(Stage):
    """Reads the questions, writes how many there are."""

    name = "count"
    version = 1

    def tasks(self, context: Context) -> list[Task]:
        inputs = {"questions": context.digest("questions", QUESTIONS_FILE)}
        return self.single(context, digest_of([self.version, inputs]), inputs)

    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        number = sum(context.question_file().sizes)
        with atomic_folder(pending[0].folder) as folder:
            (folder / "count.txt").write_text(f"{number}\n")
            pending[0].close({}, {"questions": number}, {"total": 0.0}, folder)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder `count/` with its `run.py`, and its line in `stages.py`."""
    module = ModuleType("ift_scale.count.run")
    module.STAGE = CountStage()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ift_scale.count.run", module)
    first, *others = stages.STAGES
    monkeypatch.setattr(stages, "STAGES", (first, COUNT, *others))


@pytest.mark.usefixtures("added")
def test_it_is_made_once_and_again_when_its_input_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"output_dir": str(tmp_path / "run"), "questions": {"sources": [{"kind": "world"}]}}
    with pytest.raises(ArtifactError, match="run `ift-scale questions`"):
        Pipeline(from_dict(settings)).make("count")
    pipeline = Pipeline(from_dict(settings))
    pipeline.make("questions")
    pipeline.make("count")
    number = int((tmp_path / "run" / "count" / "count.txt").read_text())
    lines = (tmp_path / "run" / "questions" / QUESTIONS_FILE).read_text().splitlines()
    assert number == len(lines) and f"count: questions {number}" in capsys.readouterr().out
    pipeline.make("count")
    assert "count: done already" in capsys.readouterr().out
    changed = settings | {"questions": {"sources": [{"kind": "world"}], "audit": {"near": False}}}
    made = read_manifest(tmp_path / "run" / "count")
    pipeline = Pipeline(from_dict(changed))
    pipeline.make("questions")
    pipeline.make("count")
    again = read_manifest(tmp_path / "run" / "count")
    assert made and again and made.key == again.key  # the file of questions is the same
    assert list(pipeline.context.manifests()) == [
        "questions",
        "count",
        *list(pipeline.context.stages)[2:],
    ]


@pytest.mark.usefixtures("added")
def test_it_has_a_command(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"output_dir: {tmp_path / 'run'}\nquestions: {{sources: [{{kind: world}}]}}\n"
    )
    command = stage_command(COUNT)
    assert "Count the questions." in CliRunner().invoke(command, ["--help"]).output
    with pytest.raises(ArtifactError, match="run `ift-scale questions`"):
        CliRunner().invoke(command, [str(config)], catch_exceptions=False)
