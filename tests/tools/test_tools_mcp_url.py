"""MCP servers behind a URL: the SDK's own server on loopback, with and without authorization."""

import threading

import pytest

from m7b.errors import UsageError
from m7b.tools import Toolbox
from tests.support.http_server import Answer, Server
from tests.support.mcp_servers import serve_url
from tests.support.tool_files import write_json

KEY = {"Authorization": "Bearer ${M7B_TEST_KEY}"}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """The hosts of an open server, of one that wants a token, and of one that speaks the older way."""
    folder = tmp_path_factory.mktemp("hosts")
    with (
        serve_url(folder, "http") as open_host,
        serve_url(folder, "http", "sesame") as guarded,
        serve_url(folder, "sse", "sesame") as older,
    ):
        yield {"open": open_host, "guarded": guarded, "older": older}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("M7B_TEST_KEY", "sesame")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def load(toolbox, folder, **entries):
    return toolbox.load_mcp(write_json(folder, {"mcpServers": entries}, "mcp.json"))


@pytest.mark.parametrize(
    ("host", "entry"),
    [
        ("open", {"url": "/mcp"}),
        ("open", {"url": "/mcp", "type": "http"}),
        ("open", {"url": "/mcp", "type": "streamable-http"}),
        ("open", {"url": "/mcp", "type": "streamableHttp"}),
        ("open", {"url": "/mcp", "transport": "streamable_http"}),
        ("open", {"url": "/mcp/"}),
        ("guarded", {"url": "/mcp", "headers": KEY}),
        ("guarded", {"url": "/mcp", "type": "http", "headers": {"authorization": "Bearer sesame\n"}}),
        ("older", {"url": "/sse", "type": "sse", "headers": KEY}),
        ("older", {"url": "/sse", "headers": KEY}),
    ],
)
def test_tools_behind_a_url_are_offered_and_called(host, entry, hosts, tmp_path):
    with Toolbox(time_limit=1) as toolbox:
        load(toolbox, tmp_path, web=entry | {"url": hosts[host] + entry["url"]})
        assert [tool.name for tool in toolbox.tools] == ["add", "hang", "die"]
        assert toolbox.tools[0].source == "mcp:web"
        assert '"5"' in toolbox.call("add", {"a": 2, "b": 3}).content
        late = toolbox.call("hang", {})
        assert (late.content, late.is_error) == ("hang failed: it took longer than 1 seconds", True)
        assert toolbox.call("add", {"a": 2, "b": "x"}).is_error


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
@pytest.mark.parametrize(("host", "path"), [("guarded", "/mcp"), ("older", "/sse")])
def test_a_server_that_wants_another_token_is_refused_with_what_to_do(host, path, headers, hosts, tmp_path):
    entry = {"url": f"{hosts[host]}{path}?key=secret", "headers": headers}
    with Toolbox() as toolbox, pytest.raises(UsageError) as refused:
        load(toolbox, tmp_path, web=entry)
    told = str(refused.value)
    assert told.startswith(f"mcp:web: no connection to {hosts[host]}{path}: it answers 401 Unauthorized; ")
    assert '"headers"' in told
    assert "secret" not in told
    assert "wrong" not in told


@pytest.mark.parametrize(("host", "path"), [("http", "/mcp"), ("sse", "/sse")])
def test_a_server_that_ends_is_an_error_result_from_then_on(host, path, tmp_path):
    with serve_url(tmp_path, host) as url, Toolbox(time_limit=10) as toolbox:
        load(toolbox, tmp_path, web={"url": url + path})
        for name, arguments in (("die", {}), ("add", {"a": 1, "b": 2})):
            result = toolbox.call(name, arguments)
            assert result.is_error
            assert result.content.startswith(f"{name} failed: ")
            assert result.seconds < 9


PAGE = {"Content-Type": "text/html"}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(404), "it answers 404 Not Found"),
        (Answer(500), "it answers 500 Internal Server Error"),
        (Answer(200, PAGE, b"<html>"), "text/html"),
        (Answer(200, {"Content-Type": "application/json"}, b"{"), "no connection"),
        (Answer(302, {"Location": "https://elsewhere.invalid/x"}), "elsewhere.invalid"),
        (
            Answer(200, {"Content-Type": "application/json"}, b"{}", stalls=True),
            "it took longer than 2 seconds",
        ),
        (Answer(raw=b""), "no connection"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_mcp_server_is_refused_in_one_line(answer, told, tmp_path):
    server = Server(b"", [answer] * 9)
    server.RequestHandlerClass.do_POST = server.RequestHandlerClass.do_GET
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Toolbox(start_limit=2) as toolbox, pytest.raises(UsageError) as refused:
            load(toolbox, tmp_path, web={"type": "http", "url": server.url})
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
    assert str(refused.value).startswith(f"mcp:web: no connection to {server.url}: ")
    assert told in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"type": "http"}, "server 'a' has no url"),
        ({"type": "http", "command": "x"}, "server 'a' has no url"),
        ({"url": ""}, "server 'a' has no url"),
        ({"url": 5}, "server 'a' has no url"),
        *(
            ({"url": url}, "its url is none")
            for url in ("x", "ftp://x", "http://", "http://x:99999", "http://[x")
        ),
        ({"type": "websocket", "url": "http://x"}, "m7b knows no type 'websocket'"),
        ({"type": 5, "url": "http://x"}, "m7b knows no type 5"),
        ({"url": "http://x", "headers": []}, "headers must be an object of strings"),
        ({"url": "http://x", "headers": {"A": 5}}, "headers must be an object of strings"),
        ({"url": "http://x", "headers": {"A B": "x"}}, "'A B' cannot be the name of a header"),
        (
            {"url": "http://x", "headers": {"A": "ключ"}},
            "the header A holds a character that no header takes",
        ),
        ({"url": "http://x", "headers": {"A": "x\r\nB: y"}}, "the header A holds a character"),
        ({"url": "http://x", "headers": {"A": "${M7B_NO_SUCH}"}}, "the variable M7B_NO_SUCH is not set"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_entry_that_reaches_nothing_is_refused(entry, told, tmp_path):
    with Toolbox() as toolbox, pytest.raises(UsageError) as refused:
        load(toolbox, tmp_path, a=entry)
    assert told in str(refused.value)
    assert "ключ" not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("http_proxy", "gopher://x:1", "http_proxy names no proxy"),
        ("all_proxy", "socks5h://127.0.0.1:9", "SOCKS, which needs socksio"),
        ("SSL_CERT_FILE", "/nowhere.pem", "SSL_CERT_FILE is /nowhere.pem"),
        ("http_proxy", "http://127.0.0.1:9", "no connection to http://example.invalid/mcp"),
    ],
)
def test_proxies_and_certificates_are_those_of_the_environment(variable, value, told, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, value)
    with Toolbox() as toolbox, pytest.raises(UsageError) as refused:
        load(toolbox, tmp_path, web={"url": "http://example.invalid/mcp"})
    assert told in str(refused.value)
