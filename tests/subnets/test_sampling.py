"""From a trained network to a bundle, and to a better one: the whole way on few images."""

import json

import msgspec
import numpy as np
import pytest
import torch

from subnets import architectures
from subnets.allocation import Limits
from subnets.bundle import Architecture, Bundle
from subnets.data import ArraySplit
from subnets.errors import InputError
from subnets.groups import trace
from subnets.importance import norm_scores
from subnets.joint import JointOptions
from subnets.sampling import SampleOptions, check_data, evaluate, fine_tune, held_out_loss, sample
from subnets.spec import SubnetSpec
from subnets.supernet import Supernet, extract, open_network
from subnets.training import Recipe

TINY = Architecture(name="tinynet", arguments={"num_classes": 10, "in_channels": 1, "width": 8})
QUICK = Recipe(epochs=1, batch_size=64, learning_rate=0.02, precision="f32", compile=False)


def without(dataset, **empty):
    none = ArraySplit(dataset.train.images[:0], dataset.train.labels[:0])
    return msgspec.structs.replace(dataset, **dict.fromkeys(empty, none))


class TestSampled:
    def test_the_full_subnet_answers_as_the_network_did(self, nets, small_digits, tmp_path):
        network = nets.tiny(seed=5)
        x = torch.randn(4, 1, 16, 16)
        with torch.no_grad():
            before = network(x).clone()
            options = SampleOptions(budgets=(0.5, 1.0), score="norm", allocation="threshold", limits=Limits(align=2))
            bundle = sample(network, TINY, small_digits, options, tmp_path / "b", name="mine")
            torch.testing.assert_close(open_network(bundle, "s100")(x), before, atol=1e-4, rtol=1e-4)
        assert bundle.name == "mine" and bundle.manifest.provenance["sampling"]["score"] == "norm"

    def test_budgets_nesting_and_costs_are_those_of_the_real_networks(self, tiny_master):
        bundle = Bundle.open(tiny_master.sampled.path)
        assert bundle.ladder.names == ("s30", "s60", "s100")
        full = bundle.manifest.subnets[-1].macs
        for entry, budget in zip(bundle.manifest.subnets, (0.3, 0.6, 1.0), strict=True):
            network = open_network(bundle, entry.name)
            traced = trace(network, bundle.input.shape)
            assert entry.macs == traced.macs(traced.full) <= budget * full
            assert entry.parameters == sum(value.numel() for value in network.parameters())

    def test_important_channels_come_first(self, nets, small_digits, tmp_path):
        options = SampleOptions(budgets=(0.5, 1.0), score="norm", limits=Limits(align=2))
        bundle = sample(nets.tiny(seed=6), TINY, small_digits, options, tmp_path / "b")
        network = open_network(bundle, "s100")
        for scores in norm_scores(network, trace(network, bundle.input.shape)).values():
            assert torch.all(scores.diff() <= 1e-6) and scores[0] > scores[-1]

    def test_options_are_recorded_and_widths_keep_their_alignment(self, tiny_master):
        options = tiny_master.sampled.manifest.provenance["sampling"]
        assert (options["score"], options["allocation"]) == ("taylor", "greedy")
        assert all(width % 4 == 0 for spec in tiny_master.sampled.ladder for width in spec.widths.values())

    def test_each_subnets_statistics_are_its_own(self, tiny_master):
        tensors = tiny_master.sampled.tensors()
        narrow = tensors["s30/layer3.0.bn2.running_var"]
        assert not np.allclose(narrow, tensors["s100/layer3.0.bn2.running_var"][: len(narrow)], rtol=0.05)

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_an_empty_split_is_refused(self, nets, small_digits, tmp_path, split):
        with pytest.raises(InputError, match=f"has no {split} images"):
            sample(nets.tiny(), TINY, without(small_digits, **{split: True}), SampleOptions(), tmp_path / "b")

    def test_classes_that_do_not_fit_are_refused(self, nets, small_digits, tmp_path):
        with pytest.raises(InputError, match="do not match the 10 classes of digits"):
            sample(nets.tiny(num_classes=7), TINY, small_digits, SampleOptions(), tmp_path / "b")
        assert not (tmp_path / "b").exists()


