"""The budget, the mix, and what happens when too little is known."""

from itertools import pairwise

import msgspec
import pytest

from policies import Conditions, Goals
from policies.battery import Battery
from subnets.errors import InputError

# at 50/s the rungs draw 3 W idle plus 50 * (p50 * net power): 3.40, 4.00, 4.95 and 6.50 W
WATTS = {"s25": 3.4, "s50": 4.0, "s75": 4.95, "s100": 6.5}
HOUR = Goals(last_until_s=3600, reserve=0.0)


def budget(watts, **more):
    """Conditions whose energy allows so many watts over the hour."""
    return Conditions(time_s=0, battery_energy_j=watts * 3600, **{"arrival_rate_hz": 50.0, **more})


def subnet(decision):
    return decision.point.partition("@")[0]


@pytest.mark.parametrize(("watts", "expected"), [(6.6, "s100"), (6.4, "s75"), (4.9, "s50"), (3.9, "s25"), (1.0, "s25")])
def test_the_most_accurate_rung_within_the_power_budget_is_chosen(table, watts, expected):
    decision = Battery(HOUR, mix_s=0).decide(budget(watts), table, None)
    assert subnet(decision) == expected
    assert decision.bound == ("none" if expected == "s100" else "battery")


def test_a_budget_that_nothing_keeps_is_best_effort_and_urgent(table):
    decision = Battery(HOUR).decide(budget(3.3), table, None)
    assert subnet(decision) == "s25"
    assert decision.urgent
    assert "best effort" in decision.reason


def test_charge_times_capacity_is_the_energy_and_the_reserve_is_kept(table):
    goals = Goals(last_until_s=3600, reserve=0.2, battery_capacity_j=40_000)
    # (0.6 - 0.2) * 40 kJ over an hour is 4.4 W
    moment = Conditions(time_s=0, battery_charge=0.6, arrival_rate_hz=40.0)
    decision = Battery(goals, mix_s=0).decide(moment, table, None)
    assert subnet(decision) == "s50"
    assert decision.reason == "battery: 60 % left for 1.0 h allows 4.4 W; s75 needs 4.6 W at 40.0/s"


def test_capacity_is_told_by_energy_over_charge(table):
    goals = Goals(last_until_s=3600, reserve=0.25)
    # 30 kJ at 75 % is a capacity of 40 kJ: 30 - 10 kJ over an hour is 5.6 W
    moment = Conditions(time_s=0, battery_charge=0.75, battery_energy_j=30_000, arrival_rate_hz=50.0)
    assert subnet(Battery(goals, mix_s=0).decide(moment, table, None)) == "s75"


@pytest.mark.parametrize(
    ("goals", "conditions"),
    [
        (HOUR, {"battery_energy_j": 1.0, "on_mains": True}),
        (HOUR, {}),
        (HOUR, {"battery_charge": 0.5}),  # capacity unknown
        (HOUR, {"battery_energy_j": 1.0, "arrival_rate_hz": None}),
        (Goals(), {"battery_energy_j": 1.0}),  # nothing to last until
    ],
)
def test_what_cannot_be_said_does_not_bind(table, goals, conditions):
    decision = Battery(goals).decide(Conditions(time_s=0, **{"arrival_rate_hz": 50.0, **conditions}), table, None)
    assert (subnet(decision), decision.bound) == ("s100", "none")


@pytest.mark.parametrize(
    "conditions", [{"time_s": 4000.0, "battery_energy_j": 1e6}, {"time_s": 0.0, "battery_charge": 0.04}]
)
def test_past_the_time_or_at_the_reserve_the_smallest_is_best_effort(table, conditions):
    goals = Goals(last_until_s=3600, reserve=0.05)
    decision = Battery(goals).decide(Conditions(arrival_rate_hz=50.0, **conditions), table, None)
    assert subnet(decision) == "s25"
    assert "best effort" in decision.reason
    assert decision.urgent


