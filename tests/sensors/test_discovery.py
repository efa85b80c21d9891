"""What is found on a laptop, a Jetson and a virtual machine, and what doctor says of it."""

import json
import math

import pytest
from click.testing import CliRunner

from sensors import diagnose, discover, machine, meters
from sensors.contract import check_readings
from sensors.discovery import candidates

LADDER = [
    "nvml-counter",
    "rapl-package",
    "tegra-ina3221",
    "hwmon",
    "battery-gauge",
    "nvml-power-integrated",
    "modelled:spec-curve",
]


def test_the_ladder_is_tried_in_order(virtual_machine):
    assert [rung.source for rung in candidates(virtual_machine)] == LADDER


def test_each_machine_has_the_meters_from_which_a_reading_succeeds(laptop, jetson, virtual_machine):
    assert [meter.source for meter in meters(laptop)] == ["rapl-package", "battery-gauge", "modelled:spec-curve"]
    assert [meter.source for meter in meters(jetson)] == ["tegra-ina3221", "modelled:spec-curve"]
    assert [meter.source for meter in meters(virtual_machine)] == ["modelled:spec-curve"]


def test_an_empty_machine_has_no_meter_and_only_unknowns(tmp_path):
    assert meters(tmp_path) == ()
    snapshot = discover(tmp_path).read()
    assert snapshot.readings
    assert set(snapshot.values().values()) == {None}


def test_a_snapshot_holds_every_name_that_conditions_take(laptop, jetson, virtual_machine):
    from policies.base import Conditions

    fields = set(Conditions.__struct_fields__) - {
        "time_s", "arrival_rate_hz", "queue_depth", "slowdown", "miss_rate",
    }  # fmt: skip
    for root in (laptop, jetson, virtual_machine):
        snapshot = discover(root).read()
        check_readings(snapshot.readings)
        values = snapshot.values()
        assert fields <= values.keys()
        Conditions(time_s=0.0, **{name: values[name] for name in fields})


def test_the_laptop_says_what_it_can(laptop):
    sensors = discover(laptop)
    values = sensors.read().values()
    assert values["temperature_c"] == pytest.approx(63.0)
    assert values["on_mains"] is False
    assert values["throttled"] is False
    assert values["pressure"] == 0.125
    assert values["power_w"] == 0.0  # the recorded counter stands still
    assert values["gpu_power_w"] is None


def test_the_jetsons_power_is_its_total_rail(jetson):
    assert discover(jetson).read().values()["power_w"] == pytest.approx(5.016 * 1.2)


@pytest.mark.parametrize("content", ["garbage", "", "-274000", "0", "9" * 30, "nan"])
def test_no_meter_raises_or_invents_joules_when_any_file_is_damaged(laptop, jetson, content):
    for root in (laptop, jetson):
        parts = ("powercap", "ina3221", "power_supply", "proc/stat")
        for file in [file for file in root.rglob("*") if file.is_file() and any(part in str(file) for part in parts)]:
            sound = file.read_text()
            file.write_text(content)
            rungs = [rung.meter for rung in candidates(root) if rung.meter is not None]
            before = [meter.sample() for meter in rungs]
            file.write_text(sound)
            for meter, first in zip(rungs, before, strict=True):
                energy = meter.energy(first, meter.sample())
                assert (energy.joules is None) == bool(energy.why)
                assert energy.joules is None or 0 <= energy.low_j <= energy.joules <= energy.high_j < math.inf


def test_machine_facts_come_from_the_tree(laptop, jetson, tmp_path):
    facts = machine(laptop)
    assert facts.cpu == "Intel(R) Core(TM) Ultra 7 155U"
    assert (facts.cores, facts.memory_bytes) == (2, 16318480 * 1024)
    assert machine(jetson).cpu == "NVIDIA Jetson Orin Nano Developer Kit"
    assert machine(tmp_path).cpu is None


def test_a_diagnosis_says_where_from_or_why_not(laptop):
    found = {(line.kind, line.name): line for line in diagnose(laptop, window_s=0.01)}
    charge = found["sensor", "battery_charge"]
    assert charge.ok
    assert charge.value == pytest.approx(0.606)
    assert charge.where.endswith("power_supply/BAT0")
    assert found["meter", "rapl-package"].ok
    assert not found["meter", "tegra-ina3221"].ok
    assert all(line.why for line in found.values() if not line.ok)


def test_unreadable_rapl_comes_with_the_rule_to_add(laptop, monkeypatch):
    from sensors.root import Root

    read = Root.read_bytes

    def refuse(self, relative, limit):
        if relative.endswith("energy_uj"):
            raise PermissionError(13, "Permission denied")
        return read(self, relative, limit)

    monkeypatch.setattr(Root, "read_bytes", refuse)
    rapl = next(line for line in diagnose(laptop, window_s=0.01) if line.name == "rapl-package")
    assert not rapl.ok
    assert "permission denied" in rapl.why
    assert "CVE-2020-8694" in rapl.remedy
    assert "tmpfiles.d" in rapl.remedy


def test_doctor_prints_tables_and_json(laptop, tmp_path):
    from cli.doctor import command

    done = CliRunner().invoke(command, ["--root", str(laptop)], catch_exceptions=False)
    assert done.exit_code == 0
    for words in ("Ultra 7 155U", "battery_charge", "60.6%", "rapl-package", "openvino", "15.6 GiB"):
        assert words in done.output

    target = tmp_path / "doctor.json"
    CliRunner().invoke(command, ["--root", str(laptop), "--json", str(target)], catch_exceptions=False)
    report = json.loads(target.read_text())
    assert report["machine"]["cores"] == 2
    assert {line["name"] for line in report["readings"] if line["kind"] == "meter"} == set(LADDER)
    assert {"name", "ok", "why", "precisions"} == set(report["backends"][0])


def test_doctor_refuses_a_root_that_is_not_there():
    from cli.doctor import command

    done = CliRunner().invoke(command, ["--root", "/no/such/folder"])
    assert done.exit_code == 2
    assert "does not exist" in done.output
