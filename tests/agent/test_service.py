"""``gearshift run`` as a process with real OpenVINO engines, where torch cannot be imported; and its commands."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from agent import config, service, template
from calibration import table as tables
from calibration.host import fingerprint
from subnets.errors import InputError, MismatchError

WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch must not be imported here")

sys.meta_path.insert(0, Refuse())
sys.argv = ["gearshift", *sys.argv[1:]]
import cli
cli.main()
"""


class Daemon:
    """A running agent with what it printed."""

    def __init__(self, folder, root, arguments) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "RUNTIME_DIRECTORY": str(folder / "run"),
            "GEARSHIFT_CACHE": str(folder / "cache"),
        }
        self.output = folder / "output.txt"
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WITHOUT_TORCH, "run", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=root,
                env=self.environment,
            )

    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, words: str, count: int = 1) -> str:
        deadline = time.monotonic() + 120
        while self.text().count(words) < count:
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, f"no '{words}' in: {self.text()}"
            time.sleep(0.05)
        return self.text()

    def ask(self, method, path, body=None, headers=None):
        state = json.loads((self.folder / "run" / "agent.json").read_bytes())
        connection = http.client.HTTPConnection(state["host"], state["port"], timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def made(openvino_bundle, tmp_path_factory, helpers):
    """A folder with a real bundle's table and a configuration."""
    from calibration.table import write

    folder = tmp_path_factory.mktemp("service")
    table = helpers.make_table(openvino_bundle, backend="openvino", host=fingerprint({"openvino"}))
    write(table, folder / "table.json")
    (folder / "agent.toml").write_text(
        f'[agent]\nbundle = "{openvino_bundle.path}"\ntable = "table.json"\npolicy = "largest"\njournal = "journal"\n'
        f'control_period = "50ms"\n[serve]\nport = 0\nsocket = "agent.sock"\n'
    )
    return folder, table


@pytest.fixture(scope="module")
def daemon(made, helpers):
    folder, _ = made
    running = Daemon(folder, helpers.root, ["--config", str(folder / "agent.toml")])
    try:
        running.wait_for("serving tiny at http://127.0.0.1:")
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.wait(60)


@pytest.fixture
def gearshift(daemon, monkeypatch):
    """Runs a command against the daemon."""
    import cli

    monkeypatch.setenv("RUNTIME_DIRECTORY", str(daemon.folder / "run"))

    def run(*arguments: str):
        return CliRunner().invoke(cli.gearshift, arguments, catch_exceptions=False)

    return run


def test_four_real_engines_answer_over_http_within_250_mb_without_torch(daemon):
    images = np.random.Generator(np.random.PCG64(1)).uniform(size=(3, 1, 4, 4)).astype(np.float32)
    request = {
        "inputs": [{"name": "input", "shape": [3, 1, 4, 4], "datatype": "FP32", "data": images.ravel().tolist()}]
    }
    for version, rank in (("1", 1), ("2", 2), ("3", 3), ("4", 4)):
        status, _, body = daemon.ask("POST", f"/v2/models/tiny/versions/{version}/infer", json.dumps(request))
        assert status == 200, body
        logits = np.reshape(json.loads(body)["outputs"][0]["data"], (3, 3))
        expected = images.reshape(3, -1).sum(1)[:, None] * np.arange(1, 4) * rank
        np.testing.assert_allclose(logits, expected, rtol=5e-3)
    engines = json.loads(daemon.ask("GET", "/gearshift/status")[2])["engines"]
    assert sum(engine["resident"] for engine in engines) == 4
    assert psutil.Process(daemon.process.pid).memory_info().rss < 250e6


def test_the_real_engine_refuses_nan(daemon):
    text = json.dumps(
        {"inputs": [{"name": "input", "shape": [1, 1, 4, 4], "datatype": "FP32", "data": [float("nan")] * 16}]}
    )
    status, _, body = daemon.ask("POST", "/v2/models/tiny/infer", text)
    assert status == 400 and "error" in json.loads(body)


def test_status_and_explain_say_what_and_why(gearshift):
    status = json.loads(gearshift("status", "--json", "-").stdout)
    assert {"subnet", "backend", "precision", "reason", "policy", "conditions", "hold"} <= status.keys()
    assert (status["subnet"], status["backend"], status["policy"], status["hold"]) == (
        "s100",
        "openvino",
        "largest",
        None,
    )
    shown = gearshift("status").stdout
    assert "s100@openvino:f32" in shown and "current" in shown
    for _ in range(100):  # the decision before was taken while the engine was being loaded; the next comes in a second
        told = json.loads(gearshift("explain", "--last", "2", "--json", "-").stdout)
        if told[-1]["applied"]:
            break
        time.sleep(0.1)
    assert told[-1]["applied"].startswith("s100@")
    assert "s100@openvino" in gearshift("explain", "--last").stdout


def test_hold_and_release(gearshift, daemon):
    assert "s25 is held for 600 s" in gearshift("hold", "s25", "--for", "10m", "--reason", "because").stdout
    status = json.loads(gearshift("status", "--json", "-").stdout)
    assert status["subnet"] == "s25" and status["hold"]["reason"] == "because"
    assert "because" in gearshift("status").stdout
    gearshift("release")
    assert json.loads(gearshift("status", "--json", "-").stdout)["subnet"] == "s100"
    with pytest.raises(InputError, match="s60"):
        gearshift("hold", "s60", "--for", "1m", "--reason", "wrong")


def test_a_second_agent_is_refused(daemon, made, helpers):
    second = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "run", "--config", str(made[0] / "agent.toml")],
        capture_output=True,
        text=True,
        cwd=helpers.root,
        env=daemon.environment,
        timeout=120,
    )
    assert second.returncode == 2 and "another agent runs here" in second.stderr
    assert "Traceback" not in second.stderr


