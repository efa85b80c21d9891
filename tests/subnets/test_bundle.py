"""Bundles come back as they were written; whatever was damaged, swapped or forged is refused in one sentence."""

import json
import shutil
import string

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from subnets.bundle import (
    SCHEMA,
    Accuracy,
    Architecture,
    Bundle,
    Export,
    InputSpec,
    Manifest,
    SubnetEntry,
    save,
    sha256,
    wilson,
    write_atomically,
)
from subnets.errors import InputError
from subnets.spec import ChannelGroup, Member

names = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
shares = st.floats(0, 1)
scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-1e9, 1e9) | st.text(max_size=10)
accuracies = st.builds(
    Accuracy, value=shares, low=shares, high=shares, n=st.integers(1, 10**6), split=st.text(max_size=20)
)


@st.composite
def manifests(draw):
    rungs = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    widths = sorted(draw(st.lists(st.integers(1, 6), min_size=len(rungs), max_size=len(rungs))))
    entries = tuple(
        SubnetEntry(
            name=name,
            widths={"a": width},
            macs=draw(st.integers(0, 2**50)),
            parameters=draw(st.integers(0, 2**40)),
            accuracy=draw(st.none() | accuracies),
        )
        for name, width in zip(rungs, widths, strict=True)
    )
    return Manifest(
        schema=SCHEMA,
        name=draw(st.text(max_size=20)),
        architecture=Architecture(name=draw(names), arguments=draw(st.dictionaries(names, scalars, max_size=3))),
        input=InputSpec(channels=2, height=4, width=4, mean=(draw(shares), 0.5), std=(0.2, 0.3)),
        labels=draw(st.just(()) | st.just(("x", "ÿ\n", '"'))),
        groups=(ChannelGroup(name="a", width=6, members=(Member("w", 0), Member("v", 1, 2)), coupled=True),),
        subnets=entries,
        weights_sha256="",
        provenance=draw(st.dictionaries(st.text(max_size=8), scalars | st.lists(scalars, max_size=3), max_size=3)),
    )


TENSORS = {
    "w": np.arange(12, dtype=np.float32).reshape(6, 2),
    "v": np.arange(36, dtype=np.float32).reshape(3, 12),
    "head.weight": np.zeros((3, 3), np.float32),
}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(manifest=manifests())
def test_any_bundle_comes_back_as_it_was_written(tmp_path, manifest):
    written = save(tmp_path / "b", manifest, TENSORS, "a card")
    opened = Bundle.open(tmp_path / "b")
    assert opened.manifest == written.manifest
    assert msgspec.structs.replace(opened.manifest, weights_sha256="") == manifest
    assert (opened.key, opened.ladder, opened.name) == (written.key, written.ladder, manifest.name)
    assert opened.rewrite().manifest == opened.manifest == Bundle.open(tmp_path / "b").manifest
    for entry in manifest.subnets:
        found = opened.tensors(entry.name)
        width = entry.widths["a"]
        assert np.array_equal(found["w"], TENSORS["w"][:width])
        assert np.array_equal(found["v"], TENSORS["v"][:, : 2 * width])
        assert all(value.flags.c_contiguous for value in found.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), file=st.booleans())
def test_one_byte_changed_anywhere_is_refused(tiny, where, flip, file):
    path = tiny.path / ("weights.safetensors" if file else "bundle.json")
    good = path.read_bytes()
    bad = bytearray(good)
    bad[int(where * len(bad))] ^= flip
    path.write_bytes(bad)
    try:
        with pytest.raises(InputError) as caught:
            Bundle.open(tiny.path)
        assert str(tiny.path) in str(caught.value) and "\n" not in str(caught.value)
    finally:
        path.write_bytes(good)
    Bundle.open(tiny.path)


