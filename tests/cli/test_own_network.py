"""Networks and checkpoints of a user's own, from command line to engine."""

import importlib.util
import shutil
import sys

import msgspec
import numpy as np
import pytest

from subnets.bundle import Bundle

QUICK = ("--epochs", 1, "--no-compile", "--precision", "f32")
CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.norm = nn.Conv2d(1, width, 3, 2), nn.BatchNorm2d(width)
        self.b, self.fc = nn.Conv2d(width, width, 3), nn.Linear(2 * width * 25, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.a(x)))
        x = torch.cat([x[:, :, 1:-1, 1:-1], torch.relu(self.b(x))], 1)
        return self.fc(x.view(x.size(0), -1))


class Chunked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(4, 10)

    def forward(self, x):
        x, y = self.a(x).chunk(2, 1)
        return self.fc((x * y).mean((2, 3)))


def make(width=8):
    torch.manual_seed(0)
    return Net(width)
"""


@pytest.fixture
def few_digits(monkeypatch):
    """The digits, but only the first 64 of each split: the commands run as they are."""
    import subnets.data
    from subnets.data import ArraySplit

    full = subnets.data.digits()
    few = {name: getattr(full, name) for name in ("train", "validation", "test")}
    few = {name: ArraySplit(split.images[:64], split.labels[:64]) for name, split in few.items()}
    dataset = msgspec.structs.replace(full, **few)
    monkeypatch.setattr(subnets.data, "digits", lambda: dataset)


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A module of the user's in the current folder, forgotten afterwards."""
    from subnets import architectures

    monkeypatch.setattr(architectures, "_own", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "gs_mine.py").write_text(CODE)
    yield "gs_mine:make"
    sys.modules.pop("gs_mine", None)


@pytest.fixture
def own_bundle(gearshift, code, few_digits, tmp_path):
    """A bundle of the user's network, sampled by the command."""
    options = ("--data", "digits", "--budgets", "0.5,1", "--score", "norm", "--align", 2, "--argument", "width=12")
    result = gearshift("sample", "--module", code, *options, "--out", "own")
    assert result.code == 0, result.err
    return tmp_path / "own"


@pytest.fixture
def forget(monkeypatch, tmp_path):
    """Takes the user's code away, as on another machine."""
    from subnets import architectures

    def away():
        monkeypatch.setattr(architectures, "_own", {})
        (tmp_path / "gs_mine.py").unlink()
        sys.modules.pop("gs_mine", None)

    return away


def test_a_network_of_ones_own_is_sampled_trained_and_exported(gearshift, own_bundle, code):
    before = Bundle.open(own_bundle)
    described = before.manifest.architecture
    assert (described.name, described.arguments) == (code, {"width": 12})
    assert before.manifest.provenance["pretraining"] == {"factory": code}
    trained = gearshift("train", "own", "--module", code, "--data", "digits", *QUICK)
    assert trained.code == 0, trained.err
    assert Bundle.open(own_bundle).key != before.key
    exported = gearshift("export", "own", "--module", code)
    assert exported.code == 0 and "s50" in exported.out, exported.err


def test_another_ladder_is_sampled_from_a_bundle_of_ones_own_network(gearshift, refused, own_bundle, code, forget):
    command = ("sample", "own", "--data", "digits", "--budgets", "0.4,1", "--align", 2, "--out", "again")
    result = gearshift(*command, "--module", code)
    assert result.code == 0, result.err
    made = Bundle.open(own_bundle.parent / "again")
    assert (
        made.ladder.names == ("s40", "s100")
        and made.manifest.architecture == Bundle.open(own_bundle).manifest.architecture
    )
    forget()
    assert f"add --module {code}" in refused(*command)


def test_with_its_exports_a_bundle_needs_the_code_no_more(gearshift, refused, own_bundle, code, forget, tmp_path):
    import torch

    from backends import CompileRequest
    from backends.openvino import OpenVINOBackend
    from subnets import from_pretrained

    images = np.random.default_rng(0).standard_normal((1, 1, 16, 16), np.float32)
    with torch.no_grad():
        expected = {name: from_pretrained(own_bundle, name)(torch.from_numpy(images)) for name in ("s50", "s100")}
    said = {}
    assert gearshift("export", "own", "--module", code).code == 0
    forget()
    said["onnx"] = refused("export", "own", "--format", "onnx")
    said["train"] = refused("train", "own", "--data", "digits", *QUICK)
    assert all(f"add --module {code}" in sentence for sentence in said.values()), said
    assert "no module 'gs_mine'" in refused("export", "own", "--module", code)
    assert gearshift("bundle", "verify", "own").code == 0
    for arguments in (("--format", "module"), ("--format", "triton", "--out", "models")):
        result = gearshift("export", "own", *arguments)
        assert result.code == 0, result.err
    assert (tmp_path / "models" / "own-s50" / "config.pbtxt").is_file()
    bundle, backend = Bundle.open(own_bundle), OpenVINOBackend(tmp_path / "cache")
    for subnet, logits in expected.items():
        engine = backend.load(backend.build(bundle, CompileRequest(subnet=subnet)))
        np.testing.assert_allclose(engine.infer(images), logits.numpy(), atol=0.05)
        engine.close()


def test_without_the_code_nothing_is_imported_for_a_bundle(refused, own_bundle, code, monkeypatch):
    from subnets import architectures

    monkeypatch.setattr(architectures, "_own", {})
    sys.modules.pop("gs_mine", None)
    assert "runs only when you name it" in refused("export", "own")
    assert "gs_mine" not in sys.modules


