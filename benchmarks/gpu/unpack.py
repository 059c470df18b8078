"""python3 unpack.py TARGET FOLDER...: the archives site.tar.xz of the folders into TARGET, side by side.

Needs neither tar nor xz. The Python in them is compiled in the background; what is imported before that is compiled on import.
"""

import lzma
import subprocess
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def unpack(target: str, folder: str) -> None:
    with (
        lzma.open(Path(folder) / "site.tar.xz") as stream,
        tarfile.open(fileobj=stream, mode="r|") as archive,
    ):
        archive.extractall(target, filter="data")


if __name__ == "__main__":
    target, *folders = sys.argv[1:]
    Path(target).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(unpack, [target] * len(folders), folders))
    command = [sys.executable, "-m", "compileall", "-q", "-j", "12", target]
    subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