@pytest.mark.parametrize("file", ["weights.safetensors", "bundle.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_refused(tiny, file, share):
    path = tiny.path / file
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=f"{path}: "):
        Bundle.open(tiny.path)


@pytest.mark.parametrize("file", ["weights.safetensors", "bundle.json"])
def test_a_missing_file_is_refused(tiny, file):
    (tiny.path / file).unlink()
    with pytest.raises(InputError, match=r"missing; get the bundle again|not a bundle \(it has no bundle.json\)"):
        Bundle.open(tiny.path)


def test_a_manifest_edited_by_hand_says_how_to_accept_it(tiny):
    raw = json.loads((tiny.path / "bundle.json").read_text())
    raw["name"] = "renamed"
    (tiny.path / "bundle.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="manifest_sha256"):
        Bundle.open(tiny.path)
    del raw["manifest_sha256"]
    (tiny.path / "bundle.json").write_text(json.dumps(raw))
    assert Bundle.open(tiny.path).name == "renamed"


class TestForgeries:
    """Manifests whose own digest is right, as a hostile or careless maker would write them."""

    @pytest.fixture
    def forge(self, tiny):
        def write(change):
            raw = json.loads((tiny.path / "bundle.json").read_text())
            raw.pop("manifest_sha256", None)
            change(raw)
            (tiny.path / "bundle.json").write_text(json.dumps(raw))
            return tiny.path

        return write

    def refused(self, path, message):
        with pytest.raises(InputError, match=message) as caught:
            Bundle.open(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["../outside.xml", "/etc/passwd", "exports/../../x"])
    def test_an_export_outside_the_bundle_is_refused(self, forge, name):
        export = {"subnet": "s30", "format": "openvino", "files": {name: "0" * 64}}
        self.refused(forge(lambda raw: raw.update(exports=[export])), "lies outside the bundle")

    def test_an_export_through_a_link_is_refused(self, forge, tiny, tmp_path):
        (tmp_path / "secret").write_text("x")
        (tiny.path / "link").symlink_to(tmp_path / "secret")
        export = {"subnet": "s30", "format": "openvino", "files": {"link": "0" * 64}}
        self.refused(forge(lambda raw: raw.update(exports=[export])), "lies outside the bundle")

    def test_an_export_of_no_subnet_or_no_file_is_refused(self, forge):
        export = {"subnet": "s31", "format": "openvino", "files": {"a": "0"}}
        self.refused(forge(lambda raw: raw.update(exports=[export])), "'s31' is not in this bundle")
        export = {"subnet": "s30", "format": "openvino", "files": {}}
        self.refused(forge(lambda raw: raw.update(exports=[export])), "lists no files")

    @pytest.mark.parametrize("name", ["../s30", "a/b", "", ".hidden", "s 30", "s30\n"])
    def test_a_subnet_name_that_is_no_file_name_is_refused(self, forge, name):
        self.refused(forge(lambda raw: raw["subnets"][0].update(name=name)), "is not made of letters, digits")

    def test_a_ladder_that_is_not_nested_is_refused(self, forge):
        def swap(raw):
            raw["subnets"] = raw["subnets"][::-1]

        self.refused(forge(swap), "the ladder is not nested: group")

    @pytest.mark.parametrize("width", [0, -4, 99])
    def test_widths_the_weights_do_not_have_are_refused(self, forge, width):
        def widen(raw):
            for entry in raw["subnets"]:
                entry["widths"]["conv1"] = width

        self.refused(forge(widen), "group 'conv1' needs 1 to 8 channels|at least 1")

    def test_a_group_larger_than_its_tensors_is_refused(self, forge):
        def widen(raw):
            raw["groups"][0]["width"] = 99
            raw["subnets"][-1]["widths"][raw["groups"][0]["name"]] = 99

        self.refused(forge(widen), "has shape .* needs 99 on axis 0")

    def test_labels_no_layer_answers_with_are_refused(self, forge):
        self.refused(forge(lambda raw: raw.update(labels=["one"] * 7)), "lists 7 labels")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda raw: raw.update(schema=2), "schema is 2, this version reads 1"),
            (lambda raw: raw.pop("schema"), "schema is None"),
            (lambda raw: raw.update(colour="red"), "unknown field `colour`"),
            (lambda raw: raw.pop("groups"), "missing required field `groups`"),
            (lambda raw: raw["input"].update(height="tall"), r"\$.input.height"),
            (lambda raw: raw.update(subnets=[]), "at least one subnet"),
        ],
    )
    def test_a_wrong_key_is_named(self, forge, change, message):
        self.refused(forge(change), message)

    def test_what_is_no_json_object_is_refused(self, tiny):
        for text in ("[1, 2]", "null", "{", "\ud83d".encode("utf-8", "surrogatepass")):
            write_atomically(tiny.path / "bundle.json", text if isinstance(text, bytes) else text.encode())
            self.refused(tiny.path, "bundle.json: ")

    def test_a_manifest_of_absurd_size_is_not_read(self, tiny):
        with (tiny.path / "bundle.json").open("wb") as file:
            file.truncate(17 * 2**20)
        self.refused(tiny.path, "larger than")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.update({"s30/bn1.weight": np.ones(3, np.float32)}), r"'s30/bn1.weight' has shape \[3\]"),
            (lambda t: t.pop("s30/bn1.weight"), "'bn1.weight' of subnet 's30' is missing"),
            (lambda t: t.update({"conv1.weight": t["conv1.weight"][:7]}), "'conv1.weight' has shape"),
            (lambda t: t.pop("layer1.0.conv1.weight"), "'layer1.0.conv1.weight' of subnet 's30' is missing"),
            (lambda t: t.update({"s99/bn1.weight": np.ones(3, np.float32)}), "'s99/bn1.weight' belongs to no subnet"),
        ],
    )
    def test_weights_of_the_wrong_shape_are_refused(self, tiny, resave, change, message):
        tensors = tiny.tensors()
        change(tensors)
        self.refused(resave(tiny, tensors).path, message)


