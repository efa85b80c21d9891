import gzip
import math

import numpy as np
import pytest

from simulation.generate import KINDS, generated, help_text
from simulation.trace import Trace, load, load_all, overlay, summary, to_json
from subnets.errors import InputError


def _file(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_generator_repeats_by_seed_and_differs_by_seed(kind):
    hours = 2.0 if KINDS[kind].summary.startswith("no arrivals") else 0.2
    a, b, c = (generated(f"{kind}:hours={hours},seed={seed}") for seed in (3, 3, 4))
    assert to_json(a) == to_json(b)
    field = "times_s" if hours == 2.0 else "arrivals_s"
    drawn, other = getattr(a, field), getattr(c, field)
    assert len(drawn) > 5 and not np.array_equal(drawn, other)
    assert (np.diff(a.arrivals_s) >= 0).all() and a.duration_s == hours * 3600.0
    assert kind in help_text()


def test_a_camera_comes_at_even_times():
    gaps = np.diff(generated("camera:rate=25,hours=0.1,seed=2").arrivals_s)
    assert len(gaps) in (8999, 8998) and gaps == pytest.approx(0.04)


def test_a_square_environment_alternates_between_its_two_values():
    trace = generated("plug:first_s=100,then_s=50,jitter=0,hours=0.1")
    assert trace.times_s.tolist() == [0.0, 100.0, 150.0, 250.0, 300.0]
    assert trace.on_mains.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0] and len(trace.arrivals_s) == 0


def test_a_poisson_trace_has_its_rate_and_burstiness():
    facts = summary(generated("poisson:rate=5,hours=2,seed=1"))
    assert facts["arrivals"] == pytest.approx(36_000, abs=5 * math.sqrt(36_000))
    assert facts["interarrival_cv2"] == pytest.approx(1.0, abs=0.05)


def test_a_gamma_trace_has_the_asked_burstiness_at_the_same_rate():
    facts = summary(generated("gamma:rate=5,cv2=6,hours=2,seed=1"))
    assert facts["interarrival_cv2"] == pytest.approx(6.0, rel=0.15)
    assert facts["rate_hz"] == pytest.approx(5.0, rel=0.1)


def test_a_ramp_has_three_quarters_of_its_arrivals_in_the_second_half():
    arrivals = generated("ramp:low=0,high=20,hours=1,seed=2").arrivals_s
    assert np.mean(arrivals > 1800.0) == pytest.approx(0.75, abs=0.02)


def test_onoff_is_silent_while_off():
    arrivals = generated("onoff:rate=10,on_s=20,off_s=40,hours=0.5,seed=2").arrivals_s
    assert len(arrivals) == pytest.approx(10 * 1800 / 3, rel=0.1)
    assert (arrivals % 60.0 <= 20.01).all()


def test_a_day_is_hottest_in_the_afternoon_and_squeezed_into_its_hours():
    trace = generated("day:hours=0.5,sun_w=8")
    hottest = trace.times_s[np.argmax(trace.ambient_c)] / trace.duration_s * 24.0
    assert hottest == pytest.approx(15.0, abs=0.2)
    assert trace.harvest_w.max() == pytest.approx(8.0) and trace.harvest_w[0] == 0.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("posson:rate=1", "did you mean 'poisson'"),
        ("poisson:rat=1", "did you mean 'rate'"),
        ("poisson:rate=fast", "option 'rate' is 'fast'"),
        ("poisson:rate=-1", "option 'rate' is '-1'"),
        ("poisson:hours=0", "hours is 0"),
        ("heat:first_s=0", "first_s is 0"),
        ("plug:jitter=1", "a share below 1"),
        ("poisson:rate=1e6,hours=24", "at most 20000000"),
        ("onoff:on_s=0", "on_s is 0"),
        ("no/such/file.csv", "no such trace file"),
    ],
)
def test_a_wrong_specification_is_refused_with_what_would_be_right(spec, message):
    with pytest.raises(InputError, match=message):
        load(spec)


def test_the_json_form_reads_back_exactly(tmp_path):
    trace = generated("day:hours=0.05,seed=9")
    path = tmp_path / "day.json"
    path.write_bytes(to_json(trace))
    again = load(str(path))
    for name in ("arrivals_s", "times_s", "ambient_c", "harvest_w", "slowdown", "on_mains"):
        assert np.array_equal(getattr(trace, name), getattr(again, name))
    assert (again.name, again.duration_s) == (trace.name, trace.duration_s)


def test_an_arrivals_csv_is_read(tmp_path):
    trace = load(_file(tmp_path, "a.csv", "arrival_s\n0.5\n0.5\n2\n"))
    assert trace.arrivals_s.tolist() == [0.5, 0.5, 2.0] and trace.duration_s == 2.0


