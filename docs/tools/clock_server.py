"""A Model Context Protocol server with two tools, on the official SDK: `pip install mcp`."""

from datetime import date, datetime
from zoneinfo import ZoneInfo

from mcp.server import MCPServer

server = MCPServer("clock")


@server.tool()
def current_time(timezone: str = "UTC") -> str:
    """Get the current date and time, in ISO 8601. The time zone is an IANA name such as Europe/Paris."""
    return datetime.now(ZoneInfo(timezone)).isoformat(timespec="seconds")


@server.tool()
def days_between(first: date, second: date) -> int:
    """Count the days from the first date to the second. Dates are written like 2024-02-29."""
    return (second - first).days


if __name__ == "__main__":
    server.run("stdio")
