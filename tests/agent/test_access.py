"""Who may talk to the agent: addresses, tokens, TLS, and a server that other machines could reach."""

import contextlib
import http.client
import ipaddress
import json
import socket
import ssl

import pytest
import trustme

from agent.access import Access, Tls, Tokens, is_local_name
from agent.http_listen import listen_tcp
from agent.http_server import HttpServer
from agent.model import ServedModel
from subnets.errors import InputError

TOKEN = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def files(tmp_path, authority):
    """Paths of a token file, a certificate for this machine, and its key."""
    issued = authority.issue_cert("localhost", "127.0.0.1", "192.0.2.1")
    token, cert, key = tmp_path / "token", tmp_path / "cert.pem", tmp_path / "key.pem"
    token.write_text(f"{TOKEN}\n{OTHER}\n")
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    for path in (token, key):
        path.chmod(0o600)
    return token, cert, key


@pytest.fixture
def access(files):
    return Access.read(*map(str, files))


# -- addresses


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_public_addresses_need_both_token_and_tls(files, host):
    token, cert, key = map(str, files)
    for partly in (Access(), Access.read(token), Access.read("", cert, key)):
        with pytest.raises(InputError, match=r"other machines.*token_file, tls_cert and tls_key"):
            partly.resolve(host, 0)
    assert Access.read(token, cert, key).resolve(host, 0).public


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_loopback_needs_nothing(host):
    assert not Access().resolve(host, 0).public


def test_a_host_that_is_none_is_refused():
    for host in ("no.such.host.invalid", "x" * 300, "a..b"):
        with pytest.raises(InputError, match="not an address of this machine"):
            Access().resolve(host, 0)


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("localhost", True),
        ("LOCALHOST:8700", True),
        ("127.0.0.1:1", True),
        ("[::1]", True),
        ("[::1]:80", True),
        ("", True),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("[::2]", False),
        ("10.0.0.1", False),
        ("\u0661\u0662\u0667.0.0.1", False),
    ],
)
def test_names_of_this_machine(name, local):
    assert is_local_name(name) is local


# -- tokens


def test_any_of_the_tokens_opens_and_nothing_else_does(access):
    opens = access.tokens.authorised
    assert opens(f"Bearer {TOKEN}") and opens(f"bearer  {OTHER} ")
    for wrong in ("", TOKEN, "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"):
        assert not opens(wrong)
    assert not opens("Bearer é") and not opens(f"Bearer {TOKEN}\n{OTHER}") and not opens("Bearer \udcff")


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (TOKEN, 0o644, "mode 644 lets others"),
        (TOKEN, 0o620, "mode 620 lets others"),
        ("", 0o600, "one token a line"),
        ("short", 0o600, "at least 16"),
        (f"{TOKEN}\nshort", 0o600, "at least 16"),
        ("é" * 20, 0o600, "ASCII"),
        (TOKEN * 3000, 0o600, "one token a line"),
    ],
)
def test_a_token_file_that_would_not_protect_is_refused(tmp_path, content, mode, words):
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(InputError, match=words):
        Tokens.read(path)


def test_files_that_are_missing_or_do_not_fit_are_named(tmp_path, files):
    token, cert, key = files
    with pytest.raises(InputError, match=r"none: cannot be read .No such file"):
        Tokens.read(tmp_path / "none")
    with pytest.raises(InputError, match="belong together"):
        Access.read(str(token), str(cert), "")
    with pytest.raises(InputError, match="no certificate with its unencrypted private key"):
        Tls(cert=cert, key=token).context()
    with pytest.raises(InputError, match=r"none\.pem: cannot be read"):
        Tls(cert=tmp_path / "none.pem", key=key).context()
    key.chmod(0o644)
    with pytest.raises(InputError, match="mode 644 lets others read"):
        Tls(cert=cert, key=key).context()


# -- a server


@pytest.fixture
def public(make_agent, access, monkeypatch, tmp_path):
    """A server on loopback that takes its address for public: nothing here may really be reached from elsewhere."""
    monkeypatch.setattr(ipaddress.IPv4Address, "is_loopback", property(lambda self: False))
    model = ServedModel(make_agent(), "1.2.3")
    with HttpServer(model, host="127.0.0.1", unix_path=tmp_path / "http.sock", access=access) as server:
        yield server


def ask(server, context, headers=None, path="/v2/models/tiny"):
    connection = http.client.HTTPSConnection("localhost", server.port, timeout=20, context=context)
    try:
        connection.request("GET", path, headers=headers or {})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read() or b"null"), reply.headers
    finally:
        connection.close()


def test_from_elsewhere_a_token_over_tls_is_needed(public, authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    status, told, headers = ask(public, context)
    assert status == 401 and "bearer token" in told["error"] and headers["WWW-Authenticate"] == "Bearer"
    for path in ("/v2/health/live", "/gearshift/status", "/v2/models/tiny/infer", "/nowhere"):
        assert ask(public, context, {"Authorization": "Bearer wrong-wrong-wrong"}, path)[0] == 401
    for token in (TOKEN, OTHER):
        status, told, _ = ask(public, context, {"Authorization": f"Bearer {token}", "Host": "robot.example"})
        assert (status, told["name"]) == (200, "tiny")


def test_over_the_unix_socket_no_token_is_needed(public, tmp_path):
    from agent.control_client import UnixConnection

    connection = UnixConnection(tmp_path / "http.sock", timeout=20)
    connection.request("GET", "/v2/models/tiny")
    assert connection.getresponse().status == 200
    connection.close()


def test_a_client_that_speaks_no_tls_or_does_not_trust_us_gets_nothing(public):
    with socket.create_connection(("127.0.0.1", public.port), timeout=20) as plain:
        plain.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in plain.recv(1000)
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(public, ssl.create_default_context())


def test_a_server_does_not_start_at_a_public_address_without_them(make_agent):
    with pytest.raises(InputError, match="other machines"):
        HttpServer(ServedModel(make_agent()), host="0.0.0.0")


def test_accepted_connections_are_known_as_tcp_so_that_small_answers_are_sent_at_once():
    listener, public = listen_tcp("127.0.0.1", 0, Access())
    assert not public
    with listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP  # what asyncio looks at before it sets TCP_NODELAY


def test_a_taken_port_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="--port"):
        listen_tcp("127.0.0.1", taken.getsockname()[1], Access())