def test_sighup_takes_up_a_sound_configuration_and_keeps_the_old_one_otherwise(daemon, gearshift):
    path = daemon.folder / "agent.toml"
    sound = path.read_text()
    path.write_text(sound.replace('"largest"', '"larget"'))
    daemon.process.send_signal(signal.SIGHUP)
    assert "did you mean 'largest'" in daemon.wait_for("reload refused")
    path.write_text(sound + "[goals]\nmin_accuracy = 90.0\n")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("reload refused", 2)
    assert json.loads(gearshift("status", "--json", "-").stdout)["policy"] == "largest"
    path.write_text(sound.replace('"largest"', '"smallest"').replace("port = 0", "port = 1"))
    daemon.process.send_signal(signal.SIGHUP)
    assert "only after a restart: serve.port" in daemon.wait_for("configuration reloaded")
    daemon.wait_for("→ s25@openvino")
    assert json.loads(gearshift("status", "--json", "-").stdout)["policy"] == "smallest"


def test_sigterm_ends_it_cleanly_and_leaves_a_journal_that_replays(daemon, made):
    """Last in this file: it ends the daemon."""
    from simulation.journal import read
    from simulation.verify import verify_recorded

    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(60) == 0, daemon.text()
    assert "stopped:" in daemon.text() and "Traceback" not in daemon.text()
    assert not (daemon.folder / "agent.sock").exists()
    assert not (daemon.folder / "run" / "agent.json").exists()
    journal = read([daemon.folder / "journal" / "journal.jsonl"])
    compared, mismatches = verify_recorded(journal, made[1])
    assert compared > 0 and not mismatches and not journal.torn
    assert len(journal.sessions) == 2  # the reload began another


