"""One client of the soak: asks in bursts over HTTP on the Unix socket until it is killed, and checks every answer.

::

    python benchmarks/soak_client.py SOCKET REFERENCES.npz OUT.jsonl MODEL SEED

``OUT.jsonl`` gets a line of counts a second, and one at once for everything that went wrong. A request counts as
*accepted* when the agent neither refused it (400, 429, 503) nor could not be reached; what was accepted must be
answered, by one subnet, with that subnet's logits. Only who asks for one subnet and no other may be told that its
engine fails.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the scripts run from a checkout, installed or not

import numpy as np

from agent.control_client import UnixConnection

TIMEOUT_S = 30.0
TOLERANCE = 1e-3
_HEAD = "Inference-Header-Content-Length"
_REFUSED = (429, 503)


class Client:
    """Asks and counts.

    Args:
        socket: the agent's.
        references: ``images`` [N, C, H, W], and per subnet the logits of each.
        model: the bundle's name.
        out: where counts and faults go.
        seed: of what is asked when.
    """

    def __init__(self, socket: Path, references: dict[str, Any], model: str, out: TextIO, seed: int) -> None:
        self._socket, self._model, self._out = socket, model, out
        self._images = references.pop("images")
        self._logits = references
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._connection: http.client.HTTPConnection | None = None
        self._told_s = time.monotonic()
        self._counts = {"answered": 0, "refused": 0, "told_that_the_subnet_fails": 0, "unreachable": 0}

    def run(self) -> None:
        """Bursts, steady streams and pauses, for ever."""
        while True:
            kind = self._random.choice(["burst", "burst", "steady", "pause"])
            if kind == "pause":
                self._pause(self._random.uniform(0.2, 1.5))
                continue
            for _ in range(int(self._random.integers(20, 200))):
                self._ask()
                if kind == "steady":
                    self._pause(self._random.exponential(0.03))

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)
        self._tell()

    def _ask(self) -> None:
        chosen = self._random.integers(0, len(self._images), int(self._random.choice([1, 1, 1, 1, 2, 5])))
        wish = self._random.choice(["", "", "", "", "subnet", "timeout", "min_accuracy"])
        subnet = str(self._random.choice(list(self._logits)))
        wishes = {"subnet": subnet, "timeout": 200_000, "min_accuracy": 0.9}
        parameters: dict[str, Any] = {"binary_data_output": True}
        if wish:
            parameters[str(wish)] = wishes[str(wish)]
        batch = np.ascontiguousarray(self._images[chosen])
        tensor = {
            "name": "input",
            "shape": list(batch.shape),
            "datatype": "FP32",
            "parameters": {"binary_data_size": batch.nbytes},
        }
        head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
        began_s = time.time()
        try:
            if self._connection is None:
                self._connection = UnixConnection(self._socket, timeout=TIMEOUT_S)
                self._connection.connect()
        except OSError:
            self._connection = None
            self._counts["unreachable"] += 1
            self._pause(0.05)
            return
        try:
            connection, path = self._connection, f"/v2/models/{self._model}/infer"
            try:
                connection.request("POST", path, head + batch.tobytes(), {_HEAD: str(len(head))})
            except (BrokenPipeError, ConnectionResetError):  # not taken whole, so never accepted
                connection.close()
                self._connection = None
                self._counts["unreachable"] += 1
                return
            reply = connection.getresponse()
            content = reply.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._connection = None
            self._wrong("lost", began_s, f"{type(error).__name__}: {error}")
            return
        if reply.status in _REFUSED:
            self._counts["refused"] += 1
        elif reply.status == 500 and wish == "subnet" and b"error" in content:
            self._counts["told_that_the_subnet_fails"] += 1
        elif reply.status != 200:
            self._wrong("failed", began_s, f"{reply.status}: {content[:200].decode(errors='replace')}")
        else:
            self._check(began_s, chosen, content, int(reply.headers[_HEAD]), subnet if wish == "subnet" else "")
        self._tell()

    def _check(self, began_s: float, chosen: Any, content: bytes, size: int, wanted: str) -> None:
        answer = json.loads(content[:size])
        subnet = answer["parameters"]["subnet"]
        logits = np.frombuffer(content[size:], np.float32).reshape(answer["outputs"][0]["shape"])
        expected = self._logits.get(subnet)
        if expected is None or (wanted and subnet != wanted):
            self._wrong("wrong", began_s, f"answered by {subnet}, asked for {wanted or 'any'}")
        elif logits.shape != expected[chosen].shape or np.abs(logits - expected[chosen]).max() > TOLERANCE * 10:
            self._wrong("wrong", began_s, f"logits of {subnet} are off")
        else:
            self._counts["answered"] += 1

    def _wrong(self, what: str, began_s: float, why: str) -> None:
        line = {"what": what, "began_s": began_s, "ended_s": time.time(), "why": why}
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()

    def _tell(self) -> None:
        if time.monotonic() - self._told_s >= 0.5 and any(self._counts.values()):
            self._told_s = time.monotonic()
            self._out.write(json.dumps({"what": "counts", **self._counts}) + "\n")
            self._out.flush()
            self._counts = dict.fromkeys(self._counts, 0)


def main() -> None:
    """Asks until killed."""
    socket, references, out, model, seed = sys.argv[1:]
    with np.load(references) as loaded, Path(out).open("a", encoding="utf-8") as file:
        Client(Path(socket), {name: loaded[name] for name in loaded.files}, model, file, int(seed)).run()


if __name__ == "__main__":
    main()
