"""The demo: its day asks for choices, its box obeys physics, and the whole of it runs on the shipped bundle."""

import json

import msgspec
import numpy as np
import pytest

from calibration import table as tables
from cli.day import Box, compare, plan


def row(subnet, accuracy, latency_ms, net_energy_j):
    return tables.Row(
        subnet=subnet,
        backend="openvino",
        device="CPU",
        precision="f32",
        batch_size=64,
        threads=2,
        macs=int(1e6 * latency_ms),
        accuracy=accuracy,
        accuracy_low=accuracy - 0.01,
        accuracy_high=min(1.0, accuracy + 0.01),
        accuracy_source="measured: test, n=597",
        latency_p50_ms=latency_ms,
        latency_p50_low_ms=0.98 * latency_ms,
        latency_p50_high_ms=1.02 * latency_ms,
        latency_p90_ms=1.1 * latency_ms,
        latency_p99_ms=1.5 * latency_ms,
        latency_p99_low_ms=1.4 * latency_ms,
        latency_p99_high_ms=1.6 * latency_ms,
        throughput_per_s=64_000 / latency_ms,
        rounds=6,
        samples=600,
        load_ms=20.0,
        energy_j=None if net_energy_j is None else 2 * net_energy_j,
        energy_low_j=net_energy_j,
        energy_high_j=None if net_energy_j is None else 4 * net_energy_j,
        net_energy_j=net_energy_j,
        energy_source="unmeasurable" if net_energy_j is None else "modelled:spec-curve",
    )


def table(energies=(1e-4, 2e-4, 5e-4)):
    host = tables.Host(cpu="x", cores=2, memory_bytes=1, system="", python="", libraries={})
    protocol = tables.Protocol(
        rounds=6, seconds_per_cell=1, warmup=5, batch_sizes=(64,), threads=2, seed=0, created="", wall_s=1
    )
    points = zip(("s12", "s50", "s100"), (0.96, 0.98, 0.99), (2.0, 4.0, 8.0), energies, strict=True)
    return tables.Table(
        schema=1,
        bundle_name="digits",
        bundle_key="0" * 16,
        host=host,
        protocol=protocol,
        rows=tuple(row(*point) for point in points),
        idle_power_w=1.4,
        power_source="modelled:spec-curve",
    )


@pytest.fixture(scope="module")
def day():
    return plan(table(), duration_s=36.0)


def test_the_same_seed_plans_the_same_day(day):
    again = plan(table(), duration_s=36.0)
    assert again.sheets_s == day.sheets_s
    assert again.plant == day.plant


def test_each_request_is_a_sheet_of_images_within_the_day(day):
    assert len(day.trace.arrivals_s) == day.batch_size * len(day.sheets_s)
    assert 0 <= min(day.sheets_s) <= max(day.sheets_s) <= day.duration_s


def test_the_largest_subnet_alone_fails_the_day_and_the_policy_does_not(day):
    outcomes = compare(day)
    assert outcomes["largest"].time_to_empty_s is not None
    assert outcomes["smallest"].time_to_empty_s is None
    composite = outcomes["composite"]
    assert composite.time_to_empty_s is None
    assert composite.goodput > max(outcomes["largest"].goodput, outcomes["smallest"].goodput)
    assert {"thermal", "battery"} <= set(composite.bounds)


def test_hours_of_the_compressed_day(day):
    assert [day.hour(at_s) for at_s in (0.0, 9.0, 18.0, 36.0)] == ["00:00", "06:00", "12:00", "23:59"]


def test_the_box_books_what_answers_and_idling_draw(day):
    now = [0.0]
    box = Box(day, lambda: now[0])
    answered = day.table.rows[-1]
    for _ in range(20):
        now[0] += 0.25
        box.answered(answered, 640)
        values = box.read().values()
    idle_j = day.table.idle_power_w * 5.0
    assert box.energy_j == pytest.approx(idle_j + 20 * 640 * answered.net_energy_j)
    spent = 1 - values["battery_energy_j"] / day.plant.battery.energy_j
    assert spent == pytest.approx(box.energy_j / day.plant.battery.energy_j, rel=0.1)  # resistances lose a little more
    assert values["temperature_c"] > 20.0


def test_what_rests_add_is_left_out_of_the_box_and_of_the_replay_alike():
    duty = tables.Duty(
        rests_ms=(1.0, 4.0),
        latency_ms=(2.0, 3.0),
        settle_ms=1.0,
        extra_ms=0.0,
        extra_low_ms=0.0,
        extra_high_ms=0.1,
        rounds=4,
        samples=40,
        extra_net_energy_j=1e-3,
    )
    steady = table()
    resting = msgspec.structs.replace(
        steady, rows=tuple(msgspec.structs.replace(each, duty=duty) for each in steady.rows)
    )
    outcomes = [compare(plan(each, duration_s=36.0)) for each in (steady, resting)]
    for name in ("smallest", "largest"):
        assert outcomes[1][name].energy_j == pytest.approx(outcomes[0][name].energy_j)
        assert outcomes[1][name].peak_temperature_c == pytest.approx(outcomes[0][name].peak_temperature_c)


def test_without_energies_neither_battery_nor_heat_play_a_part():
    day = plan(table((None, None, None)), duration_s=36.0)
    assert day.notes
    assert day.plant.battery is None
    assert Box(day, lambda: 1.0).read().values() == {}


def test_the_whole_demo_runs_on_the_shipped_bundle(gearshift, tmp_path):
    ran = gearshift("demo", "--no-train", "--seconds", "10", "--out", str(tmp_path), "--json", str(tmp_path / "d.json"))
    assert ran.code == 0, ran.err
    told = json.loads((tmp_path / "d.json").read_text())
    smallest, largest = told["subnets"][0], told["subnets"][-1]
    assert smallest["macs"] <= 0.3 * largest["macs"]
    assert largest["accuracy"] >= 0.95
    assert all(entry["energy_j"] is None or entry["energy_source"] for entry in told["subnets"])
    assert told["requests"] > 0
    assert told["failed"] == 0
    assert {policy["name"] for policy in told["policies"]} == {"composite", "largest", "smallest"}
    assert np.isclose(sum(told["share_of_images"].values()), 1.0)
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert msgspec.json.decode((tmp_path / "table.json").read_bytes())["schema"] == tables.SCHEMA
