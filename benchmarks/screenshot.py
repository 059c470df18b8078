"""The report's picture in the README, in light and dark: `python -m benchmarks.screenshot runs/demo`.

In: a finished run, and Chromium or Chrome on the path. Out: docs/images/report-light.png and report-dark.png, with few colours, so
that they stay small.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import click
from PIL import Image

from benchmarks.suite.registry import CHECKOUT
from ift_scale.errors import EnvironmentProblem

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECTION = "accuracy"
WIDTH, HEIGHT = 1200, 775
COLOURS = 48


def browser() -> str:
    """The path of a browser; EnvironmentProblem if there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise EnvironmentProblem(
            f"no browser on the path ({', '.join(BROWSERS)}). Install one, such as Debian's chromium."
        )
    return found


def take(page: Path, scheme: str, out: Path) -> None:
    """Write `page` from `SECTION` on as a PNG, in a colour scheme: light or dark."""
    with tempfile.TemporaryDirectory() as folder:
        # A fragment scrolls after the screenshot is taken, so the sections before it are left out.
        text = page.read_text(encoding="utf-8")
        copy = Path(folder) / "page.html"
        start = text.index("<section")
        copy.write_text(text[:start] + text[text.index(f'<section id="{SECTION}"') :], "utf-8")
        shot = Path(folder) / "shot.png"
        command = [
            browser(), "--headless=new", "--no-sandbox", "--hide-scrollbars",
            f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}",
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
            copy.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        picture = Image.open(shot).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out, optimize=True)


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(run: Path) -> None:
    """Take the pictures of RUN's report."""
    for scheme in ("light", "dark"):
        out = CHECKOUT / "docs" / "images" / f"report-{scheme}.png"
        take(run / "report" / "index.html", scheme, out)
        click.echo(f"{out}: {out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
