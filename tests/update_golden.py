"""Stores the results that `test_pipeline.py` compares a run with, and the keys of `test_keys.py`.

python -m tests.update_golden
"""

import json
import tempfile
from pathlib import Path

import pandas as pd

from tests import test_keys
from tests.test_pipeline import GOLDEN, TRANSFORMERS, _run


def main() -> None:
    losses, settings = GOLDEN / "small_run_losses.json", GOLDEN / "small_run_settings.csv"
    with tempfile.TemporaryDirectory() as temporary:
        keys = test_keys.all_keys(Path(temporary) / "keys")
        folder = Path(temporary) / "run"
        _run(folder, *TRANSFORMERS)
        found = {}
        for arm in json.loads(losses.read_text()):
            rows = (folder / "train" / arm / "metrics.jsonl").read_text().splitlines()
            found[arm] = [round(json.loads(row)["loss"], 5) for row in rows]
        columns = list(pd.read_csv(settings))
        table = pd.read_csv(folder / "report" / "settings.csv")[columns].round(4)
    test_keys.GOLDEN.write_text(json.dumps(keys, indent=1) + "\n")
    losses.write_text(json.dumps(found, indent=1) + "\n")
    table.to_csv(settings, index=False)


if __name__ == "__main__":
    main()
