#!/usr/bin/env python3
"""How fast a server generates, against programs without one. Needs a release build of faultline and the two real models.

  token   time per token of one stream, against `faultline run` into a pipe. Both generate the same text at once, and take turns: every 16 tokens
          one is stopped (SIGSTOP) and the other goes on
  batch   tokens per second of several streams at a time, against llama.cpp's own llama-batched-bench, unpatched (--bench)

Each pair loads the model anew; who is first changes. Printed are the medians, and the ratio with its 95 % interval (bootstrap over pairs): of `token`
the median of the pairs' ratios, each the median over pieces of 16 tokens, of `batch` that of the medians.
"""

import itertools
import json
import os
import signal
import statistics
import subprocess
import time

from pairs import in_turn, ratio_of_medians, with_interval
from serve_client import QUESTION, Server, Stream, arrival, parser_of, table

WINDOW = 16


def report(name, what, pairs, names, unit, ratio):
    medians = [statistics.median(column) for column in zip(*pairs)]
    print(f"{name}: {what}: {names[0]} {medians[0]:.3f} {unit}, {names[1]} {medians[1]:.3f}; ratio {ratio}, {len(pairs)} pairs", flush=True)


class Turns:
    """Two programs that generate the same text, one of them stopped (SIGSTOP) while the other does some tokens."""

    def __init__(self, pids, reads):
        self.pids, self.reads = pids, reads
        self.received = [[], []]
        self.windows = [[], []]
        self.is_done = [False, False]

    def go(self):
        """Both, to their ends."""
        which = 0
        while not all(self.is_done):
            os.kill(self.pids[which], signal.SIGCONT)
            begin = time.perf_counter()
            for _ in range(WINDOW):
                data = self.reads[which]()
                self.received[which].append((time.perf_counter(), data))
                if not data:
                    self.is_done[which] = True
                    break
            self.windows[which].append((begin, time.perf_counter()))
            if not self.is_done[1 - which]:
                if not self.is_done[which]:
                    os.kill(self.pids[which], signal.SIGSTOP)
                which = 1 - which

    def times_ms(self, which, arrivals):
        """Time of each token that began and ended in the same turn, by its number. The first of a turn finds cold caches and does not count."""
        windows = iter(self.windows[which])
        begin, end = next(windows)
        times, n_inside = {}, 0
        for token, (before, after) in enumerate(itertools.pairwise(arrivals), 1):
            while before > end:
                (begin, end), n_inside = next(windows), 0
            if before >= begin and after <= end:
                n_inside += 1
                if n_inside > 1:
                    times[token] = (after - before) * 1e3
        return times


def token(arguments, name, path):
    body = {"model": name, "prompt": QUESTION, "max_tokens": arguments.tokens, "temperature": 0}
    command = [arguments.binary, "run", "-m", path, "-p", QUESTION, "--raw", "--temp", "0", "-n", str(arguments.tokens), "-c", "2048"]
    blocks = []
    for turn in range(arguments.repeat):
        server = Server(arguments.binary, arguments.keys.replace(",", "\n") + "\n" + table(name, path, "n_ctx = 2048"))
        # Which of the two loads first, and so gets which memory, changes.
        if turn % 2 == 0:
            server.call("/models/load", {"model": name})
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        first = os.read(process.stdout.fileno(), 65536)
        began = time.perf_counter()
        os.kill(process.pid, signal.SIGSTOP)
        if turn % 2 == 1:
            server.call("/models/load", {"model": name})
        stream = Stream(server.address, body)
        turns = Turns((server.process.pid, process.pid), (stream.receive, lambda: os.read(process.stdout.fileno(), 65536)))
        turns.received[1].append((began, first))
        turns.go()
        stream.received = turns.received[0]
        stream.finish()
        if process.wait() != 0:
            raise RuntimeError(f"{command} failed")
        # Greedy texts are equal, so the server's tokens are those of the run.
        text = b"".join(data for _, data in turns.received[1])
        assert text.strip() == stream.text.encode().strip()
        ends = itertools.accumulate(len(piece.encode()) for piece in stream.pieces)
        served = turns.times_ms(0, stream.times)
        run = turns.times_ms(1, [arrival(turns.received[1], end) for end in ends])
        both = sorted(served.keys() & run.keys())
        pieces = [both[at : at + WINDOW] for at in range(0, len(both) - WINDOW, WINDOW)]
        mean = lambda times, tokens: statistics.fmean(times[token] for token in tokens)
        blocks.append([(mean(served, tokens), mean(run, tokens)) for tokens in pieces])
        server.close()
    ratios = [statistics.median(a / b for a, b in of_pair) for of_pair in blocks]
    pairs = [tuple(map(statistics.median, zip(*of_pair))) for of_pair in blocks]
    report(name, "time per token", pairs, ("server", "run"), "ms", with_interval(ratios, statistics.median))
    print(f"  {sum(map(len, blocks)) // len(blocks)} times {WINDOW} tokens a pair: {' '.join(f'{ratio:.3f}' for ratio in ratios)}", flush=True)


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

    pairs = in_turn(arguments.repeat, served, bench)
    report(name, f"{count} at a time", pairs, ("server", "llama-batched-bench"), "tokens/s", with_interval(pairs, ratio_of_medians))
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
