"""The scrape: names, units, agreement with what was asked, and Triton's names."""

import asyncio
import shutil
import subprocess

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from agent.metrics import BUCKETS_MS, Metrics
from agent.view import Viewer
from policies.base import Goals


@pytest.fixture
def scraped(make_agent, helpers):
    """A maker of (agent, scrape); ``scrape()`` gives {(name, labels): value}, ``scrape.text(path)`` the body."""

    class Scrape:
        def __init__(self, app):
            self._transport = httpx.ASGITransport(app)

        def reply(self, path="/metrics", **headers):
            async def once():
                async with httpx.AsyncClient(transport=self._transport, base_url="http://localhost") as client:
                    return await client.get(path, headers=headers)

            return asyncio.run(once())

        def text(self, path="/metrics"):
            return self.reply(path).text

        def __call__(self, path="/metrics"):
            return {
                (sample.name, *sorted(sample.labels.values())): sample.value
                for family in text_string_to_metric_families(self.text(path))
                for sample in family.samples
            }

    def make(**changes):
        agent = make_agent(start=False, **changes)
        viewer = Viewer(agent, "1.2.3")
        agent.start()
        return agent, Scrape(Starlette(routes=Metrics(viewer).routes()))

    return make


def test_requests_and_times_are_those_that_were_answered(scraped, images):
    agent, scrape = scraped()
    agent.infer(images[:3], subnet="s50")
    for _ in range(4):
        agent.infer(images[:1])
    agent.tallies.answered("s75@fake:f32:b1", 1, 40.0, 30.0)
    agent.tallies.answered("s75@fake:f32:b1", 1, 0.0, 50.0)  # on a bound: counted below it
    found = scrape()
    assert found["gearshift_requests_total", "f32", "fake", "s50"] == 1
    assert found["gearshift_images_total", "f32", "fake", "s50"] == 3
    assert found["gearshift_requests_total", "f32", "fake", "s100"] == 4
    assert found["gearshift_requests_total", "f32", "fake", "s25"] == 0
    s75 = {
        key[1]: value
        for key, value in found.items()
        if key[0].endswith("request_duration_seconds_bucket") and "s75" in key
    }
    assert (s75["0.025"], s75["0.05"], s75["0.1"], s75["+Inf"]) == (0, 1, 2, 2)
    assert found["gearshift_request_duration_seconds_sum", "f32", "fake", "s75"] == pytest.approx(0.12)
    assert found["gearshift_inference_duration_seconds_sum", "f32", "fake", "s75"] == pytest.approx(0.08)


def test_the_buckets_are_one_two_and_a_half_and_five_of_every_decade():
    assert BUCKETS_MS[:4] == (0.1, 0.25, 0.5, 1.0) and BUCKETS_MS[-3:] == (2500.0, 5000.0, 10_000.0)


def test_what_is_unknown_has_no_sample_and_what_is_known_is_in_base_units(scraped, helpers):
    _, nothing = scraped()
    assert not any(key[0].startswith(("gearshift_temperature", "gearshift_battery")) for key in nothing())
    sensors = helpers.Readings({"temperature_c": 61.5, "battery_charge": 0.25, "on_mains": False})
    _, scrape = scraped(sensors=sensors, goals=Goals(deadline_ms=20.0, temperature_limit_c=75.0))
    found = scrape()
    assert found["gearshift_temperature_celsius",] == 61.5 and found["gearshift_battery_charge_ratio",] == 0.25
    assert found["gearshift_on_mains",] == 0 and found["gearshift_goal_deadline_seconds",] == 0.02
    assert found["gearshift_headroom_ratio", "thermal"] == pytest.approx((75 - 61.5) / 50)
    assert ("gearshift_headroom_ratio", "power") not in found and ("gearshift_power_watts",) not in found