def test_what_the_rest_of_the_device_draws_is_learnt_from_the_battery(table):
    # 8.5 W measured with s100 at 50/s (3.5 W of inference): the base is 5 W, not the 3 W idle of the table
    policy = Battery(HOUR, mix_s=0)
    point = "s100@openvino:bf16:b1"
    assert subnet(policy.decide(budget(7.0, battery_power_w=8.5), table, point)) == "s75"  # 5 + 1.95 W
    assert subnet(policy.decide(budget(6.9, battery_power_w=8.5), table, point)) == "s50"
    assert policy.state()["budget"]["base_w"]["value"] == pytest.approx(5.0)


def test_what_is_dropped_or_batched_is_not_paid_for(table):
    # s100 should draw 3.5 W above idle, the meter tells half of that; so 4.8 W carry it, which else only carry s50
    point = "s100@openvino:bf16:b1"
    assert subnet(Battery(HOUR, mix_s=0).decide(budget(4.8), table, point)) == "s50"
    assert subnet(Battery(HOUR, mix_s=0).decide(budget(4.8, power_w=4.75), table, point)) == "s100"
    assert subnet(Battery(HOUR, mix_s=0).decide(budget(4.7, power_w=4.75), table, point)) == "s75"
    # more than the table says is drawn by others, not by answers
    assert subnet(Battery(HOUR, mix_s=0).decide(budget(4.8, power_w=20.0), table, point)) == "s50"


@pytest.mark.parametrize("conditions", [{"on_mains": True, "battery_power_w": 8.5}, {"battery_power_w": -8.5}])
def test_nothing_is_learnt_while_charging(table, conditions):
    policy = Battery(HOUR)
    policy.decide(budget(7.0, **conditions), table, "s100@openvino:bf16:b1")
    assert policy.state()["budget"]["base_w"]["value"] is None


def test_without_energies_processor_seconds_rank_the_rungs(make_table, make_row):
    rungs = [("s25", 1, 0.90, 2.0, 3.0, 7.0), ("s100", 4, 0.95, 10.0, 13.0, 10.0)]
    blind = {"power_w": None, "energy_j": None, "net_energy_j": None}
    table = make_table([msgspec.structs.replace(make_row(*rung), **blind) for rung in rungs])
    policy, point = Battery(HOUR, mix_s=0), "s100@openvino:bf16:b1"
    assert subnet(policy.decide(budget(5.0), table, point)) == "s100"  # nothing measured, nothing known
    # 6 W for 50/s * 20 ms = 1 processor: s25 would take 0.2 processors and 1.2 W
    decision = policy.decide(budget(5.0, battery_power_w=6.0), table, point)
    assert subnet(decision) == "s25"
    assert "allows 5.0 W; s100 needs 6.0 W" in decision.reason


def test_with_neither_energies_nor_processor_seconds_it_says_so(make_table, make_row):
    blind = {"power_w": None, "energy_j": None, "net_energy_j": None, "cpu_s": None}
    table = make_table([msgspec.structs.replace(make_row("s25", 1, 0.9, 2.0, 3.0, 7.0), **blind)])
    assert "energy per image unknown" in Battery(HOUR).decide(budget(1.0), table, None).reason


def test_a_device_that_cannot_keep_up_draws_no_more_than_when_busy(table):
    # at 1000/s every rung is busy all the time: s100 draws 10 W, not 3 + 1000 * 0.07 W
    assert subnet(Battery(HOUR, mix_s=0).decide(budget(10.1, arrival_rate_hz=1000.0), table, None)) == "s100"


def drain(policy, table, watts, *, goals=HOUR, quantum_j=0.0, tick_s=1.0):
    """An hour at 50/s on an ideal battery: what is left, mean accuracy, and the rungs by second."""
    energy, current, used, accuracy, now = watts * 3600.0, None, [], 0.0, 0.0
    rows = {row.point: row for row in table.rows}
    while now < 3600:
        shown = energy if not quantum_j else int(energy / quantum_j) * quantum_j
        moment = Conditions(time_s=now, battery_energy_j=shown, arrival_rate_hz=50.0)
        current = policy.decide(moment, table, current).point
        used.append(current.partition("@")[0])
        accuracy += rows[current].accuracy * tick_s / 3600
        energy -= WATTS[used[-1]] * tick_s
        now += tick_s
    return energy, accuracy, used


