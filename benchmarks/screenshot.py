"""The screenshots in the README: `python -m benchmarks.screenshot FOLDER`.

Input: a finished run or screen, and Chromium or Chrome on the path. Output: NAME-light.png and
NAME-dark.png in docs/images, with few colors so that they stay small. NAME is `report` for
runs/demo, and `screen` for runs/screen-world/screen, which
`python -m benchmarks.bench_screen --quick --output runs/screen-world` leaves.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
from PIL import Image

from benchmarks.suite.registry import CHECKOUT
from ift_scale.errors import EnvironmentProblem

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH = 1200
COLOURS = 48


def browser() -> str:
    """The path of a browser; EnvironmentProblem if there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise EnvironmentProblem(
            f"no browser on the path ({', '.join(BROWSERS)}). Install one, such as Debian's "
            "chromium."
        )
    return found


@dataclass(frozen=True)
class Shot:
    """A picture: its name, the page's path in the folder, its first section, and its height."""

    name: str
    page: str
    section: str
    height: int


SHOTS = (
    Shot("report", "report/index.html", "accuracy", 775),
    Shot("screen", "index.html", "classes", 745),
)


def shot_of(folder: Path) -> Shot:
    """Returns the picture to take of a folder; EnvironmentProblem if it has no page."""
    found = next((shot for shot in SHOTS if (folder / shot.page).is_file()), None)
    if found is None:
        pages = " or ".join(shot.page for shot in SHOTS)
        raise EnvironmentProblem(f"{folder}: has no {pages}. Name a finished run or screen.")
    return found


def take(shot: Shot, folder: Path, scheme: str, out: Path) -> None:
    """Writes the folder's page from `shot.section` on as a PNG, in a scheme: light or dark."""
    with tempfile.TemporaryDirectory() as temporary:
        # A fragment scrolls after the screenshot is taken, so the sections before it are left out.
        text = (folder / shot.page).read_text(encoding="utf-8")
        copy = Path(temporary) / "page.html"
        start = text.index("<section")
        copy.write_text(text[:start] + text[text.index(f'<section id="{shot.section}"') :], "utf-8")
        png = Path(temporary) / "shot.png"
        command = [
            browser(), "--headless=new", "--no-sandbox", "--hide-scrollbars",
            f"--window-size={WIDTH},{shot.height}", f"--screenshot={png}",
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
            copy.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        picture = Image.open(png).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out, optimize=True)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Take the pictures of a run's report, or of a screen's page."""
    shot = shot_of(folder)
    for scheme in ("light", "dark"):
        out = CHECKOUT / "docs" / "images" / f"{shot.name}-{scheme}.png"
        take(shot, folder, scheme, out)
        click.echo(f"{out}: {out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