def test_an_environment_csv_is_a_step_function(tmp_path):
    trace = load(_file(tmp_path, "e.csv", "time_s, ambient_c,on_mains\n0,20,true\n10,30,false\n"))
    at = np.array([0.0, 9.99, 10.0, 99.0])
    assert trace.environment("ambient_c", at).tolist() == [20.0, 20.0, 30.0, 30.0]
    assert trace.environment("on_mains", at).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert trace.environment("harvest_w", at) is None
    assert trace.duration_s == 20.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s\n1\n0.5\n", r"line 3: time 0\.5 s comes after 1 s"),
        ("arrival_s\n-1\n0.5\n", "line 2: time -1 s is negative; times must ascend from 0"),
        ("arrival_s\n-1\n", "line 2: time -1"),
        ("arrival_s\nnan\n", "line 2: arrival_s is 'nan'"),
        ("arrival_s\nx\n", "line 2: arrival_s is 'x'"),
        ("arrival_s\n", "holds no arrivals"),
        ("", "is empty"),
        ("a,b\n1,2\n", "not a known trace format"),
        ("time_s,ambient_c\n0,20\n0,21\n", "line 3: time 0 s comes after 0 s"),
        ("time_s,ambient_c\n0\n", "line 2: column 'ambient_c' is missing"),
        ("time_s,ambient\n0,20\n", "did you mean 'ambient_c'"),
        ("time_s,harvest_w\n0,-1\n", "line 2: harvest_w is -1"),
        ("time_s,slowdown\n0,0\n", "line 2: slowdown is 0"),
        ("TIMESTAMP,X\n2023-11-16 18:15:46.6805900,1\nsoon,1\n", "line 3: 'soon' is not a time"),
        ("TIMESTAMP,X\n2023-11-16 18:15:46.6,1\n2023-11-16 18:15:45.6,1\n", "line 3: time -1"),
        ("app,func,end_timestamp,duration\na,b,1,2\n", "line 2: arrives at -1"),
        ("value,runtime,starttime,VM_id\n0,30,2023-05-29 06:00:46.920,0\n", "line 2: value is 0"),
        ("# SoC,OCV [V]\n0,3\n", "battery table"),
        ('{"schema": 1, "name": "x"}', "not a trace in JSON form"),
        ('{"schema":7,"name":"x","duration_s":1,"arrivals_s":[]}', "schema 7"),
        ('{"schema":1,"name":"x","duration_s":1,"arrivals_s":[5]}', "after the end"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path, text, message):
    path = _file(tmp_path, "broken.csv", text)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert "broken.csv" in str(caught.value)


def test_an_arrivals_csv_may_bring_deadlines_which_travel_with_their_arrivals(tmp_path):
    trace = load(_file(tmp_path, "a.csv", "arrival_s,deadline_ms\n0.5,20\n1.5,\n2,50\n"))
    assert trace.deadlines_s.tolist() == [0.02, math.inf, 0.05]
    assert trace.cut(1.0, 5.0).deadlines_s.tolist() == [math.inf, 0.05]
    (tmp_path / "a.json").write_bytes(to_json(trace))
    assert load(str(tmp_path / "a.json")).deadlines_s.tolist() == [0.02, math.inf, 0.05]
    for text, message in (("0.5,0\n", "line 2: deadline_ms is 0"), ("0.5,x\n", "line 2: deadline_ms is 'x'")):
        with pytest.raises(InputError, match=message):
            load(_file(tmp_path, "b.csv", "arrival_s,deadline_ms\n" + text))


def test_azure_functions_arrive_when_they_began(tmp_path):
    trace = load(_file(tmp_path, "f.csv", "app,func,end_timestamp,duration\na,b,5,1\na,c,6,4.5\n"))
    assert trace.arrivals_s.tolist() == [1.5, 4.0]


def test_vm_noise_is_the_median_over_each_reading_in_order_of_time(tmp_path):
    rows = ["value,runtime,starttime,VM_id", "100,30,2023-05-29 06:00:10.000,0", "50,30,2023-05-29 06:00:00.000,0"]
    rows += ["100,30,2023-05-29 06:00:00.000,1", "200,30,2023-05-29 07:00:00.000,1", "100,30,2023-05-29 08:00:00.000,1"]
    path = _file(tmp_path, "n.csv", "\n".join(rows) + "\n")
    assert load(path).slowdown.tolist() == [2.0, 1.0] and load(path).times_s.tolist() == [0.0, 10.0]
    other = load(f"{path}:vm=1,period_s=60")
    assert other.slowdown.tolist() == [1.0, 0.5, 1.0] and other.times_s.tolist() == [0.0, 60.0, 120.0]
    with pytest.raises(InputError, match="no readings of vm '7'"):
        load(f"{path}:vm=7")


