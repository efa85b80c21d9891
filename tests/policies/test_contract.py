"""Every policy and wrapper keeps the contract."""

import pytest

from policies.battery import Battery
from policies.composite import Composite
from policies.contract import PolicyContract
from policies.dwell import Dwell
from policies.hysteresis import Hysteresis
from policies.largest import Largest
from policies.power import Power
from policies.registry import create, names
from policies.smallest import Smallest
from policies.static import Static
from policies.strictest import Strictest
from policies.thermal import Thermal
from policies.throughput import Throughput


class TestSmallest(PolicyContract):
    def build(self, goals):
        return Smallest(goals)


class TestLargest(PolicyContract):
    def build(self, goals):
        return Largest(goals)


class TestStatic(PolicyContract):
    keeps_accuracy = False  # a name is an order

    def build(self, goals):
        return Static(goals, subnet="s50")


class TestThroughput(PolicyContract):
    def build(self, goals):
        return Throughput(goals)


class TestThermal(PolicyContract):
    def build(self, goals):
        return Thermal(goals)


class TestBattery(PolicyContract):
    def build(self, goals):
        return Battery(goals)


class TestBatteryWithoutMixing(PolicyContract):
    def build(self, goals):
        return Battery(goals, mix_s=0)


class TestPower(PolicyContract):
    def build(self, goals):
        return Power(goals)


class TestStrictest(PolicyContract):
    def build(self, goals):
        return Strictest([Thermal(goals), Throughput(goals)])


class TestHysteresis(PolicyContract):
    def build(self, goals):
        return Hysteresis(Throughput(goals), up_votes=3, down_votes=2)

    # with a point in use, a new wrapper may hold it for a vote: both cases of a pair are held alike or go down


class TestDwell(PolicyContract):
    def build(self, goals):
        return Dwell(Throughput(goals), up_s=20, down_s=5, switches_per_hour=4)


class TestComposite(PolicyContract):
    def build(self, goals):
        return Composite(goals)


@pytest.mark.parametrize("name", names())
def test_the_registrys_name_is_the_classs(name):
    assert create(name, options={"subnet": "s50"} if name == "static" else None).name == name