@pytest.mark.parametrize("watts", [3.6, 4.2, 4.8, 5.3, 6.2])
def test_mixing_spends_the_battery_to_the_end_at_the_hulls_accuracy(table, watts):
    left, accuracy, _ = drain(Battery(HOUR), table, watts)
    names = list(WATTS)
    low = [name for name in names if WATTS[name] <= watts][-1]
    high = names[names.index(low) + 1]
    share = (watts - WATTS[low]) / (WATTS[high] - WATTS[low])
    rows = {row.subnet: row.accuracy for row in table.rows}
    best = (1 - share) * rows[low] + share * rows[high]
    assert -1 <= left < 0.02 * watts * 3600
    assert accuracy == pytest.approx(best, abs=0.0005)


def test_mixed_rungs_are_kept_for_a_while(table):
    _, _, used = drain(Battery(HOUR, mix_s=60), table, 4.5)
    changes = [t for t in range(1, len(used)) if used[t] != used[t - 1]]
    stays = [b - a for a, b in pairwise(changes)]
    assert set(used) == {"s50", "s75"}
    assert min(stays[:-1]) >= 59  # a tick is lost to counting in whole seconds
    assert len(changes) > 10


def test_a_gauge_in_steps_of_one_percent_still_lasts(table):
    left, _, used = drain(Battery(HOUR), table, 4.5, quantum_j=0.01 * 4.5 * 3600)
    changes = sum(a != b for a, b in pairwise(used))
    assert left >= -0.01 * 4.5 * 3600
    assert changes < 120


def test_a_negative_stay_is_refused():
    with pytest.raises(InputError, match=r"mix_s is -1"):
        Battery(HOUR, mix_s=-1.0)


def test_each_answer_is_given_the_same_energy_so_a_quiet_hour_saves_for_a_busy_one(table):
    """Ten minutes busy, ten quiet, in turns: the rung does not follow the load, since the price of energy is one."""
    goals, current, energy, used = Goals(last_until_s=7200.0, reserve=0.0), None, 4.2 * 7200.0, []
    policy = Battery(goals)
    for t in range(7200):
        rate = 80.0 if (t // 600) % 2 == 0 else 20.0
        moment = Conditions(time_s=float(t), battery_energy_j=energy, arrival_rate_hz=rate)
        current = policy.decide(moment, table, current).point
        row = table.row(current)
        energy -= 3.0 + rate * row.net_energy_j
        used.append((rate, row.accuracy))
    assert -1 <= energy < 0.02 * 4.2 * 7200
    late = used[1800:]
    busy, quiet = ([accuracy for rate, accuracy in late if rate == wanted] for wanted in (80.0, 20.0))
    assert abs(sum(busy) / len(busy) - sum(quiet) / len(quiet)) < 0.01


def test_a_gauge_that_falls_silent_is_bridged(table):
    policy, point = Battery(HOUR, mix_s=0), "s50@openvino:bf16:b1"
    assert subnet(policy.decide(budget(4.1), table, point)) == "s50"
    silent = [Conditions(time_s=float(t), arrival_rate_hz=50.0) for t in range(1, 1800)]
    assert {subnet(policy.decide(moment, table, point)) for moment in silent} == {"s50"}
    late = Conditions(time_s=0.0 + 2 * 3600, arrival_rate_hz=50.0)
    assert policy.decide(late, table, point).bound == "none"  # too long ago to say anything


def test_the_sun_counts_as_less_base_power_but_never_as_less_than_none(table):
    # 2 W drawn from the battery with s50 at 50/s, which takes 1 W: 2 W of base and harvest together instead of 3 W
    policy, point = Battery(HOUR, mix_s=0), "s50@openvino:bf16:b1"
    moment = Conditions(
        time_s=0.0, battery_energy_j=4.0 * 3600, battery_power_w=2.0, arrival_rate_hz=50.0, on_mains=False
    )
    assert subnet(policy.decide(moment, table, point)) == "s75"  # 1 + 1.95 W
    policy.reset()
    policy.decide(msgspec.structs.replace(moment, battery_power_w=-5.0), table, point)
    assert policy.state()["budget"]["base_w"]["value"] == pytest.approx(-6.0)
    decision = policy.decide(msgspec.structs.replace(moment, battery_energy_j=0.9 * 3600), table, point)
    assert subnet(decision) == "s25"  # 0.9 W for answers: no more, however the sun shines now
