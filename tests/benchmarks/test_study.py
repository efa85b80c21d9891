"""The study on a small scale: arms run, resume and are recorded; the report says what is recorded and nothing else."""

import msgspec
import pytest

from subnets.allocation import Limits
from subnets.bundle import Bundle
from subnets.data import ArraySplit, digits
from subnets.errors import InputError
from subnets.joint import JointOptions
from subnets.sampling import SampleOptions


@pytest.fixture(scope="module")
def study(root):
    """The study's modules, imported as ``python -m benchmarks.study`` imports them."""
    import importlib
    import sys
    from types import SimpleNamespace

    before = list(sys.path)
    sys.path.insert(0, str(root))
    names = ("__main__", "plan", "results", "runs")
    yield SimpleNamespace(**{name.strip("_"): importlib.import_module(f"benchmarks.study.{name}") for name in names})
    sys.path[:] = before


@pytest.fixture(scope="module")
def few():
    full = digits()
    parts = {name: getattr(full, name) for name in ("train", "validation", "test")}
    parts = {name: ArraySplit(split.images[:64], split.labels[:64]) for name, split in parts.items()}
    return msgspec.structs.replace(full, **parts)


@pytest.fixture(scope="module")
def small(study):
    """Three ways, on a network that trains in a moment."""
    short = study.plan.Schedule(
        pretrain_epochs=2, pretrain_rate=0.1, epochs=1, rate=0.02, batch_size=32, precision="f32", compile=False
    )
    sampling = SampleOptions(budgets=(0.4, 1.0), score="norm", limits=Limits(align=8))
    arms = (
        study.plan.Arm(name="joint", what="ours", sampling=sampling, joint=JointOptions(middle=0)),
        study.plan.Arm(name="alone", what="from scratch", sampling=sampling, way="alone"),
        study.plan.Arm(name="fine-tuned", what="cut and trained on", sampling=sampling, way="fine-tuned"),
        study.plan.Arm(
            name="uniform",
            what="the same MACs",
            sampling=SampleOptions(allocation="uniform", limits=Limits(align=1), sort=False),
            match="joint",
        ),
        study.plan.Arm(name="later", what="not yet", sampling=sampling, sparsity=0.5),
    )
    return study.plan.Study(
        name="small",
        question="Does it run?",
        network="tinynet",
        data="cifar10",
        arms=arms,
        cpu=short,
        accelerator=short,
        seeds=(0, 1),
    )


def watched(study, small, few, folder):
    """A runner, and the list that it writes each step's name into."""
    steps = []
    places = {"records": folder / "records", "work": folder / "work"}
    return study.runs.Runner(small, few, **places, on_step=lambda what, progress: steps.append(what)), steps


@pytest.fixture(scope="module")
def recorded(study, small, few, tmp_path_factory):
    """A folder with what the first three arms came to, and their records."""
    folder = tmp_path_factory.mktemp("study")
    runner, steps = watched(study, small, few, folder)
    records = {name: runner.run(small.arm(name), 0) for name in ("joint", "alone", "fine-tuned", "uniform")}
    return folder, records, steps


def test_every_way_is_recorded_with_the_same_ladder_and_as_many_epochs_as_planned(recorded):
    _, records, steps = recorded
    assert [each.name for each in records["joint"].subnets] == ["s40", "s100"]
    ladders = [[each.widths for each in records[name].subnets] for name in ("joint", "alone", "fine-tuned")]
    assert ladders[0] == ladders[1] == ladders[2]
    for one, other in zip(records["uniform"].subnets, records["joint"].subnets, strict=True):
        assert 0.95 * other.macs < one.macs <= other.macs
    count = {what: steps.count(what) for what in steps}
    assert count.pop("tinynet, pretraining") == 2 * 2  # once for all arms; two batches an epoch
    assert count == {
        "small/joint": 2,
        "small/uniform": 2,
        **{f"small/alone {name}": 3 * 2 for name in ("s40", "s100")},
        **{f"small/fine-tuned {name}": 2 for name in ("s40", "s100")},
    }
    for record in records.values():
        assert record.full_macs == record.subnets[-1].macs and record.wall_s > 0
        assert all(each.test.n == 64 and each.validation.n == 64 for each in record.subnets)
        assert record.provenance["commit"] and record.provenance["host"]["cpu"]


def test_a_recorded_arm_is_not_run_again_and_leaves_nothing_unfinished(study, small, few, recorded):
    folder, records, _ = recorded
    runner = study.runs.Runner(small, few, records=folder / "records", work=folder / "work", on_step=pytest.fail)
    assert runner.run(small.arm("alone"), 0) == records["alone"]
    assert list((folder / "work" / "small").iterdir()) == []


