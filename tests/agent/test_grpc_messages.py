"""Our messages against those of Triton's own client: same names, numbers, types, and the same bytes."""

import pytest

from agent.grpc_messages import HEALTH, INFERENCE

pytest.importorskip("tritonclient.grpc")
from google.protobuf import json_format
from google.protobuf.unknown_fields import UnknownFieldSet
from tritonclient.grpc import model_config_pb2, service_pb2

NOT_OURS = ("TraceSetting", "LogSettings")
OURS_ONLY = {"ModelMetadataResponse": {"properties"}}  # the Open Inference Protocol's
CONFIGURATION = {"ModelConfig", "ModelInput", "ModelOutput", "ModelParameter", "ModelVersionPolicy"}  # a part of theirs


def theirs(name):
    """Triton's class of the same name."""
    outer, *inner = name.split(".")
    found = getattr(service_pb2, outer, None) or getattr(model_config_pb2, outer)
    for part in inner:
        found = getattr(found, part)
    return found


def filled(cls, only=None):
    """A message of a class with every field set to something that is not its default."""
    message = cls()
    for place, field in enumerate(cls.DESCRIPTOR.fields, 1):
        if only is not None and field.name not in only:
            continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            for key in ("first", "second"):
                if value.message_type:
                    getattr(message, field.name)[key].CopyFrom(filled(value.message_type._concrete_class))
                else:
                    getattr(message, field.name)[key] = example(value, place)
        elif field.message_type:
            ours = INFERENCE.get(field.message_type.full_name.removeprefix("inference."))
            names = ours and {f.name for f in ours.DESCRIPTOR.fields}
            made = filled(field.message_type._concrete_class, names)
            if field.is_repeated:
                getattr(message, field.name).extend([made, made])
            else:
                getattr(message, field.name).CopyFrom(made)
        elif field.is_repeated:
            getattr(message, field.name).extend([example(field, place), example(field, place + 1)])
        else:
            setattr(message, field.name, example(field, place))
    return message


def example(field, place):
    """A value that tells fields apart, large or negative where the type allows."""
    return {
        field.CPPTYPE_BOOL: True,
        field.CPPTYPE_INT32: -place,
        field.CPPTYPE_INT64: -(2**40) - place,
        field.CPPTYPE_UINT32: 2**31 + place,
        field.CPPTYPE_UINT64: 2**63 + place,
        field.CPPTYPE_FLOAT: place / 4,
        field.CPPTYPE_DOUBLE: place / 3,
        field.CPPTYPE_ENUM: 2 if field.enum_type and len(field.enum_type.values) < 10 else 11,
        field.CPPTYPE_STRING: f"größe{place}" if field.type == field.TYPE_STRING else b"\x00\xff" + bytes([place]),
    }[field.cpp_type]


def told(message):
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


@pytest.mark.parametrize("name", INFERENCE)
def test_fields_are_declared_as_tritons_client_declares_them(name):
    def shape(field):
        kind = field.message_type or field.enum_type
        one_of = field.containing_oneof.name if field.containing_oneof else ""
        return field.number, field.type, field.is_repeated, kind.full_name if kind else "", one_of

    ours = {field.name: shape(field) for field in INFERENCE[name].DESCRIPTOR.fields}
    known = {field.name: shape(field) for field in theirs(name).DESCRIPTOR.fields}
    missing = set() if name in CONFIGURATION else set(known) - set(ours)
    assert not missing and set(ours) - set(known) == OURS_ONLY.get(name, set())
    assert {key: ours[key] for key in set(ours) & set(known)} == {key: known[key] for key in set(ours) & set(known)}


def test_every_message_of_tritons_service_is_there_but_tracing_and_logging():
    names = set(service_pb2.DESCRIPTOR.message_types_by_name)
    assert {name for name in names - set(INFERENCE) if not name.startswith(NOT_OURS)} == set()


@pytest.mark.parametrize("name", INFERENCE)
def test_what_triton_writes_we_read_and_the_other_way_round(name):
    mine, other = INFERENCE[name], theirs(name)
    names = {field.name for field in mine.DESCRIPTOR.fields}
    sent = filled(other, names)
    read = mine.FromString(sent.SerializeToString())
    assert told(read) == told(sent)
    assert len(UnknownFieldSet(read)) == 0
    written = filled(mine)
    back = other.FromString(written.SerializeToString())
    expected = {key: value for key, value in told(written).items() if key not in OURS_ONLY.get(name, ())}
    assert told(back) == expected and (expected or not names)


def test_enumerations_have_tritons_values():
    data_types = {value.name: value.number for value in model_config_pb2.DataType.DESCRIPTOR.values}
    ours = INFERENCE["ModelInput"].DESCRIPTOR.fields_by_name["data_type"].enum_type
    assert {value.name: value.number for value in ours.values} == data_types
    formats = {value.name: value.number for value in model_config_pb2.ModelInput.Format.DESCRIPTOR.values}
    ours = INFERENCE["ModelInput"].DESCRIPTOR.fields_by_name["format"].enum_type
    assert {value.name: value.number for value in ours.values} == formats


def test_a_configuration_with_fields_that_we_do_not_know_keeps_them():
    config = model_config_pb2.ModelConfig(name="m", default_model_filename="model.onnx")
    read = INFERENCE["ModelConfig"].FromString(config.SerializeToString())
    assert read.name == "m"
    assert model_config_pb2.ModelConfig.FromString(read.SerializeToString()) == config


def test_properties_of_a_model_have_the_open_inference_protocols_number():
    told = INFERENCE["ModelMetadataResponse"](properties={"a": "b"})
    assert told.SerializeToString() == bytes([6 << 3 | 2, 6]) + b"\x0a\x01a\x12\x01b"


def test_health_messages_have_the_bytes_that_the_health_protocol_says():
    assert HEALTH["HealthCheckRequest"](service="abc").SerializeToString() == b"\x0a\x03abc"
    for state, number in (("SERVING", 1), ("NOT_SERVING", 2), ("SERVICE_UNKNOWN", 3)):
        assert HEALTH["HealthCheckResponse"](status=state).SerializeToString() == bytes([0x08, number])