def test_one_subnet_is_active_and_a_hold_shows(scraped, images):
    agent, scrape = scraped()
    agent.infer(images[:1], subnet="s25")
    agent.hold("s25", 60.0, "because")
    found = scrape()
    active = {key[-1]: value for key, value in found.items() if key[0] == "gearshift_subnet_active"}
    assert active == {"s25": 1, "s50": 0, "s75": 0, "s100": 0}
    assert found["gearshift_hold_active",] == 1 and 59 < found["gearshift_hold_remaining_seconds",] <= 60
    assert found["gearshift_switches_total", "hold"] == 1
    assert found["gearshift_switch_duration_seconds_count",] == 1
    before_s = found["gearshift_switch_duration_seconds_sum",]
    agent._emit("switch", {"from": "a", "to": "b", "reason": "r", "bound": "none", "ms": 2000.0})
    assert scrape()["gearshift_switch_duration_seconds_sum",] - before_s == pytest.approx(2.0)


def test_every_counter_of_the_agent_is_exported(scraped):
    from agent.values import Counters

    agent, scrape = scraped()
    values = {field.name: 1000 + place for place, field in enumerate(msgspec.structs.fields(Counters))}
    status = msgspec.structs.replace(agent.status(), counters=Counters(**values))
    agent.status = lambda: status
    exported = {value for key, value in scrape().items() if key[0].startswith("gearshift_") and len(key) == 1}
    assert {value for name, value in values.items() if name not in ("requests", "images", "switches")} <= exported


def test_energy_is_the_tables_for_each_image_with_its_source(scraped, table, images):
    rows = tuple(msgspec.structs.replace(row, energy_j=0.5, energy_source="rapl-package") for row in table.rows)
    agent, scrape = scraped(table=msgspec.structs.replace(table, rows=rows))
    agent.infer(images[:4])
    found = scrape()
    assert found["gearshift_energy_joules_total", "f32", "fake", "rapl-package", "s100"] == pytest.approx(2.0)


def test_failures_of_engines_and_quarantine_show(scraped, backend, images):
    agent, scrape = scraped()
    backend.broken.add("s100")
    agent.infer(images[:1])
    found = scrape()
    assert found["gearshift_engine_failures_total",] == 1 and found["gearshift_requests_rescued_total",] == 1
    assert 0 < found["gearshift_engine_quarantine_seconds", "1", "f32", "fake", "s100"] <= 1


def test_names_and_help_pass_prometheus_own_linter(scraped, images, helpers):
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    sensors = helpers.Readings({"temperature_c": 61.5, "battery_charge": 0.25, "power_w": 3.0, "throttled": False})
    agent, scrape = scraped(sensors=sensors, goals=Goals(deadline_ms=20.0))
    agent.infer(images)
    agent.tick()
    ran = subprocess.run([promtool, "check", "metrics"], input=scrape.text(), capture_output=True, text=True)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


def test_a_scraper_that_wants_openmetrics_gets_it(scraped):
    _, scrape = scraped()
    reply = scrape.reply(accept="application/openmetrics-text; version=1.0.0")
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert reply.text.endswith("# EOF\n")
    assert scrape.reply().headers["content-type"].startswith("text/plain")


def test_tritons_names_stand_for_versions_in_microseconds(scraped, images):
    agent, scrape = scraped()
    agent.infer(images[:3], subnet="s50")
    agent.tallies.answered("s75@fake:f32:b1", 2, 40.0, 30.0)
    lines = scrape.text("/metrics?compat=triton").splitlines()
    found = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def of(name, version):
        return found[f'nv_inference_{name}{{model="tiny",version="{version}"}}']

    assert of("request_success", 2) == 1 and of("count", 2) == 3 and of("count", 1) == 0
    assert of("queue_duration_us", 3) == pytest.approx(40_000)
    assert of("compute_infer_duration_us", 3) == pytest.approx(30_000)
    assert of("request_duration_us", 3) == pytest.approx(70_000)
    assert found['nv_inference_pending_request_count{model="tiny"}'] == 0
    assert "# TYPE nv_inference_count counter" in lines
    assert all(name.startswith("nv_") for name in found)


def test_another_compatibility_is_refused(scraped):
    _, scrape = scraped()
    reply = scrape.reply("/metrics?compat=nagios")
    assert reply.status_code == 400 and "give triton" in reply.json()["error"]
