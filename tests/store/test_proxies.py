"""Which proxy a connection takes, and that a real CONNECT proxy is really used, in upper case, too."""

import asyncio
import contextlib
import time

import grpc
import pytest
from processes import PATIENCE_SECONDS

from consortium.channels import SERVER_OPTIONS, open_channel, program_of, server_credentials, user_agent
from consortium.errors import BadInput
from consortium.identity import Authority, Credentials, signing_request
from consortium.ids import SiteName
from consortium.proxies import proxy_for, without_password
from consortium.signing import new_key, private_pem

TARGET = "coordinator.example.eu:7443"
PROXY = "http://proxy.example.eu:3128"


@pytest.mark.parametrize(
    ("setting", "environment", "found"),
    [
        (None, {}, ""),
        (PROXY, {}, PROXY),
        ("proxy.example.eu:3128", {}, PROXY),
        ("", {"https_proxy": PROXY}, ""),
        (None, {"HTTPS_PROXY": PROXY}, PROXY),
        (None, {"ALL_PROXY": PROXY}, PROXY),
        (None, {"HTTP_PROXY": "http://a:1", "https_proxy": PROXY}, PROXY),
        (None, {"HTTPS_PROXY": PROXY, "NO_PROXY": "example.eu"}, ""),
        (None, {"HTTPS_PROXY": PROXY, "no_proxy": ".example.eu , other"}, ""),
        (None, {"HTTPS_PROXY": PROXY, "no_proxy": "ample.eu"}, PROXY),
        (None, {"HTTPS_PROXY": PROXY, "no_proxy": "*"}, ""),
        (PROXY, {"no_proxy": "*"}, PROXY),
    ],
)
def test_the_setting_then_the_environment_in_either_case(setting, environment, found):
    assert proxy_for(TARGET, setting, environment) == found


def test_networks_of_no_proxy():
    environment = {"https_proxy": PROXY, "no_proxy": "10.0.0.0/8"}
    assert proxy_for("10.1.2.3:7443", None, environment) == ""
    assert proxy_for("11.1.2.3:7443", None, environment) == PROXY


@pytest.mark.parametrize(
    "value", ["socks5://u:secret@h:1080", "https://u:secret@h:3128", "http://u:secret@h"]
)
def test_what_grpc_would_pass_by_is_refused_with_a_way_out_and_no_password(value):
    with pytest.raises(BadInput, match="HTTPS_PROXY: ") as told:
        proxy_for(TARGET, None, {"HTTPS_PROXY": value})
    assert "secret" not in str(told.value)
    assert "bridge" in str(told.value) or "host:port" in str(told.value)


def test_a_password_is_not_shown():
    assert without_password("http://me:secret@proxy:3128") == "http://proxy:3128"


def test_an_agents_name_comes_back():
    words = user_agent("0.2.0", "abc") + " grpc-python-asyncio/1.80"
    assert program_of([("user-agent", words)]) == ("0.2.0", "abc")
    assert program_of([("user-agent", "grpc-python/1")]) == ("", "")
    assert program_of(None) == ("", "")


class ConnectProxy:
    """Joins whoever asks with CONNECT; ``asked`` are the targets it was given."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.port = 0

    @contextlib.asynccontextmanager
    async def running(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task] = set()
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n")[0].decode().split()
        assert method == "CONNECT"
        self.asked.append(target)
        port = target.rpartition(":")[2]
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def pump(source, sink):
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        try:
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        finally:
            writer.close()
            far_writer.close()


@contextlib.asynccontextmanager
async def echo_server(authority):
    async def echo(request, context):
        return request

    handler = grpc.method_handlers_generic_handler(
        "test.Echo", {"Say": grpc.unary_unary_rpc_method_handler(echo)}
    )
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((handler,))
    door = server_credentials(authority.pem, authority.coordinator(["localhost"], time.time()))
    port = server.add_secure_port("127.0.0.1:0", door)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@pytest.mark.parametrize("how", ["setting", "HTTPS_PROXY", "https_proxy"])
async def test_a_real_proxy_is_gone_through(monkeypatch, how):
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    authority = Authority.create("test", time.time())
    key = new_key()
    own = Credentials(
        authority.site(signing_request(SiteName("north"), key), SiteName("north"), time.time()),
        private_pem(key),
    )
    proxy = ConnectProxy()
    async with echo_server(authority) as port, proxy.running():
        url = f"http://127.0.0.1:{proxy.port}"
        if how != "setting":
            monkeypatch.setenv(how, url)
        setting = url if how == "setting" else None
        async with open_channel(f"localhost:{port}", authority.pem, own, proxy=setting) as channel:
            assert await channel.unary_unary("/test.Echo/Say")(b"ping", timeout=PATIENCE_SECONDS) == b"ping"
    assert proxy.asked == [f"localhost:{port}"]


async def test_without_a_proxy_nobody_else_is_asked(monkeypatch):
    proxy = ConnectProxy()
    authority = Authority.create("test", time.time())
    key = new_key()
    own = Credentials(
        authority.site(signing_request(SiteName("north"), key), SiteName("north"), time.time()),
        private_pem(key),
    )
    async with echo_server(authority) as port, proxy.running():
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        async with open_channel(f"localhost:{port}", authority.pem, own, proxy="") as channel:
            assert await channel.unary_unary("/test.Echo/Say")(b"ping", timeout=PATIENCE_SECONDS) == b"ping"
    assert proxy.asked == []