class TestKey:
    def test_it_survives_what_changes_no_answer(self, tiny):
        key = tiny.key
        measured = {"s30": wilson(90, 100, "digits test")}
        assert len(key) == 16 and tiny.with_accuracy(measured).key == key
        (tiny.path / "exports").mkdir()
        (tiny.path / "exports" / "s30.xml").write_text("<net/>")
        exported = tiny.add_export("s30", "openvino", [tiny.path / "exports" / "s30.xml"])
        assert exported.key == key == exported.rewrite(name="other", labels=tuple("abcdefghij"), provenance={}).key
        moved = shutil.copytree(tiny.path, tiny.path.parent / "elsewhere")
        assert Bundle.open(moved).key == key

    def test_it_changes_with_weights_widths_and_input(self, tiny, resave):
        keys = {tiny.key}
        tensors = tiny.tensors()
        keys.add(tiny.rewrite(input=msgspec.structs.replace(tiny.input, mean=(0.4,))).key)
        first, *others = tiny.manifest.subnets
        narrower = msgspec.structs.replace(first, widths={**first.widths, "conv1": 1})
        keys.add(tiny.rewrite(subnets=(narrower, *others)).key)
        tensors["fc.bias"] = tensors["fc.bias"] + np.float32(1e-6)
        keys.add(resave(tiny, tensors).key)
        assert len(keys) == 4


class TestExports:
    def test_they_are_found_checked_and_replaced(self, tiny):
        files = [tiny.path / "exports" / name for name in ("s30.xml", "s30.bin")]
        files[0].parent.mkdir()
        for file in files:
            file.write_text(file.name)
        assert tiny.export("s30", "openvino") is None
        bundle = tiny.add_export("s30", "openvino", files).add_export("s60", "onnx", files[1:])
        bundle = Bundle.open(bundle.add_export("s30", "openvino", files).path)
        assert [(e.subnet, e.format) for e in bundle.manifest.exports] == [("s60", "onnx"), ("s30", "openvino")]
        assert bundle.export("s30", "openvino") == files[0] and bundle.export("s30", "onnx") is None
        bundle.verify()
        files[1].write_text("other")
        with pytest.raises(InputError, match=r"s30.bin: damaged \(SHA-256 is"):
            bundle.verify()
        files[1].unlink()
        with pytest.raises(InputError, match=r"s30.bin: named in bundle.json but missing"):
            bundle.verify()


