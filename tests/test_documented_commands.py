"""Commands in documents, docstrings and scripts exist and accept what they are given there.

Nothing is run: `ift-scale` and `python -m benchmarks` are asked by click, and the options of other
scripts of benchmarks/ are read from their source.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import benchmarks.__main__
import ift_scale.cli
from benchmarks.suite.registry import BENCHMARKS
from tests.test_docs_links import FENCE, ROOT, SPAN, tracked

CLICK = {
    "ift-scale": ift_scale.cli.main,
    "ift_scale.cli": ift_scale.cli.main,
    "benchmarks": benchmarks.__main__.main,
}
STARTS = r"(?:[A-Z_]+=\S+ +)*(?:ift-scale|python3? -m|make|srun|torchrun|benchmarks/|[a-z]+=|\$\w)"
# Programs and words of the shell after which another command follows.
LAUNCHERS = {"srun", "torchrun", "do", "then", "else", "time", "nice"}
PLACEHOLDER = re.compile(r"[A-Z][A-Z_-]*|\.\.\.|…")


def indented(text: str) -> Iterator[str]:
    """Indented commands; lines with a deeper indent continue the one before."""
    block = rf"^( {{4,}})({STARTS}.*(?:\n\1 +\S.*)*)"
    for _, command in re.findall(block, text, re.MULTILINE):
        yield re.sub(r"(?<!\\)\n", " ", command)


def snippets(text: str, suffix: str) -> Iterator[tuple[str, bool]]:
    """Pieces of shell code of a file, and whether they are complete commands."""
    if suffix == ".md":
        for fence in FENCE.finditer(text):
            if fence[0].lstrip().startswith("```bash"):
                yield fence[0].partition("\n")[2].rpartition("\n")[0], True
        rest = FENCE.sub("", text)
        yield from (("\n".join(indented(part)), True) for part in rest.split("\n\n"))
        yield from ((span[2].replace("\n", " "), False) for span in SPAN.finditer(rest))
    elif text.startswith('"""'):
        yield "\n".join(indented(text.split('"""')[1])), True


def simple_commands(code: str) -> Iterator[list[str]]:
    """The words of each command of shell code, with the code's own variables replaced."""
    code = code.replace("\\\n", " ")
    variables = dict(re.findall(r'^(\w+)="([^"]*)"$', code, re.MULTILINE))
    for _ in variables:  # one may contain another
        code = re.sub(r"\$(\w+)", lambda found: variables.get(found[1], found[0]), code)
    code = re.sub(r'"\$\(([^()]*)\)"', r"\1", code)
    while (flat := re.sub(r"(?<=\s)\[([^\[\]]*)\]", r"\1", code)) != code:
        code = flat  # [OPTIONAL] words
    for line in code.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in (*lexer, ";"):
            if set(word) <= set("();<>|&"):
                yield words
                words = []
            elif words or not re.fullmatch(r"[A-Z_]+=.*", word):
                words.append(word)


def program(words: list[str]) -> tuple[str, list[str]] | None:
    """The command of ours that `words` starts, and its arguments; None if it is another one."""
    for number, word in enumerate(words):
        name, before = Path(word).name, words[number - 1] if number else ""
        if name == "ift-scale" and (number == 0 or words[0] in {*LAUNCHERS, "eval"}):
            return name, words[number + 1 :]
        if before == "-m" and re.match(r"(benchmarks|ift_scale)\b", word):
            return word, words[number + 1 :]
        if re.fullmatch(r"benchmarks/[\w/]+\.py", word) and (number == 0 or "python" in words[0]):
            return word.removesuffix(".py").replace("/", "."), words[number + 1 :]
        if word == "make" and number == 0:
            return word, words[number + 1 :]
    return None


def problem(name: str, arguments: list[str], complete: bool) -> str | None:
    """What is wrong with a command, or None."""
    if name == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        unknown = {word for word in arguments if "=" not in word} - {*targets}
        return f"no target {', '.join(sorted(unknown))}" if unknown else None
    if name in CLICK:
        return click_problem(CLICK[name], arguments, complete)
    path = ROOT / f"{name.replace('.', '/')}.py"
    if "NAME" in name:
        return None
    if not path.is_file():
        return "no such module"
    unknown = options(arguments) - {*options_of(path), "--help"}
    return f"no option {', '.join(sorted(unknown))}" if unknown else None


def options(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}


