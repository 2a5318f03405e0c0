"""Uses a node as an agent does, with the client of the package mcp. Arguments: http URL TOKEN, or stdio NODE URL."""

import asyncio
import sys
from contextlib import asynccontextmanager

import httpx2
from mcp import Client, MCPError
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

READS = ["list_services", "get_service", "list_members", "why", "search_log", "dependencies"]
WRITES = ["drain", "deregister"]


@asynccontextmanager
async def connect(may_write, mode):
    """A client that may write or not, by the newest protocol (auto) or by the one with a handshake (legacy)."""
    kind, first, second = sys.argv[1:]
    if kind == "http":
        headers = {"Authorization": f"Bearer {second}"} if may_write else {}
        async with httpx2.AsyncClient(headers=headers, trust_env=False) as http:
            async with Client(streamable_http_client(first, http_client=http), mode=mode) as client:
                yield client
    else:
        options = ["--allow-writes"] if may_write else []
        server = StdioServerParameters(command=first, args=["mcp", "--node", second, *options])
        async with Client(server, mode=mode) as client:
            yield client


async def call(client, tool, **arguments):
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, (tool, arguments, result)
    return result.structured_content


async def fails(client, tool, word, **arguments):
    result = await client.call_tool(tool, arguments)
    assert result.is_error and word in result.content[0].text, (tool, arguments, result)


async def refused(request, word):
    """Waits for an error of the protocol, and not of a tool."""
    try:
        answer = await request
    except MCPError as error:
        assert word in str(error), error
    else:
        raise AssertionError(answer)


async def health(client, name, expected):
    """Waits until the only instance of a service has a health; None: until there is no instance."""
    for _ in range(200):
        listed = await call(client, "list_services", name=name)
        if [service[expected] for service in listed["services"]] == [1] if expected else listed["total"] == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError((name, expected, listed))


async def read(client):
    tools = (await client.list_tools()).tools
    assert [tool.name for tool in tools] == READS, tools
    assert all(tool.annotations.read_only_hint and tool.description for tool in tools), tools
    found = await call(client, "list_services", tag="mcp")
    assert [service["name"] for service in found["services"]] == ["web"], found
    found = await call(client, "get_service", name="web", nearest_first=True)
    assert found["total"] == 1 and found["instances"][0]["meta"] == {"mcp_path": "/agents"}, found
    found = await call(client, "get_service", name="web", instance="web-1")
    assert found["instance"]["checks"][0]["status"] == "passing", found
    found = await call(client, "list_members", state="alive")
    assert [member["name"] for member in found["members"]] == ["m0", "m1"], found
    assert (await call(client, "why", subject="web-1"))["events"], "web-1 has a history"
    # The node of the agent lacks the role log.
    found = await call(client, "search_log", words="unmistakable", level="warn")
    assert [record["message"] for record in found["records"]] == ["an unmistakable record"], found
    found = await call(client, "dependencies", service="db")
    assert [service["missing"] for service in found["services"]] == [[], ["db"]], found
    await fails(client, "get_service", "no instance", name="none")
    await fails(client, "list_members", "limit", limit=0)
    await fails(client, "list_members", "colour", colour="red")
    await refused(client.call_tool("delete_everything", {}), "delete_everything")
    await refused(client.list_tools(cursor="2"), "cursor")
    await refused(client.list_resources(), "")


async def write(client):
    assert [tool.name for tool in (await client.list_tools()).tools] == READS + WRITES
    # web-1 is registered with the node of the agent, far-1 with the other one.
    for name in ["web", "far"]:
        await call(client, "drain", id=f"{name}-1", reason="disk")
        await health(client, name, "critical")
        await call(client, "drain", id=f"{name}-1", undo=True)
        await health(client, name, "passing")
    await fails(client, "drain", "none", id="none")


async def main():
    refusal = "API token" if sys.argv[1] == "http" else "--allow-writes"
    for mode in ["auto", "legacy"]:
        async with connect(False, mode) as client:
            await read(client)
            await fails(client, "drain", refusal, id="web-1")
            await fails(client, "deregister", refusal, id="web-1")
            await health(client, "web", "passing")
        async with connect(True, mode) as client:
            await write(client)
    async with connect(True, "auto") as client:
        for name in ["web", "far"]:
            await call(client, "deregister", id=f"{name}-1")
            await health(client, name, None)


asyncio.run(main())