class TestChoices:
    def test_without_sorting_a_subnet_keeps_the_first_channels_as_they_were(self, nets, small_digits, tmp_path):
        network = nets.tiny(seed=6)
        first = network.layer2[0].conv1.weight.detach().clone()
        options = SampleOptions(budgets=(0.5, 1.0), score="norm", limits=Limits(align=2), sort=False)
        bundle = sample(network, TINY, small_digits, options, tmp_path / "b")
        small = open_network(bundle, "s50").layer2[0].conv1.weight.detach()
        assert torch.equal(small, first[: small.shape[0], : small.shape[1]])

    def test_progressive_and_latency_give_nested_ladders_within_their_budgets(self, nets, small_digits, tmp_path):
        latency_ms = lambda widths: 0.1 + 0.01 * sum(widths.values())  # noqa: E731
        for kind, more in (("progressive", {}), ("latency", {"latency_ms": latency_ms})):
            options = SampleOptions(budgets=(0.6, 1.0), score="scale", allocation=kind, limits=Limits(align=4))
            bundle = sample(nets.tiny(seed=7), TINY, small_digits, options, tmp_path / kind, **more)
            small, full = bundle.manifest.subnets
            cost = (lambda entry: latency_ms(entry.widths)) if more else (lambda entry: entry.macs)
            assert cost(small) <= 0.6 * cost(full)

    def test_the_held_out_loss_is_that_of_the_subnet_on_validation_images_and_batch_statistics(
        self, nets, small_digits
    ):
        network = nets.tiny(seed=8)
        traced = trace(network, (1, 16, 16))
        widths = {name: width // 2 for name, width in traced.full.items()}
        small = extract(network, traced.groups, SubnetSpec("x", widths)).train()
        split = small_digits.validation
        images = (torch.from_numpy(split.images) / 255.0 - small_digits.mean[0]) / small_digits.std[0]
        with torch.no_grad():
            expected = float(torch.nn.functional.cross_entropy(small(images), torch.from_numpy(split.labels)))
        before = {name: value.clone() for name, value in network.state_dict().items()}
        assert held_out_loss(network, traced, small_digits)(widths) == pytest.approx(expected, rel=1e-4)
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


class TestFineTuned:
    def test_one_epoch_lifts_the_smallest_and_keeps_the_ladder(self, tiny_master):
        tuned = tiny_master.bundle
        assert [state.step for state in tiny_master.steps] == list(range(1, 9))
        assert tuned.manifest.provenance["training"]["recipe"]["epochs"] == 1
        assert set(tuned.manifest.provenance["training"]["statistics"]) == {"s30", "s60", "s100"}
        # Chance is 10 %; what the test split says of so small a network trained so briefly is far above.
        assert all(entry.accuracy.value > 0.3 for entry in tuned.manifest.subnets)
        assert tuned.manifest.subnets[0].accuracy.value > tiny_master.sampled.manifest.subnets[0].accuracy.value
        assert tuned.key != tiny_master.sampled.key

    def test_recorded_accuracy_is_that_of_the_opened_networks(self, tiny_master, small_digits):
        images = (small_digits.test.images / 255.0 - small_digits.mean[0]) / small_digits.std[0]
        for entry in tiny_master.bundle.manifest.subnets:
            with torch.no_grad():
                answers = open_network(tiny_master.bundle, entry.name)(torch.from_numpy(images).float())
            share = float(np.mean(answers.argmax(1).numpy() == small_digits.test.labels))
            assert entry.accuracy.value == pytest.approx(share, abs=0.011)  # a tie may fall either way
            assert (entry.accuracy.n, entry.accuracy.split) == (100, "digits test")

    def test_the_card_shows_every_subnet_and_how_it_was_made(self, tiny_master):
        reopened = Bundle.open(tiny_master.bundle.path)
        card = (tiny_master.bundle.path / "README.md").read_text()
        for entry in tiny_master.bundle.manifest.subnets:
            assert f"| {entry.name} | {entry.macs / 1e6:.2f} M |" in card and f"{entry.accuracy.value:.2%}" in card
        assert json.loads(card.split("```json")[1].split("```")[0]) == reopened.manifest.provenance

    def test_exports_of_the_old_weights_are_dropped(self, tiny, small_digits):
        (tiny.path / "s30.xml").write_text("<net/>")
        exported = tiny.add_export("s30", "openvino", [tiny.path / "s30.xml"])
        tuned = fine_tune(exported, small_digits, QUICK, JointOptions(middle=0))
        assert tuned.manifest.exports == () and not (tiny.path / "s30.xml").exists()
        assert Bundle.open(tiny.path).key == tuned.key

    def test_without_validation_images_statistics_are_recalibrated(self, tiny, small_digits):
        tuned = fine_tune(tiny, without(small_digits, validation=True), QUICK, JointOptions(middle=0))
        assert set(tuned.manifest.provenance["training"]["statistics"].values()) == {"recalibrated"}

    def test_failed_training_leaves_the_bundle_as_it_was(self, tiny, small_digits):
        key = tiny.key
        with pytest.raises(InputError, match="not a number"):
            fine_tune(tiny, small_digits, msgspec.structs.replace(QUICK, epochs=3, learning_rate=1e30))
        assert Bundle.open(tiny.path).key == key

    def test_data_of_another_shape_are_refused(self, tiny, small_digits):
        random = np.zeros((3, 3, 8, 8), np.uint8)
        split = ArraySplit(random, np.zeros(3, np.int64))
        other = msgspec.structs.replace(small_digits, train=split, validation=split, test=split)
        with pytest.raises(InputError, match=r"classes of \(3, 8, 8\) images; bundle 'tiny' takes 10 classes"):
            check_data(tiny, other)


def test_evaluating_counts_each_subnets_hits_with_an_interval(tiny, small_digits):
    found = evaluate(Supernet.from_bundle(tiny), small_digits, "validation")
    assert list(found) == ["s30", "s60", "s100"]
    for accuracy in found.values():
        assert accuracy.n == 80 and accuracy.low < accuracy.value < accuracy.high
        assert (accuracy.value * 80) == pytest.approx(round(accuracy.value * 80))


def test_the_test_split_plays_no_part_in_choices(tiny_master, small_digits, tmp_path):
    """With every test label wrong, the same weights come out."""
    wrong = ArraySplit(small_digits.test.images, (small_digits.test.labels + 1) % 10)
    shuffled = msgspec.structs.replace(small_digits, test=wrong)
    bundles = []
    for name, dataset in (("a", small_digits), ("b", shuffled)):
        torch.manual_seed(0)
        network = architectures.build(TINY.name, **TINY.arguments)
        options = SampleOptions(budgets=(0.5, 1.0), limits=Limits(align=4))
        bundles.append(fine_tune(sample(network, TINY, dataset, options, tmp_path / name), dataset, QUICK))
    assert bundles[0].manifest.weights_sha256 == bundles[1].manifest.weights_sha256
