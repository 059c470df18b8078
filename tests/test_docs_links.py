"""All Markdown: relative links and their anchors resolve, and paths in code exist."""

import re
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n.*?^ {0,3}\1[`~]* *$", re.M | re.S)
SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)
LINK = re.compile(
    r"\]\(\s*<?([^\s)>]+)>?[^)]*\)|^ {0,3}\[[^\]]+\]:\s*(\S+)|(?:href|src)=\"([^\"]+)\"", re.M
)
HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*$", re.M)
ANCHOR = re.compile(r"(?:id|name)=\"([^\"]+)\"")
PLACEHOLDER = re.compile(r"(?!README|LICENSE|CHANGELOG|CONTRIBUTING)[A-Z]{2}|[<>$]|\.\.\.|…")


def tracked() -> set[str]:
    """All tracked files, files that are about to be, and their folders."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    return files | {str(parent) for name in files for parent in PurePosixPath(name).parents}


def prose(text: str) -> str:
    """The text without code, in which brackets are no links."""
    return SPAN.sub(lambda span: " " * len(span[0]), FENCE.sub("", text))


def links(text: str) -> list[str]:
    """Targets of a page's links within the repository."""
    found = ("".join(match) for match in LINK.findall(prose(text)))
    return [link for link in found if not re.match(r"[a-z][a-z0-9+.-]*:|//", link, re.I)]


def anchors(text: str) -> set[str]:
    """Names of a page's headings by GitHub's rule; a repeated one gets -1, -2, ..."""
    found: dict[str, int] = {}
    names = set(ANCHOR.findall(text))
    for heading in HEADING.findall(FENCE.sub("", text)):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).strip().replace(" ", "-")
        count = found.get(name, 0)
        found[name] = count + 1
        names.add(f"{name}-{count}" if count else name)
    return names


def broken_links(page: str, text: str, files: set[str]) -> list[str]:
    """A line for each link of `page`, a path within the repository, that leads nowhere."""
    problems = []
    for link in links(text):
        path, _, anchor = link.partition("#")
        target = page
        if path:
            target = str((ROOT / page).parent.joinpath(path).resolve())
            target = target.removeprefix(f"{ROOT.resolve()}/")
        if target not in files:
            problems.append(f"{page}: the link {link} leads to no file")
        elif anchor and target.endswith(".md"):
            its_text = text if target == page else (ROOT / target).read_text(encoding="utf-8")
            if anchor not in anchors(its_text):
                problems.append(f"{page}: {target} has no heading for the link {link}")
    return problems


def expanded(path: str) -> list[str]:
    """`a/{b,c}.py` as `a/b.py` and `a/c.py`."""
    braces = re.search(r"\{([^{}]*)\}", path)
    if braces is None:
        return [path]
    return [
        one
        for part in braces[1].split(",")
        for one in expanded(path[: braces.start()] + part + path[braces.end() :])
    ]


def paths(text: str, files: set[str]) -> list[str]:
    """Words in code that begin with a folder of the repository and name no placeholder."""
    folders = {name.split("/")[0] for name in files if "/" in name}
    code = [match[0] for match in FENCE.finditer(text)] + [
        match[2] for match in SPAN.finditer(FENCE.sub("", text))
    ]
    words = [word for part in code for word in re.split(r"[\s'\"()=;|,]+(?![^{]*\})", part)]
    found = [
        re.sub(r"(::.*|:\d+)$", "", word).rstrip("/.:")
        for word in words
        if word.split("/")[0] in folders and "/" in word
    ]
    return [path for path in found if not PLACEHOLDER.search(path)]


def exists(path: str, files: set[str]) -> bool:
    if "*" in path:
        return any(fnmatchcase(name, path) for name in files)
    made_later = ["git", "check-ignore", path, f"{path}/"]
    return (
        path in files or subprocess.run(made_later, cwd=ROOT, capture_output=True).returncode == 0
    )


def missing_paths(page: str, text: str, files: set[str]) -> list[str]:
    named = {one for path in paths(text, files) for one in expanded(path)}
    return [f"{page}: {path} does not exist" for path in sorted(named) if not exists(path, files)]


def test_links_lead_somewhere_and_paths_exist() -> None:
    files = tracked()
    problems = []
    for page in sorted(name for name in files if name.endswith(".md")):
        text = (ROOT / page).read_text(encoding="utf-8")
        problems += broken_links(page, text, files)
        if page != "CHANGELOG.md":  # it also names what was
            problems += missing_paths(page, text, files)
    assert not problems, "\n" + "\n".join(problems)


PAGE = """# A page: its `title`, _twice_

[here](#a-page-its-title-_twice_) [again](#more-1) [file](Makefile) [folder](docs/)
[web](https://example.org/x) `[no](link)`

```bash
make # [no](link)
# No heading
launch/setup.sh configs/demo.yaml
ls configs/NAME.yaml x=tests/conftest.py,configs/locks/{cpu,cuda}.txt
```

## More
## [More](setup.py)
<a id="mark"></a> [mark](#mark) `tests/test_layout.py::test_x`, `tests/test_*.py`,
`configs/locks/`, `ift_scale/cli.py:12` and `train/run.sh`
"""


def test_the_checker_accepts_what_is_right() -> None:
    files = tracked()
    assert broken_links("README.md", PAGE, files) == []
    assert missing_paths("README.md", PAGE, files) == []
    assert {"configs/demo.yaml", "tests/conftest.py", "tests/test_*.py", "ift_scale/cli.py"} <= set(
        paths(PAGE, files)
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[x](nowhere.md)", "the link nowhere.md leads to no file"),
        ("[x](docs/nowhere.md#a)", "the link docs/nowhere.md#a leads to no file"),
        ("[x](../outside.md)", "the link ../outside.md leads to no file"),
        ("[x]: nowhere.md", "the link nowhere.md leads to no file"),
        ('<img src="nowhere.png">', "the link nowhere.png leads to no file"),
        (
            "[x](docs/cluster.md#nothing)",
            "docs/cluster.md has no heading for the link docs/cluster.md#nothing",
        ),
        ("[x](#no-heading)", "README.md has no heading for the link #no-heading"),
        ("`tests/nowhere.py`", "tests/nowhere.py does not exist"),
        ("run `python -m x tests/no_*.py`", "tests/no_*.py does not exist"),
        ("`configs/locks/{cpu,tpu}.txt`", "configs/locks/tpu.txt does not exist"),
        ("```bash\nlaunch/nowhere.sh\n```", "launch/nowhere.sh does not exist"),
    ],
)
def test_the_checker_finds_what_is_wrong(text: str, problem: str) -> None:
    files = tracked()
    found = broken_links("README.md", f"{PAGE}\n{text}\n", files) + missing_paths(
        "README.md", f"{PAGE}\n{text}\n", files
    )
    assert found == [f"README.md: {problem}"]
