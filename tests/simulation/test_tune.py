import tomllib

import msgspec
import pytest

from agent import config
from simulation.arena import Contender, Contest
from simulation.resampling import Estimate
from simulation.synthetic import synthetic_table
from simulation.tune import Tuned, search, snippet, spans
from subnets.errors import InputError


@pytest.fixture(scope="module")
def contests():
    training = Contest(
        table=synthetic_table(),
        contenders=(Contender.parse("throughput"),),
        seeds=(0,),
        scenarios=("burst",),
        duration_s=20.0,
        bounded=False,
    )
    return training, msgspec.structs.replace(training, seeds=(1000, 1001))


def test_numbers_are_searched_as_far_as_the_policy_takes_them():
    (rho,) = spans("throughput")
    assert (rho.name, rho.default) == ("rho_max", 0.7)
    assert rho.low == pytest.approx(0.7 / 4) and 0.999 < rho.high < 1.0
    names = {span.name for span in spans("composite")}
    assert "rho_max" in names and not names & {"backend", "batch_size"}


def test_what_is_asked_is_searched_where_it_is_asked():
    asked = {"rho_max": (0.4, 0.6)}
    (rho,) = spans("throughput", asked)
    assert (rho.low, rho.high) == (0.4, 0.6)


@pytest.mark.parametrize(
    ("policy", "asked", "message"),
    [
        ("throughput", {"rho": (0.1, 0.2)}, "no option 'rho'"),
        ("throughput", {"rho_max": (0.5, 2.0)}, "cannot be searched from 0.5 to 2"),
        ("throughput", {"rho_max": (0.5, 0.4)}, "cannot be searched from 0.5 to 0.4"),
        ("smallest", {}, "no number to search"),
        ("thruput", {}, "there is no policy 'thruput'"),
    ],
)
def test_what_cannot_be_searched_is_refused(policy, asked, message):
    with pytest.raises(InputError, match=message):
        spans(policy, asked)


def test_a_search_repeats_and_finds_nothing_worse_than_the_defaults(contests, tmp_path):
    pytest.importorskip("optuna")
    found, seen = [], []
    for folder in ("a", "b"):
        tuned = search(
            "throughput",
            *contests,
            spans("throughput"),
            tmp_path / folder,
            trials=4,
            progress=lambda done, least: seen.append((done, least)),
        )
        found.append(tuned)
    assert found[0] == found[1]
    assert seen[:4] == seen[4:] and [done for done, _ in seen[:4]] == [1, 2, 3, 4]
    assert found[0].training_tuned <= found[0].training_default == seen[0][1]
    assert found[0].gain.mean == pytest.approx(found[0].held_out_default - found[0].held_out_tuned)


@pytest.mark.parametrize("low", [0.01, -0.01])
def test_the_snippet_is_a_configuration_and_says_when_the_gain_does_not_hold(tmp_path, low):
    tuned = Tuned(
        policy="composite",
        options={"rho_max": 0.85, "up_votes": 4, "dwell_s": 1e-05},
        defaults={"rho_max": 0.7, "up_votes": 10, "dwell_s": 10.0},
        trials=9,
        training_default=0.2,
        training_tuned=0.1,
        held_out_default=0.2,
        held_out_tuned=0.15,
        gain=Estimate(mean=0.05, low=low, high=0.09, p=0.5),
    )
    text = snippet(tuned)
    assert ("keep these rather" in text) == (low < 0)
    assert tomllib.loads(text)["policy"]["options"] == tuned.options
    (tmp_path / "agent.toml").write_text(text)
    read = config.load(tmp_path / "agent.toml")
    assert read.agent.policy == "composite" and read.policy.options == tuned.options
