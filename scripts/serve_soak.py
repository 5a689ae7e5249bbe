#!/usr/bin/env python3
"""Loads a server with real models and reports what it did. Needs a release build of faultline and the two real models.

  soak    streaming clients on two models with room for one: failed requests, wrong texts, peak memory
  idle    load, ask, unload, again and again: what stays of a load in memory and in the page cache, and the first token after a reload
"""

import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time

from serve_client import QUESTION, Server, mib, parser_of, table


def shared_beginning(a, b):
    return len(os.path.commonprefix([a, b]))


def soak(arguments, small, coder):
    keys = "n_ctx = 4096\nconcurrency_limit = 8\nrepack = false"
    config = f"max_loaded = 1\nbudget = '{arguments.budget}'\n" + table("small", small, keys) + table("coder", coder, keys)
    server = Server(arguments.binary, config)
    ask = lambda model: server.stream({"model": model, "prompt": QUESTION, "max_tokens": 16, "temperature": 0})
    expected = {model: ask(model)[0] for model in ("small", "coder")}
    assert expected["small"] != expected["coder"]
    end = time.monotonic() + arguments.seconds
    problems, done, other, lock = [], [0], [0], threading.Lock()

    def client(number):
        turn = number
        while time.monotonic() < end:
            model = ("small", "coder")[turn % 2]
            turn += 1
            try:
                text = ask(model)[0]
                with lock:
                    done[0] += 1
                    # Several requests in a batch may round differently, and the text then differs from some token on.
                    other[0] += text != expected[model]
                    foreign = expected[{"small": "coder", "coder": "small"}[model]]
                    if shared_beginning(text, foreign) >= shared_beginning(text, expected[model]):
                        problems.append(f"{model} gave the other one's text: {text!r}")
            except Exception as problem:
                with lock:
                    problems.append(str(problem))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(arguments.clients)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    models = server.call("/models")
    loads = [model["counters"]["loads"] for model in models["data"]]
    tokens = sum(model["counters"]["generated_tokens"] for model in models["data"])
    print(f"{arguments.clients} clients, {arguments.seconds} s: {done[0]} requests, {len(problems)} problems, "
          f"{other[0]} texts other than alone, loads {loads}, {tokens} tokens")
    print(f"peak {mib(models['process']['peak_bytes'])} of a budget of {mib(models['budget_bytes'])}")
    for problem in sorted(set(problems))[:5]:
        print("  ", problem)
    server.close()
    return not problems and models["process"]["peak_bytes"] <= models["budget_bytes"]


def idle(arguments, small, _coder):
    good = True
    # A file that nobody else reads, and that is not in the page cache.
    folder = tempfile.TemporaryDirectory(dir=arguments.scratch)
    small = shutil.copy(small, folder.name)
    with open(small, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for prefetch in ("eager", "none"):
        server = Server(arguments.binary, table("small", small, f"prefetch = '{prefetch}'\nn_ctx = 2048\nttl = '1h'"))
        cached = lambda: int(subprocess.check_output(["fincore", "--bytes", "--noheadings", "--output", "RES", small]))
        shares, rests, pages, firsts = [], [], [], []
        for _ in range(arguments.rounds):
            before = server.resident()
            began = time.perf_counter()
            [stream] = server.streams([{"model": "small", "prompt": QUESTION, "max_tokens": 8, "temperature": 0}])
            firsts.append(stream.times[0] - began)
            loaded = server.resident()
            server.unload("small")
            rests.append(server.resident())
            pages.append(cached())
            shares.append(1 - (rests[-1] - before) / (loaded - before))
        print(f"{prefetch}: {arguments.rounds} loads of {mib(loaded - before)}; given back: first {shares[0]:.4f}, least of the others "
              f"{min(shares[1:]):.4f}; left after the 2nd {mib(rests[1])}, after the last {mib(rests[-1])}; most in the page cache "
              f"{mib(max(pages))}; first token of the first load {firsts[0] * 1e3:.0f} ms, median of the others "
              f"{statistics.median(firsts[1:]) * 1e3:.0f} ms")
        good &= min(shares) >= 0.98 and max(pages) <= 0.02 * os.path.getsize(small)
        server.close()
    return good


def main():
    parser = parser_of(__doc__, ("soak", "idle"))
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--budget", default="1GiB")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--scratch", help="folder for a copy of the model, not one in memory")
    arguments = parser.parse_args()
    small = f"{arguments.models}/smollm2-135m.gguf"
    coder = f"{arguments.models}/qwen2.5-coder-0.5b.gguf"
    good = globals()[arguments.mode](arguments, small, coder)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
