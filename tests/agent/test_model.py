"""What every front door tells of the model and understands of a request, apart from any protocol's bytes."""

import msgspec
import numpy as np
import pytest

from agent.model import NO_WISHES, NotFound, ServedModel, Unsupported, pack_bytes
from subnets.errors import Busy, InputError


@pytest.fixture
def model(make_agent):
    return ServedModel(make_agent(), "1.2.3", max_images=8, model_control=True)


def test_versions_are_places_on_the_ladder(model):
    assert model.versions == ("1", "2", "3", "4")
    assert [model.subnet_of("tiny", version) for version in model.versions] == ["s25", "s50", "s75", "s100"]
    assert all(model.version_of(model.subnet_of("tiny", version)) == version for version in model.versions)
    assert model.subnet_of("tiny", None) is None and model.subnet_of("tiny", "") is None


def test_a_subnet_without_a_row_in_the_table_has_no_version_and_the_others_keep_theirs(make_agent, table):
    rows = tuple(row for row in table.rows if row.subnet != "s50")
    switches = tuple(each for each in table.switches if ":s50" not in f":{each.from_point}:{each.to_point}")
    model = ServedModel(make_agent(table=msgspec.structs.replace(table, rows=rows, switches=switches)))
    assert model.versions == ("1", "3", "4") and model.subnet_of("tiny", "3") == "s75"
    with pytest.raises(NotFound, match="no version 2; it has 1, 3, 4"):
        model.subnet_of("tiny", "2")


@pytest.mark.parametrize(("name", "version"), [("other", None), ("tiny", "5"), ("tiny", "01"), ("x" * 5000, "1")])
def test_another_model_or_version_is_not_found_and_quoted_in_short(model, name, version):
    with pytest.raises(NotFound, match="Request for unknown model") as caught:
        model.subnet_of(name, version)
    assert len(str(caught.value)) < 300


def test_metadata_and_configuration_tell_the_same_shapes(model):
    metadata, config = model.metadata(), model.config()
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    assert config["input"][0]["dims"] == metadata["inputs"][0]["shape"][1:]
    assert config["output"][0]["dims"] == metadata["outputs"][0]["shape"][1:]
    assert config["max_batch_size"] == 8 and config["parameters"]["subnet.2"] == {"string_value": "s50"}


def test_an_unloaded_model_answers_nobody_until_it_is_loaded_again(model, images):
    assert model.ready and model.index()[0]["state"] == "READY"
    model.unload("tiny")
    assert not model.ready and model.index(ready_only=True) == []
    assert {(entry["state"], entry["reason"]) for entry in model.index()} == {("UNAVAILABLE", "unloaded")}
    for ask in (model.submit, model.infer):
        with pytest.raises(Busy, match="a client has unloaded it"):
            ask(images[:1], NO_WISHES)
    model.load("tiny", {})
    assert model.ready and model.infer(images[:1], NO_WISHES).subnet == "s100"


def test_who_may_not_control_the_model_may_not_unload_it(make_agent):
    model = ServedModel(make_agent())
    with pytest.raises(Unsupported, match="model_control = true"):
        model.unload("tiny")
    assert model.ready


@pytest.mark.parametrize(
    ("name", "parameters", "error", "said"),
    [
        ("other", {}, NotFound, "there is no such model"),
        ("tiny", {"file:1/model": "AAAA"}, Unsupported, "files are not taken"),
        ("tiny", {"config": "{"}, InputError, "JSON object"),
        ("tiny", {"config": "[" * 100_000}, InputError, "JSON object"),
        ("tiny", {"config": 3}, InputError, "JSON object"),
        ("tiny", {"config": '{"max_batch_size": 9}'}, InputError, "'max_batch_size' cannot be changed"),
    ],
)
def test_loading_changes_nothing_and_says_so(model, name, parameters, error, said):
    with pytest.raises(error, match=said):
        model.load(name, parameters)


def test_loading_with_the_configuration_in_use_is_fine(model):
    model.load("tiny", {"config": '{"name": "tiny", "max_batch_size": 8}'})


def test_wishes_are_read_from_the_parameters(model):
    assert model.wishes({}, None) is NO_WISHES
    assert model.wishes({}, "s50").keywords() == {"subnet": "s50"}
    found = model.wishes({"timeout": 2500, "min_accuracy": 1, "stream": "front", "priority": 3, "mine": {}}, None)
    assert found.keywords() == {"deadline_ms": 2.5, "min_accuracy": 1.0, "stream": "front"}
    assert model.wishes({"timeout": 0}, None).keywords() == {}
    assert model.wishes({"subnet": "s25"}, "s25").subnet == "s25"


@pytest.mark.parametrize(
    "parameters",
    [
        {"timeout": -1},
        {"timeout": 1.5},
        {"timeout": True},
        {"timeout": 2**60},
        {"priority": "high"},
        {"min_accuracy": 1.1},
        {"min_accuracy": True},
        {"min_accuracy": float("nan")},
        {"stream": ""},
        {"stream": "x" * 129},
        {"stream": 3},
        {"subnet": "s60"},
        {"subnet": ["s25"]},
    ],
)
def test_a_wish_that_makes_no_sense_is_named(model, parameters):
    (name,) = parameters
    with pytest.raises(InputError, match=f"parameter '{name}' is"):
        model.wishes(parameters, None)


def test_a_subnet_must_not_contradict_the_version(model):
    with pytest.raises(InputError, match="the version asks for 's50'"):
        model.wishes({"subnet": "s25"}, "s50")


def test_classification_gives_the_best_classes_first_and_no_more_than_there_are(model):
    logits = np.array([[0.5, 2.0, -1.0], [3.0, 3.0, 4.0]], np.float32)
    labels = model.agent.bundle.labels
    strings, shape = model.classify(logits, 2)
    assert shape == (2, 2)
    assert strings == [
        f"2.000000:1:{labels[1]}".encode(),
        f"0.500000:0:{labels[0]}".encode(),
        f"4.000000:2:{labels[2]}".encode(),
        f"3.000000:0:{labels[0]}".encode(),  # of equals the first
    ]
    assert model.classify(logits, 99)[1] == (2, 3)


def test_strings_are_packed_after_their_lengths():
    assert pack_bytes([b"ab", b"", b"c"]) == b"\x02\0\0\0ab\0\0\0\0\x01\0\0\0c"


def test_the_reply_names_who_answered_and_leaves_out_an_energy_that_nobody_knows(model, images):
    told = model.reply_parameters(model.infer(images[:1], NO_WISHES))
    assert told["subnet"] == "s100" and told["expected_accuracy"] == 0.95 and told["queue_ms"] >= 0
    assert "energy_j" not in told
