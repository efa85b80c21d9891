"""Cutting batches, the memory budget, what is thrown out first, and what the cache of artifacts lacks."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.chunks import plan_chunks
from agent.loader import USEFUL
from agent.pool import Active, EnginePool
from agent.resident import engine_key


def brute_force(images: int, cost: dict[int, float]) -> float:
    """Least total cost over every multiset of batch sizes that covers the images."""
    if images <= 0:
        return 0.0
    return min(price + brute_force(images - size, cost) for size, price in cost.items())


@given(
    st.integers(1, 12),
    st.dictionaries(st.integers(1, 8), st.floats(0.1, 50.0), min_size=1, max_size=3),
)
def test_a_plan_covers_the_batch_at_least_cost_and_pads_only_the_last_chunk(images, cost):
    plan = plan_chunks(images, cost)
    assert set(plan.chunks) <= set(cost)
    assert sum(plan.chunks) >= images > sum(plan.chunks) - min(plan.chunks)
    assert plan.expected_ms == pytest.approx(brute_force(images, cost))
    assert sum(cost[size] for size in plan.chunks) == pytest.approx(plan.expected_ms)


def test_a_plan_for_a_huge_batch_is_quick():
    assert plan_chunks(100_000, {1: 1.0, 8: 4.0}).expected_ms == 50_000.0


@pytest.fixture
def make_pool(bundle, backend, helpers):
    """Pools of engines of 100 bytes each, with their events."""
    made = []

    def make(budget):
        backend.memory = dict.fromkeys(helpers.LADDER, 100)
        table = helpers.make_table(bundle, memory_bytes=100)
        events = []
        pool = EnginePool(
            bundle,
            table,
            {"fake": backend},
            memory_budget_bytes=budget,
            on_event=lambda name, detail: events.append((name, detail.get("subnet"))),
        )
        made.append(pool)
        keys = {row.subnet: engine_key(row) for row in table.rows}
        rows = {row.subnet: row for row in table.rows}

        def use(name):
            resident = pool.request(keys[name]).result(10)
            return pool.activate(
                Active(resident=resident, row=rows[name], point=rows[name].point, reason="", bound="none")
            )

        return pool, keys, use, events

    yield make
    for pool in made:
        pool.close()


def resident_names(pool) -> set[str]:
    return {resident.key.subnet for resident in pool.residents()}


def test_the_farthest_engine_on_the_ladder_leaves_first_and_never_the_current_one(make_pool):
    pool, keys, use, events = make_pool(300)
    use("s100")
    for name in ("s25", "s75"):
        pool.request(keys[name]).result(10)
    pool.request(keys["s50"]).result(10)
    assert resident_names(pool) == {"s100", "s75", "s50"}
    assert ("engine_evicted", "s25") in events


def test_the_safe_choice_leaves_last(make_pool):
    pool, keys, use, _ = make_pool(300)
    pool.keeper = keys["s25"]
    use("s100")
    for name in ("s25", "s75", "s50"):
        pool.request(keys[name]).result(10)
    assert resident_names(pool) == {"s100", "s25", "s50"}


def test_prefetching_stops_where_it_would_push_out_what_is_nearer(make_pool):
    pool, keys, use, _ = make_pool(200)
    use("s100")
    pool.prefetch([keys["s75"], keys["s50"], keys["s25"]])
    pool.request(keys["s75"]).result(10)
    barrier = threading.Event()
    pool._loader.submit(barrier.set, urgency=USEFUL)
    assert barrier.wait(10)
    assert resident_names(pool) == {"s100", "s75"}


def test_an_engine_that_does_not_fit_beside_the_current_one_is_refused(make_pool):
    pool, keys, use, _ = make_pool(150)
    use("s100")
    with pytest.raises(RuntimeError, match="does not fit the memory budget"):
        pool.request(keys["s25"]).result(10)
    assert resident_names(pool) == {"s100"}


def test_an_engine_larger_than_measured_before_makes_others_leave(make_pool, backend):
    pool, keys, use, events = make_pool(300)
    use("s100")
    pool.request(keys["s75"]).result(10)
    backend.memory["s50"] = 200
    pool.request(keys["s50"]).result(10)
    assert resident_names(pool) == {"s100", "s50"}
    assert ("engine_evicted", "s75") in events


def test_an_engine_is_loaded_once_however_many_ask(make_pool, backend):
    pool, keys, _, _ = make_pool(None)
    backend.loading.clear()
    futures = [pool.request(keys["s50"]) for _ in range(5)]
    backend.loading.set()
    assert len({id(future.result(10)) for future in futures}) == 1
    assert backend.loaded == ["s50"]


def test_an_engine_that_has_left_cannot_become_current(make_pool):
    pool, keys, use, _ = make_pool(None)
    use("s100")
    gone = pool.request(keys["s50"]).result(10)
    pool.drop(keys["s50"])
    active = Active(resident=gone, row=pool.current.row, point="s50", reason="", bound="none")
    assert not pool.activate(active)
    assert pool.current.resident.key == keys["s100"]


def test_an_engine_that_requests_wait_for_stays_until_they_are_answered(make_pool):
    pool, keys, use, _ = make_pool(200)
    use("s100")
    waited_for = pool.request(keys["s25"]).result(10)
    give_back = pool.lease(waited_for)
    loading = pool.request(keys["s75"])
    with pytest.raises(TimeoutError):
        loading.result(0.2)
    assert resident_names(pool) == {"s100", "s25"}
    give_back()
    assert loading.result(10).key == keys["s75"]
    assert resident_names(pool) == {"s100", "s75"}
    assert pool.lease(waited_for) is None


def test_whoever_is_called_back_gets_the_engine_before_another_can_push_it_out(make_pool):
    pool, keys, use, _ = make_pool(200)
    use("s100")
    leases = []
    first = pool.request(keys["s25"])
    first.add_done_callback(lambda done: leases.append(pool.lease(done.result())))
    second = pool.request(keys["s50"])
    assert first.result(10).key == keys["s25"] and leases[0] is not None
    leases[0]()
    assert second.result(10).key == keys["s50"]


def test_what_is_wanted_is_loaded_before_what_may_be_useful(make_pool, backend):
    pool, keys, use, _ = make_pool(None)
    use("s100")
    backend.loading.clear()
    pool.prefetch([keys["s75"], keys["s50"], keys["s25"]])
    wanted = [pool.request(keys["s25"])]
    backend.loading.set()
    wanted[0].result(10)
    for name in ("s75", "s50"):
        pool.request(keys[name]).result(10)
    assert backend.loaded.index("s25") < backend.loaded.index("s50")


@pytest.fixture
def make_real_pool(openvino_bundle, helpers, tmp_path):
    """Pools of real engines with an empty cache, and their events."""
    made = []

    def make():
        from backends.openvino import OpenVINOBackend

        table, events = helpers.make_table(openvino_bundle, backend="openvino"), []
        pool = EnginePool(
            openvino_bundle,
            table,
            {"openvino": OpenVINOBackend(tmp_path / "cache")},
            on_event=lambda name, detail: events.append((name, detail["subnet"])),
        )
        made.append(pool)
        return pool, {key.subnet: key for key in pool.keys}, events

    yield make
    for pool in made:
        pool.close()


def test_what_the_cache_lacks_is_built_beforehand_and_then_only_loaded(make_real_pool, helpers, tmp_path):
    pool, keys, events = make_real_pool()
    pool.prepare()
    assert events == [("engine_built", name) for name in helpers.LADDER]
    again, keys, events = make_real_pool()
    again.prepare()
    for key in keys.values():
        again.request(key).result(60)
    assert [name for name, _ in events] == ["engine_loaded"] * 4


def test_an_artifact_that_is_damaged_later_is_built_again_and_told(make_real_pool, tmp_path):
    pool, keys, events = make_real_pool()
    pool.prepare()
    events.clear()
    for blob in (tmp_path / "cache").rglob("compiled.blob"):
        blob.write_bytes(b"damaged")
    resident = pool.request(keys["s50"]).result(60)
    assert events == [("engine_built", "s50"), ("engine_loaded", "s50")]
    ones = np.ones((1, 1, 4, 4), np.float32)
    np.testing.assert_allclose(resident.infer(ones)[0], [32.0, 64.0, 96.0])  # 16 ones, times 2, times 1 to 3


def test_an_artifact_that_cannot_be_built_is_told_and_not_tried_again_until_it_is_wanted(make_pool, backend):
    pool, keys, use, events = make_pool(None)
    build, tried = backend.build, []

    def failing(bundle, request):
        tried.append(request.subnet)
        if request.subnet == "s50" and len(tried) < 6:
            raise RuntimeError("no compiler")
        return build(bundle, request)

    backend.build = failing
    pool.prepare()
    assert events == [("engine_unbuilt", "s50")]
    use("s100")
    pool.prefetch([keys["s50"], keys["s25"]])
    pool.request(keys["s25"]).result(10)
    assert tried == ["s25", "s50", "s75", "s100"]
    with pytest.raises(RuntimeError, match="no compiler"):
        pool.request(keys["s50"]).result(10)
    assert pool.request(keys["s50"]).result(10).key == keys["s50"]


def test_an_engine_given_up_is_never_waited_for(make_pool, backend):
    pool, keys, use, _ = make_pool(None)
    use("s100")
    backend.blocking = threading.Event()
    hung = pool.request(keys["s50"]).result(10)
    inside = threading.Thread(target=lambda: hung.infer(np.ones((1, 1, 4, 4), np.float32)))
    inside.start()
    assert backend.entered.wait(10)
    hung.abandon()
    pool.drop(keys["s50"])
    assert str(hung.probe()) == "it hangs"
    assert pool.request(keys["s25"]).result(10).key == keys["s25"]  # the loader is not stuck behind it
    pool.close()
    backend.blocking.set()
    inside.join(10)
    assert "s50" not in backend.closed
