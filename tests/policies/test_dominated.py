"""A point that another one beats in both speed and accuracy is never the default policy's choice.

What 8 bits cost and save differs from subnet to subnet: a large one in int8 may be slower than a smaller one in bf16,
and less accurate as well. Then it is a row of the table that nobody should be given.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.composite import Composite
from policies.contract import all_goals, timelines

SUBNETS = ("s25", "s50", "s75", "s100")


def dominated(row, rows):
    """Whether another row of its batch size is as fast and as accurate, and better in one of the two."""
    return any(
        other.latency_p50_ms <= row.latency_p50_ms
        and other.accuracy >= row.accuracy
        and (other.latency_p50_ms, other.accuracy) != (row.latency_p50_ms, row.accuracy)
        for other in rows
        if other.batch_size == row.batch_size
    )


@st.composite
def tables(draw, make_table, make_row):
    """Three precisions of one ladder, each with latencies and accuracies of its own, alone and in batches of four."""
    rows = []
    for precision in ("f32", "bf16", "int8"):
        for place, subnet in enumerate(SUBNETS):
            p50 = draw(st.floats(1, 20))
            accuracy = draw(st.floats(0.85, 0.99))
            for size, factor in ((1, 1.0), (4, 3.0)):
                row = (subnet, (place + 1) * 10**7, accuracy, factor * p50, 1.3 * factor * p50, 8.0)
                rows.append(make_row(*row, precision=precision, batch_size=size))
    return make_table(rows)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_default_never_gives_a_point_that_is_beaten_in_both(data, make_table, make_row):
    table = data.draw(tables(make_table, make_row))
    beaten = {row.point for row in table.rows if dominated(row, table.rows)}
    worth = [row.point for row in table.rows if row.point not in beaten and row.batch_size == 1]
    policy = Composite(data.draw(all_goals()))
    for moment, _ in data.draw(timelines(tuple(worth), most=3)):
        current = data.draw(st.none() | st.sampled_from(worth))
        decision = policy.decide(moment, table, current)
        given_out = {decision.point, *(step.point for step in decision.slack_plan)}
        assert not given_out & beaten


def test_a_large_subnet_in_int8_that_a_smaller_one_in_bf16_beats_is_left_out(make_table, make_row):
    """At any load, be it the ceiling or a step of the slack plan."""
    from policies import Conditions, Goals

    rows = [
        make_row("s50", 2 * 10**7, 0.92, 1.13, 1.4, 8.0, precision="bf16"),
        make_row("s75", 3 * 10**7, 0.91, 1.23, 1.5, 8.0, precision="int8"),
        make_row("s100", 4 * 10**7, 0.95, 2.2, 2.6, 8.0, precision="bf16"),
    ]
    policy, table = Composite(Goals(deadline_ms=50.0, max_power_w=20.0)), make_table(rows)
    chosen = set()
    for rate in (1.0, 100.0, 300.0, 500.0, 700.0, 900.0):
        policy.reset()
        decision = policy.decide(Conditions(time_s=0.0, arrival_rate_hz=rate, slowdown=1.0), table, None)
        chosen |= {decision.point, *(step.point for step in decision.slack_plan)}
    assert chosen == {"s50@openvino:bf16:b1", "s100@openvino:bf16:b1"}
