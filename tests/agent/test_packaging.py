"""What is shipped beside the program: dashboard, alerts, systemd unit, and the page that explains them."""

import configparser
import json
import re
import shutil
import subprocess

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent import config
from agent.journal import Journal
from agent.metrics import Metrics
from agent.view import Viewer
from policies.base import Conditions, Goals

NAME = re.compile(r"\b(?:gearshift|process)_[a-z0-9_]+\b")


@pytest.fixture(scope="module")
def packaging(root):
    return root / "packaging"


@pytest.fixture
def scrape(make_agent, helpers, table, images, policy, tmp_path):
    """A scrape in which everything is known: {name of a sample: its labels}."""
    conditions = {field.name: 0.5 for field in msgspec.structs.fields(Conditions)}
    conditions |= {"on_mains": False, "throttled": False, "temperature_c": 50.0}
    goals = Goals(deadline_ms=20.0, temperature_limit_c=75.0, max_power_w=5.0, min_accuracy=0.5)
    rows = tuple(msgspec.structs.replace(row, energy_j=0.5, energy_source="rapl-package") for row in table.rows)
    agent = make_agent(
        start=False,
        table=msgspec.structs.replace(table, rows=rows),
        sensors=helpers.Readings(conditions),
        goals=goals,
        journal=Journal(tmp_path),
    )
    viewer = Viewer(agent, "1.2.3")
    agent.start()
    for subnet in helpers.LADDER:
        agent.infer(images[:1], subnet=subnet)
    policy.point = helpers.point("s50")
    agent.tick()
    text = Metrics(viewer).text()
    return {
        sample.name: set(sample.labels) for family in text_string_to_metric_families(text) for sample in family.samples
    }


def panels(packaging):
    return json.loads((packaging / "grafana" / "dashboard.json").read_text())


def expressions(dashboard):
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def test_every_metric_of_a_panel_exists_in_a_live_scrape_with_the_labels_it_is_asked_by(packaging, scrape):
    asked = set()
    for title, expression in expressions(panels(packaging)):
        names = NAME.findall(expression)
        assert names, title
        for name in names:
            assert name in scrape, f"panel '{title}' asks for {name}"
            asked.add(name)
            for group in re.findall(r"by \(([^)]*)\)", expression):
                of_scraping = {"instance", "job"}
                assert set(re.split(r",\s*", group)) - of_scraping <= scrape[name], f"{title}: {group}"
    assert len(asked) > 35


def test_every_metric_of_an_alert_exists_in_a_live_scrape(packaging, scrape):
    text = (packaging / "prometheus" / "alerts.yml").read_text()
    names = set(NAME.findall(text))
    assert len(names) > 15 and names - scrape.keys() == set()


def test_the_dashboard_works_with_any_data_source_and_its_panels_do_not_overlap(packaging):
    dashboard = panels(packaging)
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert dashboard["templating"]["list"][0]["name"] == "datasource"  # the others are asked from it
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    for panel in dashboard["panels"]:
        assert panel["datasource"] == wanted and all(target["datasource"] == wanted for target in panel["targets"])
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def promtool(*arguments, **more):
    if (found := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    return subprocess.run([found, *map(str, arguments)], capture_output=True, text=True, **more)


def test_the_panels_ask_in_sound_promql(packaging, tmp_path):
    rules = []
    for place, (_, expression) in enumerate(expressions(panels(packaging))):
        for variable, value in (("$__rate_interval", "5m"), ("$__interval", "5m"), ("$instance", ".*")):
            expression = expression.replace(variable, value)
        rules.append({"record": f"panel:{place}", "expr": expression})
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    ran = promtool("check", "rules", tmp_path / "rules.yml")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_alert_rules_are_sound_and_fire_on_what_they_are_for_and_on_nothing_else(packaging):
    checked = promtool("check", "rules", packaging / "prometheus" / "alerts.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = promtool("test", "rules", "alerts.test.yml", cwd=packaging / "prometheus")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_is_tried_and_explained(packaging, root):
    alerts = set(re.findall(r"- alert: (\w+)", (packaging / "prometheus" / "alerts.yml").read_text()))
    tried = set(re.findall(r'alertname="(\w+)"', (packaging / "prometheus" / "alerts.test.yml").read_text()))
    page = (root / "docs" / "operations.md").read_text()
    assert len(alerts) > 15 and alerts == tried
    assert {alert for alert in alerts if f"`{alert}`" not in page} == set()


def test_every_metric_is_explained(scrape, root):
    page = (root / "docs" / "operations.md").read_text()
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in scrape if name.startswith("gearshift_")}
    assert {name for name in names if f"`{name}`" not in page} == set()


def systemd(*arguments):
    if (found := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run([found, *map(str, arguments)], capture_output=True, text=True)


def test_the_unit_is_sound(packaging):
    ran = systemd("verify", packaging / "gearshift.service")
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_unit_is_exposed_little(packaging):
    ran = systemd("security", "--offline=true", packaging / "gearshift.service")
    found = re.search(r"Overall exposure level for gearshift\.service: ([0-9.]+)", ran.stdout)
    if found is None:
        pytest.skip(f"systemd-analyze cannot judge units here: {ran.stderr.strip()[:200]}")
    assert float(found[1]) <= 4.0


def test_the_unit_leaves_the_jit_alone_and_names_its_folders(packaging):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(packaging / "gearshift.service")
    service = unit["Service"]
    # With MemoryDenyWriteExecute OpenVINO's processor plugin cannot compile; ProcSubset=pid hides load and pressure.
    assert "MemoryDenyWriteExecute" not in service and "ProcSubset" not in service and "PrivateDevices" not in service
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main") and int(service["WatchdogSec"]) > 0
    assert all(service[f"{kind}Directory"] == "gearshift" for kind in ("Runtime", "State", "Cache", "Configuration"))
    assert service["CapabilityBoundingSet"] == "" and service["User"] == "gearshift"


def test_the_shipped_configuration_is_sound(packaging):
    loaded = config.load(packaging / "agent.toml", environment={})
    assert loaded.agent.journal == "/var/lib/gearshift/journal" and loaded.goals.goals().deadline_ms == 20.0
