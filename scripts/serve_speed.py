#!/usr/bin/env python3
"""How fast a server generates, against programs without one. Needs a release build of faultline and the two real models.

  token   time per token of one stream, against `faultline run` into a pipe
  batch   tokens per second of several streams at a time, against llama.cpp's own llama-batched-bench, unpatched (--bench)

The two take turns, with each other's place changed each time, and load the model anew each time. Printed are the medians, and the ratio of the
medians with its 95 % interval (bootstrap over pairs).
"""

import itertools
import json
import random
import statistics
import subprocess

from serve_client import QUESTION, Server, arrival, output_of, parser_of, table

WINDOW = 16


def ratio(pairs):
    """The ratio of medians of pairs, with its 95 % interval."""
    of = lambda sample: statistics.median(a for a, _ in sample) / statistics.median(b for _, b in sample)
    draw = random.Random(0)
    resampled = sorted(of(draw.choices(pairs, k=len(pairs))) for _ in range(4000))
    return of(pairs), resampled[100], resampled[3899]


def in_turn(repeat, first, second):
    pairs = []
    for turn in range(repeat):
        if turn % 2 == 0:
            a = first()
            pairs.append((a, second()))
        else:
            b = second()
            pairs.append((first(), b))
    return pairs


def report(name, what, pairs, names, unit):
    value, low, high = ratio(pairs)
    medians = [statistics.median(column) for column in zip(*pairs)]
    print(f"{name}: {what}: {names[0]} {medians[0]:.3f} {unit}, {names[1]} {medians[1]:.3f}; ratio {value:.4f} ({low:.4f} to {high:.4f}), "
          f"{len(pairs)} pairs", flush=True)


def per_token_ms(times):
    """Time per token of a stream: the median over pieces of 16 tokens, since others use this machine too."""
    pieces = [(b - a) / WINDOW for a, b in zip(times, times[WINDOW:])][::WINDOW]
    return statistics.median(pieces) * 1e3


def token(arguments, name, path):
    server = Server(arguments.binary, arguments.keys.replace(",", "\n") + "\n" + table(name, path, "n_ctx = 2048"))
    body = {"model": name, "prompt": QUESTION, "max_tokens": arguments.tokens, "temperature": 0}
    command = [arguments.binary, "run", "-m", path, "-p", QUESTION, "--raw", "--temp", "0", "-n", str(arguments.tokens), "-c", "2048"]
    pieces = []

    def served():
        server.unload(name)
        [stream] = server.streams([body])
        pieces[:] = stream.pieces
        return per_token_ms(stream.times)

    def run():
        received = output_of(command)
        # Greedy texts are equal, so the server's tokens are those of this run.
        ends = list(itertools.accumulate(len(piece.encode()) for piece in pieces))
        assert b"".join(data for _, data in received).strip() == "".join(pieces).encode().strip()
        return per_token_ms([arrival(received, end) for end in ends])

    report(name, "time per token", in_turn(arguments.repeat, served, run), ("server", "run"), "ms")
    server.close()


def batch(arguments, name, path):
    count = arguments.streams
    server = Server(arguments.binary, table(name, path, f"n_ctx = 2048\nconcurrency_limit = {count}"))
    bodies = [{"model": name, "prompt": QUESTION + "\n" * n, "max_tokens": arguments.tokens, "temperature": 0} for n in range(count)]
    command = [arguments.bench, "-m", path, "-c", "2048", "-b", "512", "-ub", "512", "-kvu", "-npp", "8", "-ntg",
               str(arguments.tokens), "-npl", str(count), "--output-format", "jsonl"]

    def served():
        server.unload(name)
        streams = server.streams(bodies)
        # While all of them generate.
        begin = max(stream.times[0] for stream in streams)
        end = min(stream.times[-1] for stream in streams)
        tokens = sum(begin < when <= end for stream in streams for when in stream.times)
        return tokens / (end - begin)

    def bench():
        output = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(next(line for line in output.stdout.splitlines() if line.startswith("{")))["speed_tg"]

    report(name, f"{count} at a time", in_turn(arguments.repeat, served, bench), ("server", "llama-batched-bench"), "tokens/s")
    server.close()


def main():
    parser = parser_of(__doc__, ("token", "batch"))
    parser.add_argument("--bench", help='llama-batched-bench: "$(scripts/llama-bench.sh --tool llama-batched-bench --unpatched --path)"')
    parser.add_argument("--only", choices=("smollm2-135m", "qwen2.5-coder-0.5b"), help="one of the models")
    parser.add_argument("--keys", default="", help="token: further keys of the server, separated by commas")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=15)
    arguments = parser.parse_args()
    for name in ("smollm2-135m", "qwen2.5-coder-0.5b"):
        if arguments.only in (None, name):
            globals()[arguments.mode](arguments, name.partition("-")[0].replace(".", ""), f"{arguments.models}/{name}.gguf")


if __name__ == "__main__":
    main()