class TestSave:
    def manifest(self, **changes):
        base = Manifest(
            schema=SCHEMA,
            name="b",
            architecture=Architecture(name="hand"),
            input=InputSpec(channels=2, height=4, width=4, mean=(0.5, 0.5), std=(0.2, 0.2)),
            labels=("x", "y", "z"),
            groups=(ChannelGroup(name="a", width=6, members=(Member("w", 0), Member("v", 1, 2))),),
            subnets=(SubnetEntry(name="s100", widths={"a": 6}, macs=1, parameters=1),),
            weights_sha256="",
        )
        return msgspec.structs.replace(base, **changes)

    @pytest.mark.parametrize(
        ("changes", "tensors"),
        [
            ({"labels": ("only", "two")}, TENSORS),
            ({}, {"w": TENSORS["w"], "head.weight": TENSORS["head.weight"]}),
            ({"subnets": (SubnetEntry(name="../x", widths={"a": 6}, macs=1, parameters=1),)}, TENSORS),
            ({"exports": (Export(subnet="s100", format="onnx", files={"../../x": "0"}),)}, TENSORS),
        ],
    )
    def test_a_bad_bundle_never_destroys_the_one_that_is_there(self, tmp_path, changes, tensors):
        good = save(tmp_path / "b", self.manifest(), TENSORS, "the old card")
        with pytest.raises(InputError):
            save(tmp_path / "b", self.manifest(**changes), tensors, "a new card")
        assert Bundle.open(tmp_path / "b").manifest == good.manifest
        assert (tmp_path / "b" / "README.md").read_text() == "the old card"
        assert [path.name for path in tmp_path.iterdir()] == ["b"]

    def test_a_good_one_replaces_it_whole(self, tmp_path):
        save(tmp_path / "b", self.manifest(), TENSORS, "old")
        (tmp_path / "b" / "exports").mkdir()
        changed = {**TENSORS, "w": TENSORS["w"] + 1}
        save(tmp_path / "b", self.manifest(), changed, "new")
        assert np.array_equal(Bundle.open(tmp_path / "b").tensors()["w"], changed["w"])
        assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["README.md", "bundle.json", "weights.safetensors"]
        assert [path.name for path in tmp_path.iterdir()] == ["b"]

    def test_the_old_bundle_comes_back_when_the_move_fails(self, tmp_path, monkeypatch):
        from pathlib import Path

        good = save(tmp_path / "b", self.manifest(), TENSORS, "old")
        replace = Path.replace

        def failing(self, target):
            if self.name.startswith(".b-") and target == tmp_path / "b":
                raise OSError(28, "No space left on device")
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", failing)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path / "b", self.manifest(), TENSORS, "new")
        assert Bundle.open(tmp_path / "b").manifest == good.manifest
        assert [path.name for path in tmp_path.iterdir()] == ["b"]

    def test_what_is_not_a_bundle_is_never_replaced(self, tmp_path):
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.tex").write_text("years of work")
        for place in ("home", "home/thesis.tex"):
            with pytest.raises(InputError, match="exists and is not a bundle"):
                save(tmp_path / place, self.manifest(), TENSORS, "")
        assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"

    def test_the_current_folder_can_be_a_bundle(self, tmp_path, monkeypatch):
        from pathlib import Path

        save(tmp_path / "b", self.manifest(), TENSORS, "old")
        monkeypatch.chdir(tmp_path / "b")
        save(Path(), self.manifest(name="again"), TENSORS, "new")
        assert Bundle.open(tmp_path / "b").name == "again"


