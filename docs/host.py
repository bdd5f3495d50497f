#!/usr/bin/env python3
"""A host for one Ampoule VM, after docs/host-api.yaml and nothing else: it hands out a manifest, and keeps events, result and receipt.

    python3 host.py --manifest job.json --out out/job --vsock 1024 --cid 3

It starts no VM. It ends when the VM has reported its outcome, with status 0 if that is ok. The VM is not trusted: what it sends is
bounded and kept under names of ours."""

import argparse
import http.server
import json
import os
import socket
import socketserver
import sys
import threading

MAX_LINE = 64 << 10
MAX_EVENTS = 16 << 20
LIMITS = {"/v1/result": 4 << 30, "/v1/receipt": 4 << 20}


class Refused(Exception):
    """An HTTP status other than success."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", kind="text/plain"):
        self.send_response(status)
        if body or status != 204:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        if status >= 400:
            self.send_header("Connection", "close")  # the rest of the request is not read
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path != "/v1/manifest":
            return self.answer(404, b"no such thing\n")
        self.answer(200, self.server.manifest, "application/octet-stream")

    def do_POST(self):
        if self.path != "/v1/events":
            return self.answer(404, b"no such thing\n")
        try:
            for line in self.lines():
                self.server.event(line)
        except Refused as e:
            return self.answer(int(str(e)), b"not taken\n")
        self.answer(204)
        if self.server.outcome:
            threading.Thread(target=self.server.shutdown).start()

    def do_PUT(self):
        if self.path not in LIMITS:
            return self.answer(404, b"no such thing\n")
        try:
            self.server.store(self.path, self.headers, self.rfile)
        except Refused as e:
            return self.answer(int(str(e)), b"not taken\n")
        self.answer(204)

    def lines(self):
        """The lines of a chunked body as they come."""
        rest = b""
        while True:
            try:
                size = int(self.rfile.readline(20), 16)
            except ValueError:
                raise Refused(400)
            if size > MAX_LINE:
                raise Refused(400)
            data = self.rfile.read(size)
            self.rfile.readline(2)
            *whole, rest = (rest + data).split(b"\n")
            yield from whole
            if len(rest) > MAX_LINE or size == 0 and rest:
                raise Refused(400)
            if size == 0:
                return

    def log_message(self, *_):
        pass  # the VM decides what would be in it


class Host(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, family, address, cid, manifest, out):
        self.address_family, self.cid, self.manifest, self.out = family, cid, manifest, out
        self.lock, self.outcome, self.size, self.stored = threading.Lock(), None, 0, set()
        self.events = open(os.path.join(out, "events.ndjson"), "wb")
        super().__init__(address, Handler)

    def verify_request(self, request, client):
        return self.cid is None or client[0] == self.cid  # other VMs reach the same port

    def event(self, line):
        with self.lock:
            if self.outcome:
                raise Refused(409)
            self.size += len(line) + 1
            if self.size > MAX_EVENTS:
                raise Refused(413)
            try:
                e = json.loads(line)
                kind = e["event"]
            except (ValueError, KeyError, TypeError):
                raise Refused(400)
            self.events.write(line + b"\n")
            self.events.flush()
            if kind == "step":
                print(f"{e['t_us'] / 1e6:9.3f} s  {ascii(e['step'])} {ascii(e['state'])}", flush=True)
            if kind == "outcome":
                self.outcome = e
                print(f"{e['t_us'] / 1e6:9.3f} s  outcome {ascii(e['reason'])}", flush=True)

    def store(self, path, headers, body):
        try:
            left = int(headers["Content-Length"])
        except (TypeError, ValueError):
            raise Refused(400)
        if "Content-Range" in headers or left < 0:
            raise Refused(400)
        if left > LIMITS[path]:
            raise Refused(413)
        with self.lock:
            if path in self.stored:
                raise Refused(409)
            self.stored.add(path)
        name = os.path.join(self.out, "receipt.json" if path == "/v1/receipt" else "result.tar")
        sealed = False
        with open(name + ".partial", "wb") as f:
            first = True
            while left > 0:
                data = body.read(min(left, 1 << 20))
                if not data:
                    with self.lock:
                        self.stored.discard(path)
                    raise Refused(400)
                if first:
                    sealed, first = data.startswith(b"age-encryption.org/v1\n"), False
                f.write(data)
                left -= len(data)
        os.rename(name + ".partial", name + (".age" if sealed else ""))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--manifest", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--vsock", type=int, metavar="PORT")
    p.add_argument("--cid", type=int, help="of the one VM that may connect")
    p.add_argument("--tcp", metavar="HOST:PORT", help="instead of vsock, for tests")
    a = p.parse_args()
    with open(a.manifest, "rb") as f:
        manifest = f.read()
    os.makedirs(a.out, exist_ok=True)
    if a.tcp:
        name, port = a.tcp.rsplit(":", 1)
        family, address = socket.AF_INET, (name, int(port))
    else:
        family, address = socket.AF_VSOCK, (socket.VMADDR_CID_ANY, a.vsock or 1024)
    with Host(family, address, a.cid, manifest, a.out) as host:
        print("listening at", *host.server_address, flush=True)
        host.serve_forever()
    sys.exit(0 if host.outcome["reason"] == "ok" else 1)


if __name__ == "__main__":
    main()