def test_a_pretrained_network_kept_with_the_records_is_not_trained_again(study, small, few, recorded, tmp_path):
    folder, records, _ = recorded
    (network,) = (folder / "work" / "pretrained").glob("*.safetensors")
    kept = tmp_path / "records" / "pretrained" / network.name
    kept.parent.mkdir(parents=True)
    kept.write_bytes(network.read_bytes())
    runner, steps = watched(study, small, few, tmp_path)
    again = runner.run(small.arm("joint"), 0)
    assert set(steps) == {"small/joint"}
    assert again.pretrained == records["joint"].pretrained and again.subnets == records["joint"].subnets


def test_a_processor_without_bf16_is_told_before_anything_is_trained(study, monkeypatch, capsys, tmp_path):
    from backends.runtime import Processor

    plain = Processor("plain", frozenset())
    monkeypatch.setattr(Processor, "here", staticmethod(lambda: plain))
    assert study.main.main(["run", "four/joint", "--cifar10", str(tmp_path), "--work", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: study 'four' trains in bf16") and "--device cuda" in said
    assert not list(tmp_path.iterdir())


def test_a_record_of_another_plan_is_stale_and_a_damaged_one_refused(study, small, recorded):
    folder, _, _ = recorded
    arm = small.arm("joint")
    path = study.runs.record_path(folder / "records", small, arm, 0, "cpu")
    assert study.runs.read_record(path, study.runs.planned(small, arm, "cpu")) is not None
    longer = msgspec.structs.replace(small, cpu=msgspec.structs.replace(small.cpu, epochs=2))
    assert study.runs.read_record(path, study.runs.planned(longer, arm, "cpu")) is None
    damaged = folder / "damaged.json"
    damaged.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"damaged.json: not a record of the study"):
        study.runs.read_record(damaged, {})


def test_a_stopped_arm_goes_on_with_the_subnet_it_was_at(study, small, few, recorded, tmp_path):
    import shutil

    folder, records, _ = recorded
    shutil.copytree(folder / "work" / "pretrained", tmp_path / "pretrained")

    def run(on_step):
        runner = study.runs.Runner(small, few, records=tmp_path / "r", work=tmp_path, on_step=on_step)
        return runner.run(small.arm("alone"), 0)

    def stop(what, progress):
        if what.endswith("s100") and progress.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stop)
    rest = []
    again = run(lambda what, progress: rest.append((what, progress.epoch)))
    assert rest == [("small/alone s100", epoch) for epoch in (1, 1, 2, 2)]
    assert [each.test for each in again.subnets] == [each.test for each in records["alone"].subnets]
    assert again.wall_s > 0


def test_the_report_holds_each_number_with_its_file_and_says_what_has_not_run(study, small, recorded, tmp_path):
    folder, records, _ = recorded
    page, picture = study.results.write(folder / "records", tmp_path / "r.md", tmp_path / "pictures", [small])
    text = page.read_text()
    for name, record in records.items():
        assert f"`benchmarks/results/study/small/{name}.seed0.cpu.json`" in text
        for each in record.subnets:
            assert f"| {each.name} | {each.macs / 1e6:.2f} M |" in text and f"| {100 * each.test.value:.2f} |" in text
    points = 100 * (records["joint"].subnets[0].test.value - records["alone"].subnets[0].test.value)
    assert f"joint minus alone, points, 1 seed: s40 {points:+.2f} (" in text
    assert "Not run yet: `python -m benchmarks.study run small/later --cifar10 DIR`" in text
    assert "Seeds not run yet: 1." in text
    assert f"](pictures/{picture.name})" in text and picture.read_text().startswith("<svg")
    assert "Not run yet: `python -m benchmarks.study run ablations/paper --cifar10 DIR`" in text  # the norms


def test_a_page_without_any_record_names_every_arm_as_not_run(study, tmp_path):
    (page,) = study.results.write(tmp_path / "none", tmp_path / "r.md", tmp_path / "pictures")
    text = page.read_text()
    for each in study.plan.STUDIES:
        for arm in each.arms:
            assert f"Not run yet: `python -m benchmarks.study run {each.name}/{arm.name} --{each.data} DIR`" in text
    assert "%)" not in text and list((tmp_path / "pictures").iterdir()) == []


def test_the_page_in_the_docs_is_what_the_records_give(study, root, tmp_path):
    written = study.results.write(
        root / "benchmarks/results/study", tmp_path / "results.md", tmp_path / "pictures", bundles=root / "bundles"
    )
    for path in written:
        kept = (root / "docs" / path.relative_to(tmp_path)).read_text()
        assert path.read_text() == kept, "run python -m benchmarks.study report and commit what it writes"


def test_the_bundle_that_ships_is_held_against_what_was_asked_of_it(study, root, monkeypatch):
    bundle = Bundle.open(root / "bundles" / study.results.SHIPPED)
    reached = [100 * entry.accuracy.value for entry in bundle.manifest.subnets]
    monkeypatch.setattr(study.results, "ASKED", tuple(value - 0.5 for value in reached))
    assert "All of it is reached." in study.results.shipped(bundle)
    monkeypatch.setattr(study.results, "ASKED", (reached[0] + 0.25, *reached[1:]))
    text = study.results.shipped(bundle)
    name = bundle.ladder.names[0]
    assert f"Missed: {name} by 0.25 points. " in text and "| -0.25 |" in text and "All of it" not in text


