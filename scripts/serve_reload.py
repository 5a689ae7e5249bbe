#!/usr/bin/env python3
"""The first token of a model that was idle and is loaded again, against that of the first load. Needs a release build of faultline.

One pair is: a new server with an empty cache folder gets a conversation's last turn; another new one gets the turns before it, unloads the
model, and gets the last turn then. Before each load that is measured the model's files and the cache folder are taken out of the page cache.
`--turn other` asks the model something else instead, which no earlier request began like; `--turn same` the same once more.

Printed are medians with least and most, of the first token and of its parts (loading, prompt), and the ratio of the medians with its 95 %
interval (bootstrap over pairs). Greedy texts of both are compared.
"""

import argparse
import http.client
import json
import os
import pathlib
import re
import shutil
import statistics
import sys
import tempfile
import time

from pairs import in_turn, ratio_of_medians, with_interval
from serve_client import Server, table

HISTORY = """The following is a conversation between a gardener and an assistant who knows plants and soils well.

Gardener: Last spring I moved to a house with a small garden behind it. The soil is heavy clay, it stays wet until May, and in August it is \
as hard as a brick. The former owner grew nothing but grass. I would like to have tomatoes, beans, a few herbs and perhaps a plum tree. \
Where do I begin?
Assistant: Begin with the soil, since everything else follows from it. Clay holds water and food for plants very well, and what it lacks is \
air. Dig in compost in autumn, a layer as thick as your hand is wide, and leave the clods as they are: the frost breaks them. Never walk on \
it while it is wet. Beds that are raised by a foot warm up two weeks earlier. Tomatoes want the warmest place, in front of a wall that faces \
south. Beans are modest and even feed the soil. Of the herbs thyme, sage and rosemary need a dry place with sand and gravel, while parsley, \
chives and mint like your clay. A plum tree on a strong root copes with heavy ground, if water does not stand around it in winter.
Gardener: I have a heap of old bricks and some sand. The neighbour keeps horses and gives manure away. Is any of that of use to me, and how \
far apart should the beds be? I am not so young any more and do not like to bend down for long.
Assistant: All of it. Lay the bricks as an edge around the raised beds, two courses high, and as a path between them, as wide as a \
wheelbarrow. Manure must rot for a year before tomatoes get it; fresh, it burns their roots, but pumpkins love it. Mix the sand only into the \
corner for the dry herbs: a little sand in much clay makes mortar. Make the beds no wider than twice the length of your arm, so that you reach \
the middle from both sides, and one of them as high as a table for the herbs that you cut every day."""

LAST = "\nGardener: And what should I sow first, and when?\nAssistant:"
OTHER = "def fibonacci(n):\n"
TOKENS = 16


def drop(paths):
    """Takes files out of the page cache, after what is not yet on the disk was written."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Turn:
    """The first token of a request, in ms, and its parts."""

    def __init__(self, server, model, prompt):
        before = loading_s(server)
        body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "cache_prompt": True}
        began = time.perf_counter()
        [stream] = server.streams([body])
        timings = json.loads(re.search(rb'"timings":(\{[^}]*\})', b"".join(data for _, data in stream.received))[1])
        self.text = stream.text
        self.first = 1e3 * (stream.times[0] - began)
        self.loading = 1e3 * (loading_s(server) - before)
        self.prompt = timings["prompt_ms"]
        self.cached, self.computed = timings["cache_n"], timings["prompt_n"]
        print(f"{self.first:.0f} ms, {self.cached} tokens kept", file=sys.stderr)


def loading_s(server):
    """Seconds that all loads so far took."""
    connection = http.client.HTTPConnection(server.address)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return sum(float(number) for number in re.findall(r"^faultline_model_load_seconds_total\{.*\} (\S+)", text, re.M))


def measure(arguments, name, path, keys):
    replies = []

    def fresh():
        # A cache folder of its own, so that nothing is known of earlier runs.
        os.environ["FAULTLINE_CACHE"] = tempfile.mkdtemp(dir=arguments.scratch)
        drop([path])
        return Server(arguments.binary, table("model", path, keys))

    def end(server):
        server.close()
        shutil.rmtree(os.environ["FAULTLINE_CACHE"])

    def last(reply):
        return {"next": HISTORY + reply + LAST, "same": HISTORY, "other": OTHER}[arguments.turn]

    def reply():
        server = fresh()
        replies.append(Turn(server, "model", HISTORY).text)
        end(server)

    def first():
        server = fresh()
        turn = Turn(server, "model", last(replies[0]))
        end(server)
        return turn

    def reload():
        server = fresh()
        assert Turn(server, "model", HISTORY).text == replies[0]
        server.unload("model")
        drop([path] + [file for file in pathlib.Path(os.environ["FAULTLINE_CACHE"]).rglob("*") if file.is_file()])
        turn = Turn(server, "model", last(replies[0]))
        end(server)
        return turn

    reply()
    pairs = in_turn(arguments.repeat, reload, first)
    shown = lambda values: f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
    for what, turns in (("first load", [b for _, b in pairs]), ("reload", [a for a, _ in pairs])):
        parts = ", ".join(f"{part} {shown([getattr(turn, part) for turn in turns])}" for part in ("first", "loading", "prompt"))
        print(f"{name}: {what}: ms: {parts}; tokens computed {turns[0].computed}, kept {turns[0].cached}", flush=True)
    ratio = with_interval([(a.first, b.first) for a, b in pairs], ratio_of_medians)
    equal = sum(a.text == b.text for a, b in pairs)
    print(f"{name}: turn {arguments.turn}: ratio {ratio}, {len(pairs)} pairs, {equal} with equal texts", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    cache = os.environ.get("FAULTLINE_CACHE", os.path.expanduser("~/.cache/faultline"))
    parser.add_argument("--binary", default=f"{target}/release/faultline")
    parser.add_argument("--models", default=f"{cache}/models")
    parser.add_argument("--only", default="", help="of the rows those whose name contains this")
    parser.add_argument("--turn", choices=("next", "same", "other"), default="next")
    parser.add_argument("--keys", default="keep_state = true", help="further keys of the model, separated by commas")
    parser.add_argument("--large", help="a model for the pager, which is read where it is")
    parser.add_argument("--budget", default="7000MB", help="the pager's")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--scratch", help="folder for copies of the models and for caches, not one in memory")
    arguments = parser.parse_args()
    keys = "n_ctx = 2048\nttl = '1h'\n" + "\n".join(arguments.keys.split(","))
    if arguments.large:
        measure(arguments, pathlib.Path(arguments.large).stem, arguments.large, f"{keys}\nprefetch = 'pager'\nbudget = '{arguments.budget}'")
        return
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        for model in ("smollm2-135m", "qwen2.5-coder-0.5b"):
            # Files that nobody else reads.
            path = shutil.copy(f"{arguments.models}/{model}.gguf", folder)
            for prefetch in ("eager", "none", "selective"):
                if arguments.only in f"{model} {prefetch}":
                    measure(arguments, f"{model} {prefetch}", path, f"{keys}\nprefetch = '{prefetch}'")


if __name__ == "__main__":
    main()
