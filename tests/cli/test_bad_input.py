"""What users get wrong, each answered by exit code 2 and one sentence that names it."""

import json

import pytest


def flip(path, where):
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)


class TestBundles:
    @pytest.mark.parametrize("file", ["weights.safetensors", "bundle.json"])
    @pytest.mark.parametrize("command", [("bundle", "show"), ("bundle", "verify"), ("calibrate",), ("export",)])
    def test_one_byte_flipped(self, refused, bundle, file, command):
        flip(bundle / file, 0.6)
        said = refused(*command, bundle)
        assert said.startswith(f"{bundle / file}: ") and "get the bundle again" in said

    def test_a_damaged_export(self, refused, bundle):
        from subnets.bundle import Bundle

        (bundle / "s30.xml").write_text("<net/>")
        Bundle.open(bundle).add_export("s30", "openvino", [bundle / "s30.xml"])
        flip(bundle / "s30.xml", 0.5)
        assert "s30.xml: damaged" in refused("bundle", "verify", bundle)

    def test_a_ladder_that_is_not_nested(self, refused, bundle):
        raw = json.loads((bundle / "bundle.json").read_text())
        raw.pop("manifest_sha256")
        raw["subnets"].reverse()
        (bundle / "bundle.json").write_text(json.dumps(raw))
        assert "not nested: group" in refused("bundle", "show", bundle)

    def test_a_good_one_is_sound(self, gearshift, bundle):
        result = gearshift("bundle", "verify", bundle)
        assert result.code == 0 and "sound; 2 nested subnets" in " ".join(result.out.split())


class TestData:
    def test_a_missing_cifar_batch(self, refused, bundle, cifar):
        (cifar / "data_batch_4").unlink()
        said = refused("train", bundle, "--data", cifar, "--no-compile")
        assert said.startswith(f"{cifar / 'data_batch_4'}: this CIFAR-10 batch is missing")

    def test_a_truncated_cifar_batch(self, refused, made, cifar, tmp_path):
        file = cifar / "test_batch"
        file.write_bytes(file.read_bytes()[:5000])
        options = ("--arch", "tinynet", "--data", cifar, "--out", tmp_path / "out")
        assert refused("sample", made / "tinynet.safetensors", *options).startswith(f"{file}: not a readable CIFAR-10")

    def test_data_the_bundle_does_not_take(self, refused, bundle, cifar):
        said = refused("train", bundle, "--data", cifar, "--no-compile", "--epochs", 1)
        assert "takes 10 classes of (1, 16, 16)" in said

    def test_nothing_there(self, refused, tmp_path):
        said = refused("pretrain", "tinynet", "--data", tmp_path / "nowhere", "--out", tmp_path / "x.safetensors")
        assert "nowhere' is not there; give 'digits'" in said

    def test_a_folder_without_training_images(self, refused, image_folder, tmp_path):
        import shutil

        shutil.rmtree(image_folder / "train")
        options = ("--data", image_folder, "--out", tmp_path / "x.safetensors", "--no-compile")
        assert "no training images" in refused("pretrain", "tinynet", *options)


class TestCheckpoints:
    @pytest.fixture
    def sampling(self, refused, made, tmp_path):
        def run(checkpoint=None, **options):
            given = {"arch": "tinynet", "data": "digits", "out": tmp_path / "out", **options}
            words = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)]
            said = refused("sample", checkpoint or made / "tinynet.safetensors", *words)
            assert not (tmp_path / "out").exists()
            return said

        return run

    def test_another_architecture(self, sampling, made):
        said = sampling(arch="resnet20")
        assert said.startswith(f"{made / 'tinynet.safetensors'}: this checkpoint is of another architecture")

    def test_an_unknown_architecture(self, sampling):
        assert sampling(arch="tinynett") == "architecture 'tinynett' is unknown; did you mean 'tinynet'?"

    def test_a_truncated_file(self, sampling, made, tmp_path):
        short = tmp_path / "short.safetensors"
        short.write_bytes((made / "tinynet.safetensors").read_bytes()[:5000])
        assert sampling(short).startswith(f"{short}: not a checkpoint of plain tensors")

    def test_a_missing_file(self, sampling, tmp_path):
        assert "no such checkpoint" in sampling(tmp_path / "none.pth")

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"budgets": "a quarter"}, "--budgets 'a quarter' is not a list of shares"),
            ({"budgets": "0.001", "score": "norm"}, "budget 0.001 (s0) cannot be met"),
            ({"score": "size"}, "score 'size' is unknown"),
            ({"allocation": "magic", "score": "norm"}, "allocation 'magic' is unknown"),
            ({"space": "all", "score": "norm"}, "space 'all' is unknown"),
        ],
    )
    def test_impossible_options(self, sampling, options, says):
        assert says in sampling(**options)

    @pytest.mark.parametrize(
        ("option", "value", "says"),
        [
            ("--epochs", 0, "epochs 0"),
            ("--seed", -1, "seed -1"),
            ("--learning-rate", "nan", "learning rate nan"),
            ("--middle", -1, "middle -1"),
        ],
    )
    def test_recipes_that_make_no_sense(self, refused, bundle, option, value, says):
        assert says in refused("train", bundle, "--data", "digits", "--no-compile", option, value)

    def test_a_leftover_training_state_of_another_run(self, refused, bundle, tmp_path):
        (tmp_path / "toy.checkpoint").write_bytes(b"half a file")
        said = refused("train", bundle, "--data", "digits", "--no-compile", "--epochs", 1)
        assert said.startswith(f"{tmp_path / 'toy.checkpoint'}: not a readable checkpoint")


class TestSimulation:
    TRACE = ("--trace", "poisson:rate=1,hours=0.01", "--deadline", "50ms")

    def test_an_unknown_policy(self, refused, table_file):
        assert "composite" in refused("simulate", table_file, *self.TRACE, "--policy", "compsite")

    def test_an_unknown_option_of_a_policy(self, refused, table_file):
        said = refused("simulate", table_file, *self.TRACE, "--policy", "static", "--option", "static.subnt=s30")
        assert "subnt" in said

    def test_a_trace_with_times_going_backwards(self, refused, table_file, tmp_path):
        trace = tmp_path / "trace.csv"
        trace.write_text("time_s,arrival\n0.0,1\n2.0,1\n1.0,1\n")
        assert str(trace) in refused("simulate", table_file, "--trace", trace, "--deadline", "50ms")

    def test_a_table_of_another_bundle(self, refused, gearshift, table_file, bundle):
        from subnets.bundle import Bundle

        opened = Bundle.open(bundle)
        arguments = ("simulate", table_file, *self.TRACE, "--bundle", bundle, "--policy", "largest", "--only")
        assert gearshift(*arguments).code == 0
        opened.rewrite(input=opened.input.__class__(channels=1, height=16, width=16, mean=(0.1,), std=(0.2,)))
        said = refused(*arguments)
        assert "bundle" in said and "toy" in said
        assert gearshift(*arguments, "--force").code == 0

    def test_a_truncated_table(self, refused, table_file):
        table_file.write_bytes(table_file.read_bytes()[:300])
        assert str(table_file) in refused("table", "show", table_file)


class TestConfiguration:
    def test_an_unknown_key_is_named(self, refused, gearshift, tmp_path):
        written = gearshift("config", "init", "agent.toml")
        assert written.code == 0
        (tmp_path / "agent.toml").write_text("[agent]\npolcy = 'static'\n")
        assert "polcy" in refused("config", "check", "agent.toml")
