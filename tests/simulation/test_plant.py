import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.battery import Battery, BatteryState, read_tables
from simulation.plant import Plant, Thermal, Throttle
from subnets.errors import InputError


def test_one_long_thermal_step_equals_the_closed_form():
    thermal = Thermal(resistance_c_per_w=5.0, capacity_j_per_c=80.0)
    expected = 20.0 + 5.0 * 6.0 * (1.0 - math.exp(-600.0 / 400.0))  # charging curve of an RC from ambient
    assert thermal.step(20.0, 6.0, 20.0, 600.0) == pytest.approx(expected, rel=1e-12)


def test_two_nodes_follow_their_differential_equations():
    thermal = Thermal(die_resistance_c_per_w=1.5, die_capacity_j_per_c=4.0)
    die, case, small = 30.0, 22.0, 1e-3  # Euler steps, computed apart from the closed form
    for _ in range(20_000):
        flow = (die - case) / 1.5
        die, case = die + small * (5.0 - flow) / 4.0, case + small * (flow - (case - 25.0) / 6.0) / 100.0
    assert thermal.step_both(30.0, 22.0, 5.0, 25.0, 20.0) == pytest.approx((die, case), abs=2e-3)
    settled = thermal.step_both(30.0, 22.0, 5.0, 25.0, 1e5)
    assert settled == pytest.approx((25.0 + 5.0 * 7.5, 25.0 + 5.0 * 6.0))


def test_a_die_heats_before_its_case_and_is_what_the_plant_shows():
    plant = Plant(thermal=Thermal(die_resistance_c_per_w=2.0, die_capacity_j_per_c=2.0))
    state = plant.step(plant.start(25.0), 5.0, 10.0)
    assert state.case_c is not None and state.temperature_c > state.case_c + 8.0
    assert plant.step(state, 5.0, 10.0).case_c > state.case_c


@given(st.integers(1, 40), st.floats(0.0, 20.0), st.floats(-10.0, 90.0))
def test_many_short_thermal_steps_equal_one_long_step(parts, power_w, start_c):
    thermal = Thermal()
    temperature = start_c
    for _ in range(parts):
        temperature = thermal.step(temperature, power_w, 25.0, 300.0 / parts)
    assert temperature == pytest.approx(thermal.step(start_c, power_w, 25.0, 300.0), abs=1e-8)


def test_the_clock_falls_above_the_trip_holds_between_and_rises_below():
    throttle = Throttle(trip_c=80.0, hysteresis_c=5.0, rate_per_s=0.1, min_frequency=0.4, memory_share=0.25)
    assert throttle.step(1.0, 80.5, 2.0) == pytest.approx(0.8)
    assert throttle.step(0.45, 90.0, 1.0) == 0.4
    assert throttle.step(0.6, 77.0, 1.0) == 0.6
    assert throttle.step(0.6, 74.0, 1.0) == pytest.approx(0.7)
    assert throttle.slowdown(0.5) == pytest.approx(0.25 + 0.75 * 2.0)


def test_the_current_delivers_exactly_the_asked_power_at_the_terminals():
    battery = Battery(charges=(0.0, 1.0), ocv_v=(3.9999, 4.0), r0_ohm=0.1, cutoff_v=1.0)
    after = battery.step(BatteryState(1.0), 7.5, 1.0)
    # I^2 * 0.1 - 4 I + 7.5 = 0 has the smaller root 20 - sqrt(400 - 75)
    assert after.current_a == pytest.approx(20.0 - math.sqrt(325.0), rel=1e-9)
    assert (4.0 - 0.1 * after.current_a) * after.current_a == pytest.approx(7.5)
    assert after.charge == pytest.approx(1.0 - after.current_a / (3600.0 * battery.capacity_ah))


def test_stored_energy_falls_by_what_was_delivered_and_lost_in_the_resistances():
    battery = Battery()
    state = battery.start()
    lost = 0.0
    for _ in range(3600):
        before = state
        state = battery.step(state, 6.0, 1.0)
        lost += state.current_a * (battery.r0_ohm * state.current_a + before.relaxation_v)
    assert battery.energy_j - battery.stored_j(state.charge) == pytest.approx(6.0 * 3600.0 + lost, rel=1e-4)


def test_energy_is_the_area_under_the_voltage_curve():
    battery = Battery(capacity_ah=2.0, charges=(0.0, 0.5, 1.0), ocv_v=(3.0, 3.6, 4.2))
    assert battery.energy_j == pytest.approx(2.0 * 3600.0 * 3.6)
    assert battery.stored_j(0.25) == pytest.approx(2.0 * 3600.0 * 0.25 * (3.0 + 3.3) / 2.0)


