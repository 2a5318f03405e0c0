#!/usr/bin/env python3
"""A web service that is registered for as long as it runs: Python's standard library, and one open connection.

    python3 docs/examples/held.py               # then: node services, node checks web, curl the URL
    HEARSAY_NODE=http://127.0.0.1:7501 python3 docs/examples/held.py

The node answers POST /services?hold with a stream of events that stays open. When this process ends, in whichever
way, the connection closes, and the instance is gone at once. When the node restarts, the loop registers again.
"""

import http.client
import http.server
import json
import os
import threading
import time
import urllib.parse

NODE = urllib.parse.urlsplit(os.environ.get("HEARSAY_NODE", "http://127.0.0.1:7500"))


class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"ok\n" if self.path == "/health" else b"hello\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def events(stream):
    """Yields (event, data) of a stream of server-sent events."""
    event = ""
    for line in stream:
        field, _, value = line.decode().rstrip("\r\n").partition(": ")
        if field == "event":
            event = value
        elif field == "data":
            yield event, json.loads(value)


def hold(registration):
    """Keeps a registration, over nodes that restart."""
    pause = 0.1
    while True:
        # The node sends a comment every five seconds; a connection without one is dead.
        connection = http.client.HTTPConnection(NODE.hostname, NODE.port or 80, timeout=20)
        try:
            body, headers = json.dumps(registration), {"Content-Type": "application/json"}
            connection.request("POST", "/services?hold", body, headers)
            answer = connection.getresponse()
            if answer.status == 400:
                raise SystemExit(answer.read().decode())
            for event, data in events(answer) if answer.status == 200 else ():
                pause = 0.1
                print(event, data, flush=True)
        except (OSError, http.client.HTTPException) as problem:
            print("no node:", problem, flush=True)
        finally:
            connection.close()
        time.sleep(pause)
        pause = min(pause * 2, 5)


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("", int(os.environ.get("PORT", "0"))), Hello)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        hold({
            "name": "web",
            "port": server.server_port,
            "checks": [{"http": "/health", "interval": "5s"}],
        })
    except KeyboardInterrupt:
        pass
