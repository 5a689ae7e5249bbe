#!/usr/bin/env python3
"""Runs the official `openai` package, unmodified, against a server: chat with and without streaming, stop strings, seeds, errors,
cancellation. scripts/openai-client.sh installs the package and starts the server."""

import sys
import time

import openai


def check(condition, what):
    print(("ok    " if condition else "FAILED") + " " + what)
    if not condition:
        raise SystemExit(1)


def error_of(call):
    try:
        call()
    except openai.APIStatusError as error:
        return error
    return None


def main():
    base, models = sys.argv[1], sys.argv[2:]
    client = openai.OpenAI(base_url=base + "/v1", api_key="any", max_retries=0)
    check(set(models) <= {model.id for model in client.models.list()}, "models.list")
    check(client.models.retrieve(models[0]).id == models[0], "models.retrieve")
    for model in models:
        messages = [{"role": "user", "content": "Name three colours."}]
        ask = lambda **more: client.chat.completions.create(model=model, messages=messages, **dict({"max_tokens": 24}, **more))
        whole = ask(temperature=0)
        text = whole.choices[0].message.content
        check(len(text) > 0 and whole.usage.completion_tokens <= 24, f"{model}: chat: {text!r}")
        check(whole.choices[0].finish_reason in ("stop", "length"), f"{model}: finish_reason")

        chunks = list(ask(temperature=0, stream=True, stream_options={"include_usage": True}))
        streamed = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        check(streamed == text, f"{model}: a stream gives the same text")
        check(chunks[-1].choices == [] and chunks[-1].usage.total_tokens == whole.usage.total_tokens, f"{model}: usage chunk")

        word = text.split()[1]
        stopped = ask(temperature=0, stop=[word]).choices[0]
        check(stopped.message.content == text[: text.index(word)] and stopped.finish_reason == "stop", f"{model}: stop {word!r}")

        seeded = [ask(temperature=1.5, seed=seed).choices[0].message.content for seed in (7, 7, 8)]
        check(seeded[0] == seeded[1] != seeded[2], f"{model}: seeds")

        completion = client.completions.create(model=model, prompt="The capital of Germany is", max_tokens=8, temperature=0)
        check("Berlin" in completion.choices[0].text, f"{model}: completions: {completion.choices[0].text!r}")

        stream = ask(max_tokens=2000, stream=True)
        next(iter(stream))
        stream.close()
        started = time.monotonic()
        ask(max_tokens=1)
        check(time.monotonic() - started < 20, f"{model}: the next request after a cancelled stream")

        error = error_of(lambda: ask(temperature=-1))
        check(isinstance(error, openai.BadRequestError) and error.param == "temperature", f"{model}: BadRequestError: {error}")
        error = error_of(lambda: ask(n=2))
        check(isinstance(error, openai.BadRequestError) and error.param == "n", f"{model}: unsupported n")
        long = [{"role": "user", "content": "word " * 20000}]
        error = error_of(lambda: client.chat.completions.create(model=model, messages=long))
        check(isinstance(error, openai.BadRequestError) and error.code == "context_length_exceeded", f"{model}: context length")
    error = error_of(lambda: client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}]))
    check(isinstance(error, openai.NotFoundError) and error.code == "model_not_found", "NotFoundError")


if __name__ == "__main__":
    main()
