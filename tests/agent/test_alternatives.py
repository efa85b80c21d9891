"""What the other operating points would have cost, and what spoke against them."""

import msgspec
import pytest

from agent.alternatives import alternatives
from policies.base import Conditions, Goals
from policies.throughput import Throughput

LATENCY_MS = {"s25": 1.0, "s50": 2.0, "s75": 3.0, "s100": 4.0}


@pytest.fixture
def singles(bundle, helpers):
    """One row a subnet, whose latency never varies: 1, 2, 3 and 4 ms."""
    return helpers.make_table(bundle, batch_sizes=(1,))


@pytest.fixture
def powered(singles):
    """The same with 1 W idle and 10 mJ above it for every millisecond of work: 11 W while any of them works."""
    rows = tuple(
        msgspec.structs.replace(
            row,
            power_w=11.0,
            energy_j=0.011 * row.latency_p50_ms,
            net_energy_j=0.010 * row.latency_p50_ms,
            energy_source="rapl-package",
        )
        for row in singles.rows
    )
    return msgspec.structs.replace(singles, rows=rows, idle_power_w=1.0)


def told(table, goals, decided, applied="", bound="none", **conditions):
    decided = f"{decided}@fake:f32:b1"
    found = alternatives(
        table,
        goals,
        Conditions(time_s=0.0, **conditions),
        decided,
        f"{applied}@fake:f32:b1" if applied else decided,
        bound,
    )
    assert [one.accuracy for one in found] == sorted((one.accuracy for one in found), reverse=True)
    return {one.subnet: one for one in found}


def queue_ms(service_ms, rate_hz):
    """The mean wait before a server whose work takes always the same time (M/D/1): rho / (1 - rho) * service / 2."""
    rho = service_ms / 1000 * rate_hz
    return rho / (1 - rho) * service_ms / 2


def test_latency_is_service_and_wait_at_the_present_rate_and_slowdown(singles):
    found = told(singles, Goals(), "s100", arrival_rate_hz=100.0, slowdown=1.5)
    for subnet, one in found.items():
        service_ms = 1.5 * LATENCY_MS[subnet]
        assert one.wait_ms == pytest.approx(queue_ms(service_ms, 100.0))
        assert one.latency_ms == pytest.approx(service_ms + queue_ms(service_ms, 100.0))
        assert one.busy == pytest.approx(service_ms / 10)
    still = told(singles, Goals(), "s100")
    assert (still["s75"].latency_ms, still["s75"].wait_ms, still["s75"].busy) == (3.0, 0.0, None)


def test_what_would_miss_the_deadline_says_by_how_much(singles):
    found = told(singles, Goals(deadline_ms=4.5), "s75", bound="deadline", arrival_rate_hz=100.0)
    assert (found["s100"].verdict, found["s100"].why) == ("deadline", "needs 4 ms + 1.33 ms wait of 4.5 ms")
    assert (found["s75"].role, found["s75"].verdict, found["s75"].why) == ("applied", "", "in use")
    assert (found["s50"].verdict, found["s50"].why) == ("less accurate", "5.00 points less accurate, would save 1 ms")


def test_what_cannot_keep_up_has_no_latency(singles):
    found = told(singles, Goals(deadline_ms=50.0), "s75", bound="throughput", arrival_rate_hz=300.0)
    assert (found["s100"].latency_ms, found["s100"].wait_ms, found["s100"].verdict) == (None, None, "throughput")
    assert found["s100"].why == "would be 120 % busy at 300/s"


def test_power_cap_and_least_accuracy_are_named(powered):
    rows = tuple(msgspec.structs.replace(row, power_w=row.latency_p50_ms) for row in powered.rows)
    table = msgspec.structs.replace(powered, rows=rows)
    found = told(table, Goals(max_power_w=3.5, min_accuracy=0.82), "s75", bound="power")
    assert (found["s100"].verdict, found["s100"].why) == ("power", "draws 4.00 W at work, 3.5 W allowed")
    assert (found["s25"].verdict, found["s25"].why) == ("accuracy", "below the 82 % asked for")


def test_a_battery_that_has_to_last_says_how_long_each_point_would(powered):
    """3 W are drawn with s50, of which 2 W at 100/s are inference's; 3,240 J above the reserve have to last 1,000 s."""
    found = told(
        powered,
        Goals(last_until_s=1000.0, battery_capacity_j=7200.0, reserve=0.05),
        "s50",
        bound="battery",
        arrival_rate_hz=100.0,
        battery_charge=0.5,
        battery_power_w=3.0,
        on_mains=False,
    )
    assert found["s50"].lasts_s == pytest.approx(3240 / 3) and found["s25"].lasts_s == pytest.approx(3240 / 2)
    assert found["s100"].lasts_s == pytest.approx(3240 / 5)
    assert found["s100"].verdict == found["s75"].verdict == "battery"
    assert found["s75"].why == "draws 4.00 W, 50 % left for 17 min allows 3.2 W"
    assert found["s50"].verdict == "" and found["s25"].verdict == "less accurate"
    assert found["s50"].mean_w == pytest.approx(1 + 2) and found["s50"].work_w == 11.0


@pytest.mark.parametrize(("bound", "word"), [("thermal", "heat"), ("battery", "the battery"), ("power", "power")])
def test_what_a_policy_foresaw_is_repeated_from_its_word(powered, bound, word):
    rows = tuple(msgspec.structs.replace(row, power_w=row.latency_p50_ms) for row in powered.rows)
    found = told(msgspec.structs.replace(powered, rows=rows), Goals(), "s50", bound=bound)
    assert found["s75"].verdict == bound
    assert found["s75"].why == f"draws 1.00 W more at work; {word} is what binds"
    assert found["s25"].verdict == "less accurate"


def test_waiting_is_told_as_the_policys_word(singles):
    found = told(singles, Goals(), "s50", bound="dwell")
    assert found["s100"].verdict == "dwell" and "'dwell'" in found["s100"].why


def test_a_hold_shows_what_was_decided_beside_what_was_applied(singles):
    found = told(singles, Goals(), "s100", applied="s25")
    assert (found["s100"].role, found["s100"].why) == ("decided", "what the policy chose")
    assert (found["s25"].role, found["s25"].why) == (
        "applied",
        "in use instead; 15.00 points less accurate, would save 3 ms",
    )


def test_equally_accurate_points_are_no_better(singles):
    rows = tuple(msgspec.structs.replace(row, accuracy=0.9) for row in singles.rows)
    found = told(msgspec.structs.replace(singles, rows=rows), Goals(), "s50")
    assert {name: one.verdict for name, one in found.items() if not one.role} == dict.fromkeys(
        ("s25", "s75", "s100"), "no better"
    )
    assert found["s25"].why == "as accurate as s50, and quicker" and found["s75"].why.endswith("and slower")


@pytest.mark.parametrize("rate", [10.0, 60.0, 90.0, 150.0, 240.0])
def test_the_best_point_that_nothing_speaks_against_is_what_the_throughput_policy_takes(singles, rate):
    goals, conditions = Goals(deadline_ms=5.0), Conditions(time_s=0.0, arrival_rate_hz=rate)
    decision = Throughput(goals, rho_max=0.999).decide(conditions, singles, None)
    found = alternatives(singles, goals, conditions, "none", None, decision.bound)
    assert next(one for one in found if not one.verdict).point == decision.point