def test_what_the_smaller_subnets_add_is_their_batch_norm(tiny):
    added, whole = tiny.added()
    everything = tiny.tensors()
    assert whole == sum(value.size for value in tiny.tensors("s100").values())
    assert added["batch-norm"] == sum(v.size for name, v in everything.items() if name.startswith(("s30/", "s60/")))
    assert added["heads"] == 0


def test_a_head_of_a_subnets_own_is_counted_apart(tiny, resave):
    tensors = tiny.tensors()
    heads = {f"s30/fc.{name}": tiny.tensors("s30")[f"fc.{name}"] for name in ("weight", "bias")}
    before, after = tiny.added()[0], resave(tiny, {**tensors, **heads}).added()[0]
    assert after == {**before, "heads": sum(value.size for value in heads.values())}


@pytest.mark.parametrize(
    ("name", "shape", "shares", "limit"),
    [
        ("resnet20", (3, 32, 32), [k / 9 for k in range(1, 10)], 0.08),
        ("resnet18", (3, 64, 64), [0.2, 0.4, 0.66, 1.0], 0.01),
    ],
)
def test_subnets_add_little_to_the_full_network(name, shape, shares, limit, tmp_path):
    """Nine of ResNet-20 under 8 % of its size, four of ResNet-18 under 1 %, as 'gearshift bundle show' prints it."""
    from subnets import architectures
    from subnets.allocation import Limits, greedy
    from subnets.groups import trace
    from subnets.importance import norm_scores
    from subnets.sampling import _entries
    from subnets.supernet import Supernet

    network = architectures.build(name, num_classes=10)
    traced = trace(network, shape)
    align = 2 if name == "resnet20" else 8
    ladder = greedy(traced, norm_scores(network, traced), shares, Limits(align=align))
    manifest = Manifest(
        schema=SCHEMA,
        name=name,
        architecture=Architecture(name=name),
        input=InputSpec(channels=3, height=shape[1], width=shape[2], mean=(0.5,) * 3, std=(0.25,) * 3),
        labels=(),
        groups=traced.groups,
        subnets=_entries(traced, ladder),
        weights_sha256="",
    )
    bundle = save(tmp_path / name, manifest, Supernet(network, traced.groups, ladder).tensors(), "card")
    added, whole = bundle.added()
    # Statistics and affine are four numbers a batch-norm channel, and every subnet but the full one adds its own.
    norms = sum(4 * len(v) for n, v in bundle.tensors().items() if n.endswith("running_var") and "s100/" not in n)
    assert added == {"batch-norm": norms, "heads": 0} and 0 < norms < limit * whole


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (7, 10), (9000, 10000), (10, 10)])
def test_the_wilson_interval_solves_its_own_equation(correct, n):
    """The bounds are the p for which the observed share lies 1.96 standard errors of p away."""
    found = wilson(correct, n, "x test")
    for bound in (found.low, found.high):
        assert abs(correct / n - bound) == pytest.approx(1.959964 * (bound * (1 - bound) / n) ** 0.5, abs=1e-7)
    assert found.low <= found.value <= found.high and found.n == n


def test_writing_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"one")
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")
    assert path.read_bytes() == b"one" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_bundle_whose_weights_are_no_safetensors_is_refused_even_when_the_hash_fits(tiny):
    weights = tiny.path / "weights.safetensors"
    weights.write_bytes(b"\xff" * 64)
    tiny.rewrite(weights_sha256=sha256(weights))
    with pytest.raises(InputError, match=r"weights.safetensors: damaged"):
        Bundle.open(tiny.path)
    save_file({}, weights)
    tiny.rewrite(weights_sha256=sha256(weights))
    with pytest.raises(InputError, match="is missing"):
        Bundle.open(tiny.path)