def options_of(path: Path) -> set[str]:
    """The options of a script's `main`, from its decorators."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            calls = [call for call in node.decorator_list if isinstance(call, ast.Call)]
            texts = [a.value for call in calls for a in call.args if isinstance(a, ast.Constant)]
            found |= {name for text in texts for name in str(text).split("/")}
    return {name for name in found if name.startswith("-")}


def click_problem(command: click.Command, arguments: list[str], complete: bool) -> str | None:
    words = list(arguments)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        if PLACEHOLDER.fullmatch(name):
            return None
        if name not in command.commands:
            return f"no command {name}"
        command = command.commands[name]
    context = click.Context(command)
    known = {o for p in command.get_params(context) for o in (*p.opts, *p.secondary_opts)}
    unknown = options(words) - known
    if unknown:
        return f"no option {', '.join(sorted(unknown))}"
    if isinstance(command, click.Group) or not complete:
        return None
    try:
        values, rest, _ = command.make_parser(context).parse_args(words)
        for parameter in command.params:
            value = values.get(parameter.name)
            if not isinstance(value, str | list | tuple) or not value:
                if parameter.required:
                    return f"no {parameter.name}"
            elif not isinstance(parameter.type, click.Path):
                texts = [value] if isinstance(value, str) else value
                if not any(PLACEHOLDER.fullmatch(text) for text in texts):
                    parameter.type_cast_value(context, value)
    except click.UsageError as error:
        return error.format_message()
    if rest:
        return f"surplus arguments {' '.join(rest)}"
    if command.callback is benchmarks.__main__.run.callback and values["name"] not in BENCHMARKS:
        return None if values["name"] in ("all", "NAME") else f"no benchmark {values['name']}"
    return None


def commands(text: str, suffix: str) -> Iterator[tuple[str, list[str], bool]]:
    """Our commands in a file: the program, its arguments, and whether they are complete."""
    for code, complete in snippets(text, suffix):
        if re.search(r"ift[-_]scale|benchmarks|make", code):
            for words in simple_commands(code):
                if (ours := program(words)) is not None:
                    yield *ours, complete


def problems(text: str, suffix: str = ".md") -> list[str]:
    """A line for each command of a file that does not exist or takes other arguments."""
    return [
        f"{name} {' '.join(arguments)}: {wrong}"
        for name, arguments, complete in commands(text, suffix)
        if (wrong := problem(name, arguments, complete))
    ]


def test_every_documented_command_is_accepted() -> None:
    found, names = [], set()
    for name in sorted(tracked()):
        if name != "CHANGELOG.md" and re.match(r".*\.md$|benchmarks/.*\.py$", name):
            path = ROOT / name
            text = path.read_text(encoding="utf-8")
            names |= {command for command, *_ in commands(text, path.suffix)}
            found += [f"{name}: {wrong}" for wrong in problems(text, path.suffix)]
    assert not found, "\n" + "\n".join(found)
    assert {"ift-scale", "benchmarks", "benchmarks.peers.trl_sft", "make"} < names


ACCEPTED = """`ift-scale train`, `python -m benchmarks run NAME`, `make demo` and `ift-scale STAGE`

    run="srun --ntasks 2 ift-scale"
    $run batch CONFIG [ARM] [--step N]
    python -m benchmarks.bench_train --repeats 5
        [--slow-repeats 1]   # a comment

```bash
HF_HUB_OFFLINE=1 ift-scale run x.yaml --set a.b=[1] && ift-scale screen m a b \\
  --output=runs/x | tail
eval "$(ift-scale completion bash)"; cd ift-scale
python -m benchmarks peers install trl
```
"""


def test_the_checker_accepts_what_is_right() -> None:
    assert problems(ACCEPTED) == [] and len(list(commands(ACCEPTED, ".md"))) == 10


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("ift-scale trian x.yaml", "no command trian"),
        ("srun -n 2 ift-scale run x.yaml --sets a=1", "no option --sets"),
        ("ift-scale plan x.yaml --gpus many", "'many' is not a valid integer"),
        ("ift-scale plan x.yaml --gpus", "requires an argument"),
        ("ift-scale sft models/m --output runs/x", "no data"),
        ("ift-scale run a.yaml b.yaml", "surplus arguments b.yaml"),
        ('eval "$(ift-scale completion dash)"', "'dash' is not one of"),
        ("python -m benchmarks run trian", "no benchmark trian"),
        ("python -m benchmarks.bench_trian", "no such module"),
        ("cd x && python -m benchmarks.bench_train --quack", "no option --quack"),
        ("x=1\nbenchmarks/peers/.venv/bin/python benchmarks/peers/model.py --x", "no option --x"),
        ("make dmeo", "no target dmeo"),
    ],
)
def test_the_checker_finds_what_is_wrong(code: str, wrong: str) -> None:
    (found,) = problems(f"```bash\n{code}  # text\n```")
    assert wrong in found
