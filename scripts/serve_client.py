"""A server with real models, and clients that cost next to nothing: they share the CPUs with what they measure."""

import argparse
import http.client
import json
import os
import pathlib
import re
import selectors
import socket
import subprocess
import tempfile
import threading
import time

QUESTION = "def fibonacci(n):"


class Server:
    """`faultline serve` with a configuration of its own."""

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
        """Text and finish reason of a streamed completion."""
        [stream] = self.streams([body])
        return stream.text, stream.reason

    def streams(self, bodies):
        """Streamed completions side by side, read by this thread."""
        streams = [Stream(self.address, body) for body in bodies]
        with selectors.DefaultSelector() as selector:
            for stream in streams:
                selector.register(stream.socket, selectors.EVENT_READ, stream)
            while selector.get_map():
                for key, _ in selector.select(300) or [(None, None)]:
                    if key is None:
                        raise RuntimeError("nothing came for 300 s")
                    if not key.data.read():
                        selector.unregister(key.fileobj)
        for stream in streams:
            stream.finish()
        return streams

    def wait(self, state):
        while self.call("/models")["data"][0]["status"]["state"] != state:
            time.sleep(0.01)

    def unload(self, model):
        self.call("/models/unload", {"model": model})
        self.wait("unloaded")

    def resident(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) << 10

    def close(self):
        self.process.terminate()
        assert self.process.wait(60) == 0


class Stream:
    """One streamed completion. While it runs its bytes are only received, and the time is noted."""

    def __init__(self, address, body):
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=300)
        body = json.dumps(dict(body, stream=True))
        head = f"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket.sendall((head + body).encode())
        self.received = []

    def receive(self):
        return self.socket.recv(65536)

    def read(self):
        data = self.receive()
        self.received.append((time.perf_counter(), data))
        return data

    def finish(self):
        """Sets `text`, `reason`, `pieces`, the text of each chunk that has some, and `times`, when it had arrived."""
        self.socket.close()
        self.text, self.reason, self.pieces, self.times = "", None, [], []
        data = b"".join(data for _, data in self.received)
        if b" 200 " not in data.split(b"\r\n", 1)[0]:
            raise RuntimeError(data[:300])
        for line in re.finditer(rb"data: (\{.*\})\n", data):
            chunk = json.loads(line[1])
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            text = chunk["choices"][0]["text"]
            self.text += text
            self.reason = chunk["choices"][0]["finish_reason"] or self.reason
            if text:
                self.pieces.append(text)
                self.times.append(arrival(self.received, line.end()))
        if self.reason is None:
            raise RuntimeError("the stream has no end")


def arrival(received, count):
    """When the first `count` bytes had arrived."""
    for when, data in received:
        count -= len(data)
        if count <= 0:
            return when
    raise RuntimeError("they never arrived")


def parser_of(description, modes):
    """The parser of a script that measures a server: what to do, and where the program and the models are."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=modes)
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    cache = os.environ.get("FAULTLINE_CACHE", os.path.expanduser("~/.cache/faultline"))
    parser.add_argument("--binary", default=f"{target}/release/faultline")
    parser.add_argument("--models", default=f"{cache}/models")
    return parser


def table(name, path, keys=""):
    return f"[models.{name}]\npath = '{path}'\n{keys}\n"


def mib(size):
    return f"{size / 2**20:.1f} MiB"