def test_the_finer_ladder_that_ships_is_told_in_full_and_costs_little(study, root):
    bundle = Bundle.open(root / "bundles" / study.results.NINE)
    entries = bundle.manifest.subnets
    text = study.results.nine(bundle)
    assert len(entries) == 9 and all(f"| {entry.name} | " in text for entry in entries)
    added, full_size = bundle.added()
    assert sum(added.values()) < 0.08 * full_size
    unknown = (msgspec.structs.replace(entries[0], accuracy=None), *entries[1:])
    bundle.manifest = msgspec.structs.replace(bundle.manifest, subnets=unknown)
    with pytest.raises(InputError, match=f"the accuracy of '{entries[0].name}' is missing"):
        study.results.nine(bundle)


def test_a_study_that_ran_on_a_gpu_alone_has_no_empty_part_for_the_cpu(study, small, recorded, tmp_path):
    record = recorded[1]["joint"]
    plan = study.runs.planned(small, small.arm("joint"), "cuda")
    host = {**record.provenance["host"], "accelerator": "Some GPU"}
    on_gpu = msgspec.structs.replace(record, device="cuda", plan=plan, provenance={**record.provenance, "host": host})
    path = study.runs.record_path(tmp_path / "r", small, small.arm("joint"), 0, "cuda")
    path.parent.mkdir(parents=True)
    path.write_bytes(msgspec.json.encode(on_gpu))
    page, *_ = study.results.write(tmp_path / "r", tmp_path / "r.md", tmp_path / "pictures", [small])
    text = page.read_text()
    assert f"## small: {small.network} on {small.data}, cuda" in text and "| Some GPU, " in text
    assert f"## small: {small.network} on {small.data}\n" not in text


def test_a_sparse_pretraining_leaves_its_norms_for_the_report(study, small, few, tmp_path):
    runner = study.runs.Runner(small, few, records=tmp_path / "r", work=tmp_path / "w")
    runner.run(small.arm("later"), 0)
    page, *pictures = study.results.write(tmp_path / "r", tmp_path / "r.md", tmp_path / "pictures", [small])
    assert any(path.name.startswith("results-norms-tinynet-digits-seed0") for path in pictures)
    assert "channels ended at zero" in page.read_text()


def seeds_of(study, recorded, values):
    """The joint record with other accuracies, one seed each."""
    record = recorded[1]["joint"]
    out = []
    for seed, value in enumerate(values):
        subnets = tuple(
            msgspec.structs.replace(each, test=msgspec.structs.replace(each.test, value=value))
            for each in record.subnets
        )
        out.append(msgspec.structs.replace(record, seed=seed, subnets=subnets))
    return out


def test_over_seeds_the_mean_and_its_t_interval_are_given_and_differences_are_paired(study, recorded):
    ours, theirs = (seeds_of(study, recorded, values) for values in ((0.90, 0.91, 0.92), (0.89, 0.905, 0.905)))
    found = study.results.cell(ours, 0)
    half = 4.302653 * 1.0 / 3**0.5  # t of two degrees of freedom, deviation one point
    assert (found.value, found.low, found.high) == pytest.approx((91.0, 91.0 - half, 91.0 + half), rel=1e-5)
    gap = study.results.difference(ours, theirs, 1)
    assert gap.value == pytest.approx(1.0) and gap.seeds == 3
    assert gap.high - gap.value == pytest.approx(4.302653 * 0.5 / 3**0.5, rel=1e-5)
    assert study.results.difference(ours[:1], theirs[1:], 0) is None


@pytest.mark.parametrize("name", ["five", "four/magic"])
def test_unknown_names_are_refused(study, name):
    with pytest.raises(InputError, match=r"unknown; use one of nine, four|has no arm 'magic'; it has joint"):
        study.main.chosen([name])


def test_the_plans_can_be_sampled_within_their_limits(study):
    """Every budget of every arm that needs no measuring can be met, and not by far too small a subnet."""
    import torch

    from subnets import architectures
    from subnets.allocation import allocate
    from subnets.groups import trace

    for each in study.plan.STUDIES:
        with torch.device("meta"):
            size = 32 if each.data == "cifar10" else each.image_size
            traced = trace(architectures.build(each.network, num_classes=10), (3, size, size))
        whole = traced.macs(traced.full)
        scores = {group.name: torch.ones(group.width) for group in traced.groups}
        for arm in each.arms:
            options = arm.sampling
            if options.allocation in ("greedy", "threshold", "uniform"):
                ladder = allocate(options.allocation, traced, scores, options.budgets, options.limits)
                if options.allocation != "threshold":  # equal scores are all above one threshold, or none
                    shares = [traced.macs(spec.widths) / whole for spec in ladder]
                    budgets = sorted(options.budgets)
                    assert all(b - 0.1 < s <= b for s, b in zip(shares, budgets, strict=True)), (arm.name, shares)
