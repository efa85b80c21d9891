"""Where gRPC listens: loopback and Unix sockets for everybody here, other addresses with token and TLS alone."""

import subprocess
import sys

import grpc
import numpy as np
import pytest

from agent.access import Access, Tls, Tokens
from agent.grpc_front import GrpcFront
from agent.grpc_messages import INFERENCE
from agent.model import ServedModel
from subnets.errors import InputError

TOKEN = "0123456789abcdef"


@pytest.fixture
def front(make_agent, tmp_path):
    """Makes started front doors and stops them."""
    made = []

    def make(**more):
        made.append(GrpcFront(ServedModel(make_agent()), **more))
        made[-1].start()
        return made[-1]

    yield make
    for door in made:
        door.stop(5)
        door.stop(5)  # harmless


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A certificate for localhost, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    key.chmod(0o600)
    return Tls(cert=cert, key=key)


def ask(channel, images, **more):
    request = INFERENCE["ModelInferRequest"](model_name="tiny")
    request.inputs.add(name="input", datatype="FP32", shape=images.shape)
    request.raw_input_contents.append(images.tobytes())
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    reply = INFERENCE["ModelInferResponse"].FromString(infer(request.SerializeToString(), timeout=20, **more))
    return np.frombuffer(reply.raw_output_contents[0], "<f4").reshape(reply.outputs[0].shape)


def test_tcp_and_unix_answer_alike_and_count_together(front, images, helpers, tmp_path):
    door = front(port=0, unix_path=tmp_path / "g.sock")
    for address in (f"127.0.0.1:{door.port}", f"unix:{tmp_path / 'g.sock'}"):
        with grpc.insecure_channel(address) as channel:
            np.testing.assert_array_equal(ask(channel, images), helpers.expected("s100", images))
            statistics = channel.unary_unary("/inference.GRPCInferenceService/ModelStatistics")(b"", timeout=20)
    told = INFERENCE["ModelStatisticsResponse"].FromString(statistics).model_stats
    assert sum(entry.execution_count for entry in told) == 2


def test_a_public_address_needs_token_and_tls(front, tls):
    for access in (None, Access(tls=tls), Access(tokens=Tokens([TOKEN]))):
        with pytest.raises(InputError, match="can be reached from other machines"):
            front(host="0.0.0.0", port=0, access=access)


def test_over_a_public_address_the_token_opens_and_over_a_unix_socket_nothing_is_asked(
    front, tls, images, helpers, tmp_path
):
    path = tmp_path / "g.sock"
    door = front(host="0.0.0.0", port=0, unix_path=path, access=Access(tokens=Tokens([TOKEN]), tls=tls))
    trusted = grpc.ssl_channel_credentials(tls.cert.read_bytes())
    with grpc.secure_channel(f"localhost:{door.port}", trusted) as channel:
        logits = ask(channel, images, metadata=[("authorization", f"Bearer {TOKEN}")])
        np.testing.assert_array_equal(logits, helpers.expected("s100", images))
        for metadata in (None, [("authorization", "Bearer 0123456789abcdeF")]):
            with pytest.raises(grpc.RpcError) as caught:
                ask(channel, images, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with grpc.insecure_channel(f"127.0.0.1:{door.port}") as channel, pytest.raises(grpc.RpcError):
        ask(channel, images, metadata=[("authorization", f"Bearer {TOKEN}")])  # without TLS
    with grpc.insecure_channel(f"unix:{path}") as channel:
        np.testing.assert_array_equal(ask(channel, images), helpers.expected("s100", images))


def test_what_was_opened_is_closed_again_when_a_later_address_fails(front, tmp_path):
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(InputError, match="not a socket"):
        front(port=0, unix_path=taken)


def test_ipv6_loopback(front, images, helpers):
    try:
        door = front(host="::1", port=0)
    except InputError:
        pytest.skip("this machine has no IPv6")
    with grpc.insecure_channel(f"[::1]:{door.port}") as channel:
        np.testing.assert_array_equal(ask(channel, images), helpers.expected("s100", images))


def test_the_agent_does_not_import_grpc_before_it_is_configured():
    program = "import sys, agent, agent.service, agent.config; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_grpc_installed_the_agent_says_what_to_install(tmp_path):
    program = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "grpc":
            raise ModuleNotFoundError("No module named 'grpc'", name="grpc")

sys.meta_path.insert(0, Refuse())
import pathlib
from agent.config import ServeSection
from agent.front_doors import FrontDoors
from subnets.errors import UnavailableError
from types import SimpleNamespace as Any

bundle = Any(name="m", input=Any(shape=(1, 4, 4)), ladder=Any(names=("s1",)))
agent = Any(bundle=bundle, table=Any(rows=[Any(subnet="s1", threads=1)]))
try:
    FrontDoors(agent, ServeSection(port=0, grpc_socket=sys.argv[1]))
except UnavailableError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "g.sock")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("gRPC needs grpcio and protobuf; install them with: pip install 'gearshift[grpc]'")
    assert ran.stdout.count("\n") == 1