def _surfrad_line(minute, sun, air):
    pairs = ["0.0 0"] * 20
    pairs[0], pairs[15] = f"{sun} 0", f"{air} 0"
    return f" 2016 1 1 1 0 {minute} {minute / 60:.3f} 91.65 " + " ".join(pairs)


def test_surfrad_gives_harvest_and_air_and_holds_over_missing_values(tmp_path):
    lines = [" Alamosa", "   37.70  105.92 2317 m version 1"]
    lines += [_surfrad_line(0, -1.8, -9999.9), _surfrad_line(1, 500.0, -7.5), _surfrad_line(2, -9999.9, -7.0)]
    path = _file(tmp_path, "s.dat", "\n".join(lines) + "\n")
    trace = load(f"{path}:panel_w=20,derate=0.5")
    assert trace.harvest_w.tolist() == [0.0, 5.0, 5.0]
    assert trace.ambient_c.tolist() == [-7.5, -7.5, -7.0]
    assert trace.times_s.tolist() == [0.0, 60.0, 120.0]
    with pytest.raises(InputError, match="did you mean 'panel_w'"):
        load(f"{path}:panelw=20")
    with pytest.raises(InputError, match="line 3: 3 columns"):
        load(_file(tmp_path, "t.dat", "\n".join([*lines[:2], "1 2 3"]) + "\n"))


def test_speed_and_cut_apply_to_every_file(tmp_path):
    path = _file(tmp_path, "a.csv", "arrival_s\n1\n2\n6\n8\n")
    assert load(f"{path}:speed=2").arrivals_s.tolist() == [0.5, 1.0, 3.0, 4.0]
    part = load(f"{path}:start_s=2,length_s=5")
    assert part.arrivals_s.tolist() == [0.0, 4.0] and part.duration_s == 5.0


def test_a_cut_keeps_the_value_that_holds_at_its_start():
    steps = np.array([0.0, 10.0, 20.0])
    trace = Trace(name="x", duration_s=30.0, arrivals_s=np.zeros(0), times_s=steps, ambient_c=steps + 1.0)
    part = trace.cut(15.0, 10.0)
    assert part.times_s.tolist() == [0.0, 5.0] and part.ambient_c.tolist() == [11.0, 21.0]


def test_overlaid_traces_take_arrivals_from_one_and_weather_from_the_other():
    load_part = Trace(name="load", duration_s=20.0, arrivals_s=np.array([1.0, 15.0]))
    weather = Trace(
        name="sun",
        duration_s=99.0,
        arrivals_s=np.zeros(0),
        times_s=np.array([5.0, 50.0]),
        harvest_w=np.array([1.0, 2.0]),
    )
    both = overlay([weather, load_part])
    assert both.duration_s == 20.0 and both.arrivals_s.tolist() == [1.0, 15.0]
    assert both.environment("harvest_w", np.array([0.0, 19.0])).tolist() == [1.0, 1.0]
    assert both.name == "sun + load"


def test_the_recorded_traces_are_read(recorded):
    facts = summary(load(str(recorded / "arrivals" / "AzureLLMInferenceTrace_conv.csv")))
    assert facts["arrivals"] == 19_366 and facts["rate_hz"] == pytest.approx(5.53, abs=0.01)
    assert facts["interarrival_cv2"] == pytest.approx(1.2, abs=0.05)
    functions = load(str(recorded / "arrivals" / "AzureFunctions2021_200.csv"))
    assert len(functions.arrivals_s) == 199
    noise = load(str(next((recorded / "slowdown").glob("*.csv"))) + ":vm=2")
    assert np.median(noise.slowdown) == pytest.approx(1.0, abs=0.3)
    both = load_all(["poisson:rate=0.1,hours=24", str(recorded / "solar" / "surfrad-slv16001.dat") + ":panel_w=10"])
    assert both.duration_s == 86_400.0 and 2.0 < both.harvest_w.max() < 10.0 and both.ambient_c.min() < 0.0


def test_a_gzipped_journal_is_recognised(tmp_path):
    lines = b'{"kind":"meta","t_mono_ns":0,"t_unix_ns":0,"schema":1}\n'
    lines += b'{"kind":"batch","t_mono_ns":9,"t_unix_ns":9,"arrived_ns":2000000000,"n":2,"point":"p",'
    lines += b'"queue_ms":0,"infer_ms":1}\n'
    path = tmp_path / "journal-1.jsonl.gz"
    path.write_bytes(gzip.compress(lines))
    assert load(str(path)).arrivals_s.tolist() == [2.0, 2.0]