def test_a_scaled_battery_holds_the_asked_energy_and_lasts_as_long_at_scaled_power():
    small, large = Battery.of_energy(3600.0), Battery.of_energy(36000.0)
    assert large.energy_j == pytest.approx(36000.0)
    a, b = small.start(), large.start()
    for _ in range(100):
        a, b = small.step(a, 1.0, 10.0), large.step(b, 10.0, 10.0)
    assert a.charge == pytest.approx(b.charge, rel=1e-9)


def test_too_much_power_cuts_off_and_charging_brings_it_back_at_the_restart_charge():
    battery = Battery(initial_charge=0.02, restart_charge=0.05)
    state = battery.step(battery.start(), 1e4, 1.0)
    assert state.off and state.charge == pytest.approx(0.02)
    assert battery.step(state, 5.0, 60.0).charge == pytest.approx(0.02)  # off: delivers nothing
    steps = 0
    while state.off:
        state = battery.step(state, -20.0, 10.0)
        steps += 1
    assert 0.05 <= state.charge < 0.06 and steps > 1


def test_a_full_battery_takes_no_more():
    battery = Battery()
    state = battery.step(battery.start(), -50.0, 100.0)
    assert state.charge == 1.0 and state.current_a == 0.0


def test_mains_charge_and_harvest_offsets_the_load():
    plant = Plant(battery=Battery(initial_charge=0.5))
    start = plant.start()
    drained = plant.step(start, 5.0, 10.0)
    balanced = plant.step(start, 5.0, 10.0, harvest_w=5.0)
    charged = plant.step(start, 5.0, 10.0, on_mains=True)
    assert drained.battery.charge < balanced.battery.charge == 0.5 < charged.battery.charge


def test_what_is_not_modelled_stays_unknown():
    state = Plant().step(Plant().start(), 100.0, 1000.0)
    assert state.temperature_c is None and state.battery is None


def test_the_default_box_takes_full_power_to_its_designed_temperature(table):
    plant = Plant.for_table(table)
    powers = [row.power_w for row in table.rows]
    assert plant.thermal.step(25.0, max(powers), 25.0, 1e6) == pytest.approx(70.0)
    assert plant.thermal.resistance_c_per_w * plant.thermal.capacity_j_per_c == pytest.approx(600.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Thermal(resistance_c_per_w=0.0),
        lambda: Thermal(die_resistance_c_per_w=-1.0),
        lambda: Throttle(min_frequency=0.0),
        lambda: Battery(capacity_ah=-1.0),
        lambda: Battery(charges=(0.0, 1.0), ocv_v=(3.0,)),
        lambda: Battery(initial_charge=1.5),
        lambda: Battery.of_energy(0.0),
    ],
)
def test_impossible_parameters_are_refused(make):
    with pytest.raises(InputError):
        make()


def _write_tables(folder, ocv="0.0,3.0\n0.5,3.5\n1.0,4.0\n"):
    (folder / "x_ocv.csv").write_text("# SoC,OCV [V]\n" + ocv)
    for name, base in (("r0", 0.002), ("r1", 0.001), ("c1", 9000.0)):
        lines = [
            f"{t},{i},{soc},{base * (2 if t == 0 else 1)}" for t in (0, 50) for i in (-50, 0) for soc in (0.0, 1.0)
        ]
        (folder / f"x_{name}.csv").write_text("Temperature [degC],Current [A],SoC,X\n" + "\n".join(lines) + "\n")


def test_battery_tables_give_the_curve_and_resistances_at_the_temperature(tmp_path):
    _write_tables(tmp_path)
    battery = read_tables(tmp_path, temperature_c=25.0)
    assert battery.voltage(0.25) == pytest.approx(3.25)
    assert battery.r0_ohm == pytest.approx(0.003)  # half way between 0.004 at 0 degrees and 0.002 at 50
    assert battery.c1_f == pytest.approx(13500.0)


def test_a_damaged_battery_table_is_named_with_its_line(tmp_path):
    _write_tables(tmp_path, ocv="0.0,3.0\n0.5,oops\n1.0,4.0\n")
    with pytest.raises(InputError, match=r"x_ocv\.csv, line 3"):
        read_tables(tmp_path)
    (tmp_path / "x_r0.csv").unlink()
    _ = (tmp_path / "x_ocv.csv").write_text("# SoC,OCV [V]\n0.0,3.0\n1.0,4.0\n")
    with pytest.raises(InputError, match=r"r0\.csv"):
        read_tables(tmp_path)


def test_the_recorded_battery_tables_describe_a_lithium_cell(recorded):
    battery = read_tables(recorded / "battery")
    assert battery.voltage(0.0) == pytest.approx(3.2)  # the file's own row at charge 0
    assert 3600.0 * 100.0 * 3.2 < battery.energy_j < 3600.0 * 100.0 * 4.3
    assert 0.0 < battery.r0_ohm < 0.01
