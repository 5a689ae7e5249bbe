#!/usr/bin/env python3
"""Copies a file into many pieces on the device: space is reserved 256 KiB at a time, in random order.

Usage: scripts/scatter_copy.py FILE COPY [PIECE_BYTES]

For reports about fragmented files: `faultline report order` compares the file's order with the device's. With 0 as PIECE_BYTES space is reserved at
once, which gives as few pieces as the file system has room for. `faultline map COPY --extents` counts them.
"""

import os
import random
import shutil
import sys


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    source, target = sys.argv[1:3]
    size_bytes = os.path.getsize(source)
    piece_bytes = int(sys.argv[3]) if len(sys.argv) == 4 else 256 << 10
    offsets = list(range(0, size_bytes, piece_bytes or size_bytes))
    random.Random(1).shuffle(offsets)
    with open(source, "rb") as reader, open(target, "xb") as writer:
        os.ftruncate(writer.fileno(), size_bytes)
        for offset in offsets:
            length = min(piece_bytes or size_bytes, size_bytes - offset)
            os.posix_fallocate(writer.fileno(), offset, length)
        shutil.copyfileobj(reader, writer, 8 << 20)
        os.fsync(writer.fileno())


if __name__ == "__main__":
    main()
