#!/usr/bin/env python3
"""Compares the logits of every token of pager runs with those of stock llama.cpp: compare_logits.py FOLDER.

FOLDER has a folder with raw.jsonl and setup.json for each call of bench (scripts/check-identity.sh). A run is compared with the run of the
stock program in memory that has the same repacking, prompt and threads. The digest after each token covers all logits so far, so the first
token whose digest differs is the first with other logits. Prints a table; exit code 1 if a run differs, is incomplete, or has nothing to be
compared with.
"""

import json
import pathlib
import sys


def runs(folder):
    """Yields (name of the call, its setup, run) of all runs below the folder."""
    for path in sorted(folder.glob("*/raw.jsonl")):
        setup = json.loads((path.parent / "setup.json").read_text())
        for line in path.read_text().splitlines():
            yield path.parent.name, setup, json.loads(line)


def arithmetic(setup, run):
    """What decides which numbers are computed."""
    names = ("n_prompt", "n_gen", "n_batch", "n_ubatch", "n_threads", "flash_attn")
    return tuple(setup[name] for name in names) + (json.dumps(setup["routing"]), run["row"]["repack"])


def digests(run):
    """The digest after each token; none of a run that failed."""
    outcome = run["outcome"] or {}
    return (outcome.get("fingerprint") or {}).get("after", [])


def verdict(setup, run, reference):
    """What the table says of a run, and whether that is good."""
    found = digests(run)
    n_rows = setup["n_gen"] + 1
    if run["status"] != "ok" or len(found) != n_rows:
        return f"{len(found)} of {n_rows} tokens: {run['status']}, {run['reason']}", False
    if reference is None or len(reference) != n_rows:
        return "no whole run of the stock program in memory to compare with", False
    different = [token for token in range(n_rows) if found[token] != reference[token]]
    return (f"**differs from token {different[0]} on**", False) if different else ("equal", True)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    found = list(runs(folder))
    is_stock = lambda run: "stock" in run["row"]["engine"]
    references = {arithmetic(setup, run): digests(run) for _, setup, run in found if is_stock(run)}

    print(f"{folder.name}:\n")
    print("| part | budget, MB | policy | lookahead | replay | repacked | threads | tokens | logits of each token | missed, GB |")
    print("|---|--:|---|---|---|---|--:|--:|---|--:|")
    n_tokens, n_logits, n_runs, is_good = 0, 0, 0, True
    for name, setup, run in found:
        if is_stock(run):
            continue
        row, outcome = run["row"], run["outcome"] or {}
        said, good = verdict(setup, run, references.get(arithmetic(setup, run)))
        n_runs, is_good = n_runs + 1, is_good and good
        n_tokens += len(digests(run))
        n_logits += len(digests(run)) * outcome.get("model", {}).get("n_vocab", 0)
        missed = ((outcome.get("pager") or {}).get("counted") or {}).get("miss_bytes", 0) / 1e9
        columns = (
            name,
            round(row["budget_bytes"] / 1e6),
            row.get("policy", "next-use"),
            row.get("lookahead", "off"),
            "on" if row.get("replay") else "off",
            "yes" if row["repack"] else "no",
            setup["n_threads"],
            len(digests(run)),
            said,
            f"{missed:.1f}",
        )
        print("| " + " | ".join(str(column) for column in columns) + " |")
    print(f"\n{n_runs} runs, {n_tokens} tokens, {n_logits} logits compared")
    sys.exit(0 if n_runs > 0 and is_good else 1)


if __name__ == "__main__":
    main()
