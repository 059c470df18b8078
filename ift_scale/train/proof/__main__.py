"""Proves a folder with its own code: `python -m ift_scale.train.proof FOLDER MAX_LENGTH`.

Loads the folder's own tokenizer, too, if it has one. Prints the proof as JSON, or writes it to a
third argument; there, also the reason why the model cannot be trained (`stored.refusal`).
"""

import sys
from pathlib import Path

from ift_scale.engines.model_folder import has_own_tokenizer
from ift_scale.errors import DataError, IFTScaleError
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train.proof.stored import compute, refusal


def main(folder: str, max_length: str, result: str = "") -> None:
    try:
        proof = compute(Path(folder), int(max_length), trust_remote_code=True)
        if has_own_tokenizer(Path(folder)):
            PromptTokenizer(folder, trust_remote_code=True)
    except IFTScaleError as error:
        if result and isinstance(error, DataError):
            Path(result).write_text(refusal(error), encoding="utf-8")
        sys.exit(str(error))
    text = proof.model_dump_json(indent=1)
    if result:
        Path(result).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
