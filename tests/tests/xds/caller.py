"""gRPC client of the scenarios: calls lab.Echo/Who at xds:///web without a pause, and tells over HTTP how the calls
ended. `caller.py PORT CALLERS`; GRPC_XDS_BOOTSTRAP names the bootstrap file.

GET /calls answers {"names": {name: calls}, "total": …, "failed": [[start, code, details], …]}. Times are those of the
monotonic clock, in seconds; GET /now answers its time, as {"now": …}."""

import collections
import http.server
import json
import sys
import threading
import time

import grpc

port, callers = (int(word) for word in sys.argv[1:])
lock = threading.Lock()
names, failed = collections.Counter(), []
channel = grpc.insecure_channel("xds:///web")
who = channel.unary_unary("/lab.Echo/Who")


def call():
    is_first = True
    while True:
        began = time.monotonic()
        try:
            # The first call waits until the channel has instances.
            name = who(b"", wait_for_ready=is_first, timeout=30 if is_first else 2).decode()
            is_first = False
            with lock:
                names[name] += 1
        except grpc.RpcError as error:
            with lock:
                failed.append([began, error.code().name, error.details()])
            time.sleep(0.01)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with lock:
            calls = {"names": dict(names), "total": sum(names.values()), "failed": list(failed)}
        body = json.dumps(calls if self.path == "/calls" else {"now": time.monotonic()}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


for _ in range(callers):
    threading.Thread(target=call, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