def test_grpc_is_served_where_it_is_asked_for_and_ends_with_the_agent(made, helpers, tmp_path):
    triton = pytest.importorskip("tritonclient.grpc")
    arguments = ["--config", str(made[0] / "agent.toml"), "--grpc-port", "0", "--grpc-socket", str(tmp_path / "g.sock")]
    arguments += ["--socket", str(tmp_path / "h.sock"), "--journal", str(tmp_path / "journal")]
    running = Daemon(tmp_path, helpers.root, arguments)
    try:
        told = running.wait_for(f"and grpc+unix:{tmp_path / 'g.sock'}")
        state = json.loads((tmp_path / "run" / "agent.json").read_bytes())
        assert f"grpc://127.0.0.1:{state['grpc_port']}" in told and state["grpc_socket"] == str(tmp_path / "g.sock")
        images = np.random.Generator(np.random.PCG64(1)).uniform(size=(3, 1, 4, 4)).astype(np.float32)
        sent = triton.InferInput("input", images.shape, "FP32")
        sent.set_data_from_numpy(images)
        for address in (f"127.0.0.1:{state['grpc_port']}", f"unix:{state['grpc_socket']}"):
            with triton.InferenceServerClient(address) as client:
                logits = client.infer("tiny", [sent], model_version="2").as_numpy("logits")
                np.testing.assert_allclose(
                    logits, images.reshape(3, -1).sum(1)[:, None] * np.arange(1, 4) * 2, rtol=5e-3
                )
        counted = json.loads(running.ask("GET", "/v2/models/tiny/versions/2/stats")[2])["model_stats"][0]
        assert counted["execution_count"] == 2  # one set of statistics for all ways in
        with triton.InferenceServerClient(f"unix:{state['grpc_socket']}") as client:
            client.start_stream(lambda result, error: None)
            client.async_stream_infer("tiny", [sent])
            running.process.send_signal(signal.SIGTERM)  # an open stream must not hold it up
            assert running.process.wait(60) == 0, running.text()
        assert "Traceback" not in running.text() and not (tmp_path / "g.sock").exists()
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


@pytest.fixture
def flags(made, openvino_bundle):
    return {"agent.bundle": str(openvino_bundle.path), "agent.table": str(made[0] / "table.json")}


def test_a_table_of_another_bundle_or_machine_is_refused_unless_forced(flags, made, tmp_path):
    import msgspec

    for changes in ({"bundle_key": "0" * 16}, {"host": msgspec.structs.replace(made[1].host, cores=999)}):
        tables.write(msgspec.structs.replace(made[1], **changes), tmp_path / "other.json")
        wrong = config.load(None, flags=flags | {"agent.table": str(tmp_path / "other.json")})
        with pytest.raises(MismatchError, match="--force"):
            service.assemble(wrong)
        told = []
        service.assemble(wrong, force=True, tell=lambda name, detail, told=told: told.append(name))
        assert told == ["mismatch"]


def test_without_a_table_the_way_to_one_is_told(flags):
    with pytest.raises(InputError, match="gearshift calibrate"):
        service.assemble(config.load(None, flags=flags | {"agent.table": None}))
    with pytest.raises(InputError, match="gearshift run BUNDLE"):
        service.assemble(config.load(None))


def test_settings_that_leave_no_row_are_refused(flags):
    with pytest.raises(InputError, match="it has openvino/f32/1 threads"):
        service.assemble(config.load(None, flags=flags | {"agent.precision": "f64"}))


def test_commands_without_an_agent_say_so(tmp_path, monkeypatch):
    import cli
    from subnets.errors import UnavailableError

    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    for arguments in (["status"], ["explain"], ["release"], ["hold", "s25", "--for", "1m", "--reason", "x"]):
        with pytest.raises(UnavailableError, match="gearshift run BUNDLE"):
            CliRunner().invoke(cli.gearshift, arguments, catch_exceptions=False)


def test_config_commands(tmp_path, made):
    import cli

    def run(*arguments):
        return CliRunner().invoke(cli.gearshift, ["config", *arguments], catch_exceptions=False).stdout

    path = str(tmp_path / "agent.toml")
    assert run("init") == template.template()
    run("init", path)
    assert "sound" in run("check", path)
    assert "default" in run("diff", path)
    (found,) = [
        d for d in json.loads(run("diff", str(made[0] / "agent.toml"), "--json", "-")) if d["key"] == "agent.journal"
    ]
    assert found["default"] == "" and found["value"].endswith("journal")
    with pytest.raises(InputError, match="exists already"):
        run("init", path)
