#!/usr/bin/env python3
"""Loads a server with real models and reports what it did. Needs a build of faultline and the two real models.

  soak    streaming clients on two models with room for one: failed requests, wrong texts, peak memory
  idle    load, ask, unload, again and again: what stays of a load, and the first token after a reload
  batch   tokens per second of 1 and of 4 requests at a time on one model
  token   time per token of one stream, against `faultline run`
"""

import argparse
import http.client
import json
import os
import pathlib
import re
import statistics
import subprocess
import tempfile
import threading
import time

QUESTION = "def fibonacci(n):"


class Server:
    def __init__(self, binary, config):
        self.folder = tempfile.TemporaryDirectory()
        path = pathlib.Path(self.folder.name) / "models.toml"
        path.write_text("port = 0\n" + config)
        self.process = subprocess.Popen([binary, "serve", "--config", path], stderr=subprocess.PIPE, text=True)
        self.address = None
        for line in self.process.stderr:
            if line.startswith("listening on http://"):
                self.address = line.split("//")[1].split()[0]
                break
        if self.address is None:
            raise SystemExit(f"the server ended with {self.process.wait()}")
        threading.Thread(target=lambda: [None for _ in self.process.stderr], daemon=True).start()

    def call(self, path, body=None):
        connection = http.client.HTTPConnection(self.address, timeout=300)
        headers = {"Content-Type": "application/json"}
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {text[:300]!r}")
        return json.loads(text)

    def stream(self, body):
        """Text, finish reason, and the time of each piece."""
        connection = http.client.HTTPConnection(self.address, timeout=300)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(dict(body, stream=True)), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status} {response.read()[:300]!r}")
        text, reason, times = "", None, []
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            if chunk["choices"][0]["text"]:
                times.append(time.perf_counter())
            text += chunk["choices"][0]["text"]
            reason = chunk["choices"][0]["finish_reason"] or reason
        if reason is None:
            raise RuntimeError("the stream has no end")
        return text, reason, times

    def wait(self, state):
        while self.call("/models")["data"][0]["status"]["state"] != state:
            time.sleep(0.01)

    def resident(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) << 10

    def close(self):
        self.process.terminate()
        assert self.process.wait(60) == 0


def table(name, path, keys=""):
    return f"[models.{name}]\npath = '{path}'\n{keys}\n"


def mib(size):
    return f"{size / 2**20:.1f} MiB"


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
                    # Several requests in a batch may round differently; the other model's text is something else.
                    other[0] += text != expected[model]
                    if text.strip()[:12] == expected[{"small": "coder", "coder": "small"}[model]].strip()[:12]:
                        problems.append(f"{model} gave the other one's text")
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
    for prefetch in ("eager", "none"):
        server = Server(arguments.binary, table("small", small, f"prefetch = '{prefetch}'\nrepack = false"))
        body = {"model": "small", "prompt": QUESTION, "max_tokens": 4, "temperature": 0}
        shares, rests, firsts = [], [], []
        for _ in range(arguments.rounds):
            before, start = server.resident(), time.perf_counter()
            first = server.stream(dict(body, keep_alive=-1))[2][0] - start
            loaded = server.resident()
            server.call("/models/unload", {"model": "small"})
            server.wait("unloaded")
            rest = server.resident()
            shares.append(1 - (rest - before) / (loaded - before))
            rests.append(rest)
            firsts.append(first)
        print(f"{prefetch}: {arguments.rounds} loads of {mib(loaded - before)}; given back: first {shares[0]:.4f}, least of the others "
              f"{min(shares[1:]):.4f}; left after the 2nd {mib(rests[1])}, after the last {mib(rests[-1])}; first token of the first "
              f"load {firsts[0] * 1e3:.0f} ms, median of the others {statistics.median(firsts[1:]) * 1e3:.0f} ms")
        good &= min(shares[1:]) >= 0.98
        server.close()
    return good


def batch(arguments, small, coder):
    for name, path in (("small", small), ("coder", coder)):
        server = Server(arguments.binary, table(name, path, "n_ctx = 2048\nconcurrency_limit = 4"))
        body = {"model": name, "prompt": QUESTION, "max_tokens": arguments.tokens, "temperature": 0, "stop": []}
        server.stream(dict(body, max_tokens=4))
        for count in (1, 4):
            rates = []
            for _ in range(arguments.repeat):
                before = server.call("/models")["data"][0]["counters"]
                threads = [threading.Thread(target=server.stream, args=(dict(body, prompt=QUESTION + " " * n),)) for n in range(count)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                after = server.call("/models")["data"][0]["counters"]
                tokens = after["generated_tokens"] - before["generated_tokens"]
                rates.append(tokens / (after["generate_ns"] - before["generate_ns"]) * 1e9 * count)
            print(f"{name}: {count} at a time, {arguments.tokens} tokens each: {statistics.median(rates):.1f} tokens/s "
                  f"({min(rates):.1f} to {max(rates):.1f})")
        server.close()
    return True


def token(arguments, small, coder):
    for name, path in (("small", small), ("coder", coder)):
        server = Server(arguments.binary, table(name, path, "n_ctx = 2048"))
        body = {"model": name, "prompt": QUESTION, "max_tokens": arguments.tokens, "temperature": 0}
        server.stream(dict(body, max_tokens=4))
        ratios, ours, runs = [], [], []
        for _ in range(arguments.repeat):
            times = server.stream(body)[2]
            server_ms = (times[-1] - times[0]) / (len(times) - 1) * 1e3
            command = [arguments.binary, "run", "-m", path, "-p", QUESTION, "--raw", "--temp", "0", "-n", str(arguments.tokens), "-c", "2048"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            # A token is a write, as it is a message of the stream.
            times = []
            while os.read(process.stdout.fileno(), 4096):
                times.append(time.perf_counter())
            assert process.wait() == 0
            run_ms = (times[-1] - times[0]) / (len(times) - 1) * 1e3
            ours.append(server_ms)
            runs.append(run_ms)
            ratios.append(server_ms / run_ms)
        print(f"{name}: server {statistics.median(ours):.2f} ms a token, run {statistics.median(runs):.2f} ms; ratio "
              f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        server.close()
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("soak", "idle", "batch", "token"))
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    cache = os.environ.get("FAULTLINE_CACHE", os.path.expanduser("~/.cache/faultline"))
    parser.add_argument("--binary", default=f"{target}/release/faultline")
    parser.add_argument("--models", default=f"{cache}/models")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--budget", default="1GiB")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    small = f"{arguments.models}/smollm2-135m.gguf"
    coder = f"{arguments.models}/qwen2.5-coder-0.5b.gguf"
    good = globals()[arguments.mode](arguments, small, coder)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
