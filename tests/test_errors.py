"""Texts from elsewhere that are shown or stored: escapes of a terminal, passwords in addresses."""

from pathlib import Path

import pandas as pd
import pytest

from ift_scale.config import resolved_yaml
from ift_scale.config.file import from_dict
from ift_scale.errors import ConfigError, has_user_info, printable
from ift_scale.io.progress import say
from ift_scale.io.tables import write_csv


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a\x1b]0;owned\x07\r\x9b2J\u202eb\ud800\tc\n日本 é"
    shown = r"a\x1b]0;owned\x07\r\x9b2J\u202eb\ud800" + "\tc\n日本 é"
    assert printable(text) == shown and printable(shown) == shown
    say("x\x1b[2J")
    assert capsys.readouterr().out == "x\\x1b[2J\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("proxy http://me:hunter2@proxy:3128/ failed", "proxy http://***@proxy:3128/ failed"),
        ("https://hunter2@api/v1?a=b", "https://***@api/v1?a=b"),
        ("postgresql+psycopg://u:hunter2@db/x", "postgresql+psycopg://***@db/x"),
        ("socks5h://u:p@ss-hunter2@h", "socks5h://***@h"),
        ("http://localhost:8000/v1 and me@example.org", None),
        ("https://host/path@2", None),
    ],
)
def test_passwords_in_addresses_are_not_shown(text: str, shown: str | None) -> None:
    assert printable(text) == (shown or text) and has_user_info(text) == (shown is not None)


@pytest.mark.parametrize("section", ["external", "own", "contexts"])
def test_a_password_in_a_setting_is_refused_and_not_repeated(section: str) -> None:
    author = {"kind": "endpoint", "model": "m"}

    def config(address: str) -> str:
        write = {section: author | {"base_url": address}}
        return resolved_yaml(from_dict({"output_dir": "x", "write": write}))

    assert "http://host/v1" in config("http://host/v1")
    with pytest.raises(ConfigError, match=f"write.{section}.base_url: contains a user") as caught:
        config("http://me:hunter2@host/v1")
    assert "hunter2" not in str(caught.value)


def test_cells_that_a_spreadsheet_would_execute_are_texts(tmp_path: Path) -> None:
    formula = '=HYPERLINK("http://x","y")'
    names = [formula, "+1+1", "-1+1", "@SUM(A1)", "\t=1", "law = 1"]
    table = pd.DataFrame({"subject": names, "@gap": [-0.5, 1.0, 2.0, 3.0, 4.0, 5.0], "n": range(6)})
    write_csv(table, tmp_path / "a.csv")
    written = pd.read_csv(tmp_path / "a.csv")
    assert list(written.columns) == ["subject", "'@gap", "n"]
    assert list(written.subject) == [f"'{name}" for name in names[:-1]] + ["law = 1"]
    assert list(written["'@gap"]) == list(table["@gap"]) and list(written.n) == list(range(6))
