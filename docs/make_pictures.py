"""Makes the pictures of docs/operations.md: a real agent under load, its web page and ``gearshift top``.

Run from the repository's root, with Chromium installed::

    .venv/bin/python docs/make_pictures.py

It measures bundles/resnet20-cifar10 for half a minute, runs the agent on it as a process of its own, sends it random
images for three minutes, holds a subnet for a while and takes the pictures. Engines, answers, latencies and decisions
are real; battery, thermometer and power meter are files that this script writes in the kernel's form, since the machine
that makes the pictures may have none.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "resnet20-cifar10"
SHAPE = (1, 3, 32, 32)
BATTERY_J = 40 * 3600.0
LIMIT_C = 75.0


class Box:
    """The surroundings, as files below a folder: a battery that empties, heat that comes and goes with the sun."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.began_s = time.monotonic()
        self.left_j = 0.62 * BATTERY_J
        self.temperature_c = 53.0
        self.write(0.0)

    def write(self, step_s: float) -> None:
        """The state after another ``step_s`` seconds."""
        now_s = time.monotonic() - self.began_s
        sun_w = 6.0 * max(0.0, math.sin(2 * math.pi * now_s / 130.0))
        power_w = 5.2 + 0.5 * math.sin(now_s / 6.0) + 0.15 * math.sin(now_s * 2.1)
        self.temperature_c += step_s * ((30.0 + 4.4 * power_w + 5.5 * sun_w) - self.temperature_c) / 35.0
        self.left_j -= step_s * power_w
        battery = {
            "type": "Battery",
            "status": "Discharging",
            "energy_now": round(self.left_j / 3600e-6),
            "energy_full": round(BATTERY_J / 3600e-6),
            "power_now": round(power_w * 1e6),
        }
        files = {f"sys/class/power_supply/BAT0/{name}": value for name, value in battery.items()}
        files |= {"sys/class/power_supply/AC/type": "Mains", "sys/class/power_supply/AC/online": 0}
        zone, rail = "sys/class/thermal/thermal_zone0", "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
        files |= {f"{zone}/type": "cpu-thermal", f"{zone}/temp": round(1000 * self.temperature_c)}
        files |= {f"{rail}/in1_label": "VDD_IN", f"{rail}/in1_input": 5000, f"{rail}/curr1_input": round(200 * power_w)}
        for name, value in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".new").write_text(f"{value}\n")
            path.with_suffix(".new").replace(path)


def main() -> None:
    """Parses the options and makes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    parser.add_argument("--seconds", type=float, default=185.0, help="of load before the pictures")
    options = parser.parse_args()
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
    )
    if not browser:
        sys.exit("no Chromium here; install it (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running(folder) as port:
            drive(port, options.seconds)
            options.out.mkdir(parents=True, exist_ok=True)
            photograph(browser, port, options.out)
            draw_top(port, options.out / "top.svg")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[int]:
    """An agent on a freshly measured table, with the box's files as its sensors; gives its port."""
    gearshift = [sys.executable, "-c", "import sys, cli; sys.argv[0] = 'gearshift'; cli.main()"]
    table, box = folder / "table.json", Box(folder / "box")
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(folder / "run"), "GEARSHIFT_CACHE": str(folder / "cache")}
    environment |= {"GEARSHIFT_AGENT_SENSOR_ROOT": str(box.folder), "STATE_DIRECTORY": str(folder)}
    measure = ["calibrate", BUNDLE, "--budget", "30s", "--backend", "openvino", "--out", table]
    subprocess.run([*gearshift, *map(str, measure)], check=True, cwd=ROOT, env=environment)
    serve = ["run", BUNDLE, "--table", table, "--port", "0", "--journal", folder / "journal", "--deadline", "20ms"]
    serve += ["--temperature-limit", str(LIMIT_C), "--max-power", "8", "--last-until", "4h", "--force"]
    agent = subprocess.Popen([*gearshift, *map(str, serve)], cwd=ROOT, env=environment)
    stop = threading.Event()

    def weather() -> None:
        while not stop.wait(0.25):
            box.write(0.25)

    os.environ["RUNTIME_DIRECTORY"] = environment["RUNTIME_DIRECTORY"]
    thread = threading.Thread(target=weather)
    thread.start()
    try:
        while not (folder / "run" / "agent.json").exists():
            if agent.poll() is not None:
                sys.exit("the agent did not start")
            time.sleep(0.1)
        yield json.loads((folder / "run" / "agent.json").read_bytes())["port"]
    finally:
        stop.set()
        thread.join()
        agent.terminate()
        agent.wait(60)


def drive(port: int, seconds: float) -> None:
    """Random images at a rate that comes and goes; towards the end a hold."""
    from agent.client import ask

    random = np.random.default_rng(1)
    pixels = random.normal(size=SHAPE).ravel().tolist()
    image = {"name": "input", "datatype": "FP32", "shape": SHAPE, "data": pixels}
    body = json.dumps({"inputs": [image]}).encode()
    request = urllib.request.Request(f"http://localhost:{port}/v2/models/{BUNDLE.name}/infer", body)
    began_s, held = time.monotonic(), False
    while (now_s := time.monotonic() - began_s) < seconds:
        urllib.request.urlopen(request).read()
        rate_hz = 22 + 14 * math.sin(2 * math.pi * now_s / 75) + (18 if 95 < now_s < 110 else 0)
        time.sleep(random.exponential(1 / rate_hz))
        if not held and now_s > seconds - 45:
            held = True
            ask("POST", "/gearshift/hold", {"subnet": "s100", "for_s": 20.0, "reason": "acceptance test"})


def photograph(browser: str, port: int, out: Path) -> None:
    """The page in both colour schemes, while requests go on."""
    for scheme, flags in (("light", []), ("dark", ["--blink-settings=preferredColorScheme=0"])):
        target = out / f"ui-{scheme}.png"
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *flags]
        command += ["--window-size=1220,1210", "--virtual-time-budget=3000", f"--screenshot={target}"]
        subprocess.run([*command, f"http://localhost:{port}/ui"], check=True, capture_output=True, timeout=120)


def draw_top(port: int, target: Path) -> None:
    """The screen of ``gearshift top`` in a terminal of 96 by 30."""
    from rich.console import Console

    from cli._top import screen

    view = json.loads(urllib.request.urlopen(f"http://localhost:{port}/gearshift/view").read())
    width, height = 96, 31
    console = Console(record=True, width=width, height=height, file=io.StringIO(), force_terminal=True)
    for line in screen(view, width, height):
        console.print(line, no_wrap=True, crop=False)
    target.write_text(console.export_svg(title="gearshift top"), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