def test_channel_chunking_is_refused_in_one_sentence(refused, code, few_digits):
    said = refused("sample", "--module", "gs_mine:Chunked", "--data", "digits", "--out", "b")
    assert said.startswith("channels cannot be followed through 'chunk'")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give either --arch, one of Gearshift's networks, or --module"),
        (("--module", "gs_mine:make", "--arch", "resnet20"), "give either --arch"),
        (("--module", "gs_mine"), "is not package.module:factory"),
        (("--arch", "resnet20"), "CHECKPOINT is missing"),
        (("--module", "gs_mine:make", "--input-shape", "3,16"), "is not CHANNELS,HEIGHT,WIDTH"),
        (("--module", "gs_mine:make", "--input-shape", "3,16,16"), "the images of digits are (1, 16, 16)"),
        (("--module", "gs_mine:make", "--mean", "0.5,0.5,0.5"), "--mean '0.5,0.5,0.5' must be 1 numbers finite"),
        (("--module", "gs_mine:make", "--std", "0"), "--std '0' must be 1 numbers above 0"),
        (("--module", "gs_mine:make", "--labels", "a,b"), "--labels gives 2 names; digits has 10 classes"),
        (("--module", "gs_mine:make", "--grouper", "magic"), "grouper 'magic' is unknown"),
        (("--module", "gs_mine:make", "--argument", "depth=3"), "'gs_mine:make' failed with arguments {'depth': 3}"),
    ],
)
def test_what_describes_a_network_wrongly_is_refused(refused, code, few_digits, options, said):
    assert said in refused("sample", "--data", "digits", "--out", "b", *options)


def test_normalisation_and_labels_are_the_users(gearshift, code, few_digits, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij") + "\n")
    options = ("--mean", "0.25", "--std", "0.5", "--labels", "names.txt", "--input-shape", "1,16,16", "--align", 2)
    result = gearshift("sample", "--module", code, "--data", "digits", "--budgets", "1", *options, "--out", "b")
    assert result.code == 0, result.err
    bundle = Bundle.open(tmp_path / "b")
    assert (bundle.input.mean, bundle.input.std, bundle.labels) == ((0.25,), (0.5,), tuple("abcdefghij"))


def published(state, x):
    """ResNet-20 as its authors describe it, with a zero-padded shortcut: He et al. 2016, section 4.2, option A."""
    import torch
    from torch.nn import functional

    def norm(x, name):
        tensors = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *tensors)

    x = torch.relu(norm(functional.conv2d(x, state["conv1.weight"], padding=1), "bn1"))
    for stage in (1, 2, 3):
        for block in range(3):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = functional.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = functional.conv2d(torch.relu(norm(y, f"{name}.bn1")), state[f"{name}.conv2.weight"], padding=1)
            if stride == 2:
                quarter = x.shape[1] // 2
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
            x = torch.relu(norm(y, f"{name}.bn2") + x)
    return functional.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


def test_a_downloaded_checkpoint_goes_the_whole_way(gearshift, cifar, shared_data, tmp_path):
    """A CIFAR ResNet-20 as many have it, with the normalisation it was trained with."""
    import torch

    from subnets import from_pretrained

    checkpoint = shared_data / "data" / "resnet20-12fca82f.th"
    if not checkpoint.is_file():
        pytest.skip("../shared/data/resnet20-12fca82f.th is not here")
    shutil.copy(checkpoint, tmp_path / "theirs.th")
    how = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--budgets", "0.4,1", "--score", "norm")
    result = gearshift("sample", "theirs.th", "--arch", "resnet20", "--data", cifar, *how, "--align", 4, "--out", "b")
    assert result.code == 0, result.err
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.input.mean == (0.485, 0.456, 0.406) and bundle.input.std == (0.229, 0.224, 0.225)
    stored = torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"]
    state = {name.removeprefix("module."): value for name, value in stored.items()}
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    x = torch.from_numpy(bundle.input.preprocess(images))
    with torch.no_grad():
        found, expected = from_pretrained(bundle.path, "s100")(x), published(state, x)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    assert gearshift("train", "b", "--data", cifar, *QUICK, "--learning-rate", 0.001).code == 0
    assert gearshift("export", "b").code == 0
    assert Bundle.open(tmp_path / "b").export("s40", "openvino").is_file()


def test_exports_are_listed_and_their_options_kept_apart(gearshift, bundle, tmp_path):
    result = gearshift("export", bundle, "--format", "module", "--json", "list.json")
    assert result.code == 0, result.err
    listed = msgspec.json.decode((tmp_path / "list.json").read_bytes())["exports"]
    assert [row["file"] for row in listed] == [f"exports/module/{name}/spec.json" for name in ("s30", "s100")]
    for wrong in (
        ("--format", "triton"),
        ("--format", "onnx", "--out", "x"),
        ("--format", "onnx", "--precision", "int8"),
        ("--format", "module", "--data", "digits"),
    ):
        assert gearshift("export", bundle, *wrong).code == 2
    assert Bundle.open(bundle).manifest.exports[0].format == "module"


def test_onnx_is_written_and_what_subnets_add_is_shown(gearshift, bundle):
    if importlib.util.find_spec("onnx") is None:
        pytest.skip("onnx is not installed")
    assert gearshift("export", bundle, "--format", "onnx").code == 0
    added, whole = Bundle.open(bundle).added()
    shown = " ".join(gearshift("bundle", "show", bundle).out.split())
    assert f"of batch-norm, {sum(added.values()) / whole:.1%} of its size" in shown and "onnx" in shown
