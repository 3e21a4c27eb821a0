"""MCP servers for tests: one that lists whatever it is told, and one of the SDK behind a URL."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Plain JSON lines, as the SDK's server refuses to list what these tests are about.
LISTS_ANYTHING = """
import json, sys

tools = json.loads(sys.argv[1])
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    answer = {"jsonrpc": "2.0", "id": asked["id"]}
    match asked["method"]:
        case "initialize":
            version, info = asked["params"]["protocolVersion"], {"name": "raw", "version": "1"}
            offers = {} if tools is None else {"tools": {}}
            answer["result"] = {"protocolVersion": version, "capabilities": offers, "serverInfo": info}
        case "tools/list" if tools is not None:
            answer["result"] = {"tools": tools}
        case "tools/call":
            answer["result"] = {"content": [{"type": "text", "text": asked["params"]["name"]}]}
        case _:
            answer["error"] = {"code": -32601, "message": "Method not found"}
    print(json.dumps(answer), flush=True)
"""

BEHIND_A_URL = """
import asyncio, os, sys
import uvicorn
from mcp.server import MCPServer

port, way, *tokens = sys.argv[1:]
server = MCPServer("web")

@server.tool()
def add(a: int, b: int) -> str:
    "Add."
    return str(a + b)

@server.tool()
async def hang() -> str:
    "Hang."
    await asyncio.sleep(60)

@server.tool()
def die() -> str:
    "Die."
    os._exit(3)

app = server.sse_app() if way == "sse" else server.streamable_http_app()

async def guard(scope, receive, send):
    allowed = [f"Bearer {token}".encode() for token in tokens]
    if scope["type"] == "http" and allowed and dict(scope["headers"]).get(b"authorization") not in allowed:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})
    else:
        await app(scope, receive, send)

uvicorn.run(guard, host="127.0.0.1", port=int(port), log_level="error")
"""


@contextmanager
def serve_url(folder: Path, way: str, *tokens: str) -> Iterator[str]:
    """Run BEHIND_A_URL, which asks for one of `tokens` if there are any; yields the address of its host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file = folder / f"behind_{way}.py"
    file.write_text(BEHIND_A_URL)
    command = [sys.executable, str(file), str(port), way, *tokens]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
