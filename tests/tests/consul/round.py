"""A round of py-consul or python-consul against a node (its port on this host) and another node (its address)."""

import http.server
import inspect
import sys
import threading
import time

import consul

here = consul.Consul(host="127.0.0.1", port=7500)
other = consul.Consul(host=sys.argv[1], port=7500)


def takes(method, parameter):
    """Whether the client has a parameter. python-consul lacks some that py-consul has."""
    return parameter in inspect.signature(method).parameters


def until(what, fact, seconds=10):
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, f"never came about: {what}"
        time.sleep(0.02)


def passing(client):
    _, entries = client.health.service("web", passing=True)
    return sorted(entry["Service"]["ID"] for entry in entries)


class Healthy(http.server.BaseHTTPRequestHandler):
    """A program whose health is asked for."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


program = http.server.ThreadingHTTPServer(("127.0.0.1", 8081), Healthy)
threading.Thread(target=program.serve_forever, daemon=True).start()

# Registration with a TTL check, and its reports.
ttl = consul.Check.ttl("1h")
meta = {"meta": {"version": "2"}} if takes(here.agent.service.register, "meta") else {}
assert here.agent.service.register(
    "web", service_id="web-1", address="10.77.9.9", port=8080, tags=["v1"], check=ttl, **meta
)
services = here.agent.services()
assert services["web-1"]["Tags"] == ["v1"] and services["web-1"]["Meta"] == meta.get("meta", {}), services
assert here.agent.checks()["service:web-1"]["Status"] == "critical"
assert passing(here) == []
assert here.agent.check.ttl_pass("service:web-1", notes="fine")
until("it passes on the other node", lambda: passing(other) == ["web-1"])
assert here.agent.check.ttl_warn("service:web-1")
until("it warns", lambda: passing(other) == [])
assert here.agent.check.ttl_fail("service:web-1")
# As in Consul, the catalog follows the agent's checks within moments.
critical = lambda: [check["CheckID"] for check in here.health.state("critical")[1]]
until("it fails", lambda: critical() == ["service:web-1"])
assert here.agent.check.ttl_pass("service:web-1")

# A blocking query on the other node wakes for the change here.
until("it passes again", lambda: passing(other) == ["web-1"])
index, _ = other.health.service("web")
found = []
thread = threading.Thread(target=lambda: found.append(other.health.service("web", index=index, wait="30s")))
thread.start()
time.sleep(0.2)
began = time.monotonic()
check = consul.Check.http("http://127.0.0.1:8081/health", "1s", timeout="5s", deregister="1m")
here.agent.service.register("web", service_id="web-2", address="10.77.9.9", port=8081, check=check)
thread.join(20)
assert not thread.is_alive() and time.monotonic() - began < 10, "the query was not woken"
assert int(found[0][0]) > int(index) and len(found[0][1]) == 2, found
until("its check passes", lambda: passing(other) == ["web-1", "web-2"])
assert here.agent.service.deregister("web-2")
until("it is gone", lambda: passing(other) == ["web-1"])

# A check that is registered apart.
assert here.agent.check.register("apart", service_id="web-1", check=consul.Check.ttl("1h"))
assert here.agent.check.ttl_pass("apart")
until("both checks pass", lambda: passing(other) == ["web-1"])
assert here.agent.check.deregister("apart")
assert list(here.agent.checks()) == ["service:web-1"]

# Maintenance of the instance, and of the node.
assert here.agent.service.maintenance("web-1", True, reason="disk")
until("it is in maintenance", lambda: passing(other) == [])
assert here.agent.service.maintenance("web-1", False)
until("it is back", lambda: passing(other) == ["web-1"])
assert here.agent.maintenance(True, reason="kernel")
until("the node is in maintenance", lambda: passing(other) == [])
assert here.agent.maintenance(False)
until("the node is back", lambda: passing(other) == ["web-1"])

# The catalog, members and status.
_, services = other.catalog.services()
assert services["web"] == ["v1"] and services["consul"] == [], services
_, instances = other.catalog.service("web", tag="v1")
assert instances[0]["ServiceAddress"] == "10.77.9.9" and instances[0]["ServicePort"] == 8080, instances
_, nodes = other.catalog.nodes()
assert sorted(node["Node"] for node in nodes) == ["m0", "m1"], nodes
_, node = other.catalog.node("m0")
assert list(node["Services"]) == ["web-1"], node
assert other.catalog.datacenters() == ["dc1"]
_, of_node = other.health.node("m0")
assert {check["CheckID"] for check in of_node} == {"serfHealth", "service:web-1"}, of_node
assert sorted(member["Name"] for member in other.agent.members()) == ["m0", "m1"]
assert here.agent.self()["Config"]["NodeName"] == "m0"
assert here.status.leader().endswith(":8300") and len(here.status.peers()) == 1
if takes(other.health.service, "filter_expr"):
    expression = '"v1" in Service.Tags and Service.Meta.version == "2"'
    _, found = other.health.service("web", filter_expr=expression)
    assert len(found) == 1, found

# User events, and a list that waits for the next one.
index, events = other.event.list()
assert events == [], events
found = []
# Without `wait`, which python-consul does not send.
wait_for_event = lambda: found.append(other.event.list(name="deploy", index=index))
thread = threading.Thread(target=wait_for_event, daemon=True)
thread.start()
time.sleep(0.2)
fired = here.event.fire("deploy", "v2", node="^m[01]$")
assert fired["Name"] == "deploy" and fired["NodeFilter"] == "^m[01]$", fired
thread.join(20)
assert not thread.is_alive(), "the list was not woken"
newest, events = found[0]
assert [event["ID"] for event in events] == [fired["ID"]] and events[0]["Payload"] == b"v2", events
digits = fired["ID"].replace("-", "")
assert int(newest) == int(digits[:16], 16) ^ int(digits[16:], 16), newest
here.event.fire("elsewhere", "", node="^m0$")
until("it is listed where its filter says", lambda: len(here.event.list()[1]) == 2)
assert len(other.event.list()[1]) == 1

for refused in (lambda: here.session.create(), lambda: here.catalog.register("elsewhere", "10.0.0.1")):
    try:
        refused()
        raise SystemExit("it was not refused")
    except consul.ConsulException as error:
        assert "501" in str(error), error
print("done")
