"""Finding a run, or the runs of a study, from the path that a user gives."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from ift_scale.config import Config
from ift_scale.config.file import load, load_study
from ift_scale.errors import DataError, Place

SETTINGS = "config.yaml"
"""The settings in force, which every command writes into its run's folder."""


@dataclass(frozen=True)
class Located:
    """A run's folder and settings, or those of a study's variants by name.

    `started` is false if no command has worked in the folder yet. `config_file` is the file that
    was given, None if a folder was given. `variant` is the name of a study's variant.
    """

    folder: Path
    config: Config
    started: bool = True
    config_file: Path | None = None
    variant: str | None = None
    variants: dict[str, "Located"] = field(default_factory=dict)


def locate(path: str | Path) -> Located:
    """The run or study at `path`: a run's folder, a study's folder, or a configuration file.

    Raises DataError for a path that is neither, ConfigError for an invalid configuration.
    """
    path = Path(path)
    if path.is_file():
        return _of_file(path)
    if not path.exists():
        remedy = "Give a run's folder or its configuration file"
        raise DataError(Place(path), "no such file or folder", remedy)
    if (path / SETTINGS).is_file():
        return _of_folder(path)
    inside = sorted(file.parent for file in path.glob(f"*/{SETTINGS}"))
    if not inside:
        remedy = "Give the output_dir of a run, or its configuration file"
        raise DataError(Place(path), f"is not a run's folder: it has no {SETTINGS}", remedy)
    variants = {folder.name: replace(_of_folder(folder), variant=folder.name) for folder in inside}
    return Located(path, next(iter(variants.values())).config, variants=variants)


def _of_folder(folder: Path) -> Located:
    return Located(folder, load(folder / SETTINGS))


def _of_file(path: Path) -> Located:
    study = load_study(path)
    variants = {
        name: replace(_configured(path, config), variant=name)
        for name, config in study.variants.items()
    }
    if not variants:
        return _configured(path, study.config)
    return Located(Path(study.config.output_dir), study.config, config_file=path, variants=variants)


def _configured(path: Path, config: Config) -> Located:
    """The run of a configuration. Its results are described by the settings that made them."""
    folder = Path(config.output_dir)
    if not (folder / SETTINGS).is_file():
        return Located(folder, config, started=False, config_file=path)
    return Located(folder, load(folder / SETTINGS), config_file=path)
