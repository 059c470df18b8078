"""Proves a folder with its own code: `python -m ift_scale.train.proof FOLDER MAX_LENGTH`.

Prints the proof as JSON, or writes it to a third argument.
"""

import sys
from pathlib import Path

from ift_scale.errors import IFTScaleError
from ift_scale.train.proof.stored import compute


def main(folder: str, max_length: str, result: str = "") -> None:
    try:
        proof = compute(Path(folder), int(max_length), trust_remote_code=True)
    except IFTScaleError as error:
        sys.exit(str(error))
    text = proof.model_dump_json(indent=1)
    if result:
        Path(result).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
