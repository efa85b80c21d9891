"""Message classes from tables of fields, in descriptor pools of their own.

Generated protobuf modules register themselves in the process-wide pool, where a second definition of a name is an
error; a class made here clashes with nothing. Knows nothing of any protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

Message = Any  # made at run time, so its fields are not known to a type checker

_PROTO = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _PROTO.TYPE_BOOL,
    "int32": _PROTO.TYPE_INT32,
    "int64": _PROTO.TYPE_INT64,
    "uint32": _PROTO.TYPE_UINT32,
    "uint64": _PROTO.TYPE_UINT64,
    "float": _PROTO.TYPE_FLOAT,
    "double": _PROTO.TYPE_DOUBLE,
    "string": _PROTO.TYPE_STRING,
    "bytes": _PROTO.TYPE_BYTES,
}


class Field(NamedTuple):
    """A field: ``kind`` is a scalar's name, or a message's or enumeration's within the package."""

    number: int
    kind: str
    many: bool = False
    keyed: bool = False  # a map from strings
    choice: str = ""  # the oneof it belongs to


Fields = dict[str, Field]
Enums = dict[str, tuple[str, ...]]  # the values' names, numbered from 0


def one(number: int, kind: str) -> Field:
    """A field with one value."""
    return Field(number, kind)


def many(number: int, kind: str) -> Field:
    """A list."""
    return Field(number, kind, many=True)


def keyed(number: int, kind: str) -> Field:
    """A map from strings."""
    return Field(number, kind, keyed=True)


def choice(number: int, kind: str, of: str = "parameter_choice") -> Field:
    """One of several fields of which a message has at most one."""
    return Field(number, kind, choice=of)


def classes(package: str, messages: Mapping[str, Fields], enums: Enums) -> dict[str, Any]:
    """A class for each message, by its name.

    Args:
        package: prefix of all names.
        messages: fields by the message's name; ``Outer.Inner`` lies in ``Outer``, which comes before.
        enums: by name, the same way.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"gearshift/{package}.proto", package=package, syntax="proto3")
    made: dict[str, Message] = {}
    for name, fields in messages.items():
        outer, _, own = name.rpartition(".")
        made[name] = made[outer].nested_type.add(name=own) if outer else file.message_type.add(name=own)
        for field_name, field in fields.items():
            _add(made[name], f".{package}.", name, field_name, field, enums)
    for name, values in enums.items():
        outer, _, own = name.rpartition(".")
        enum = (made[outer] if outer else file).enum_type.add(name=own)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}


def _add(message: Message, prefix: str, owner: str, name: str, field: Field, enums: Enums) -> None:
    added = message.field.add(name=name, number=field.number, label=_PROTO.LABEL_OPTIONAL)
    if field.keyed:  # a map is a list of entries, a message of its own for each field
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add(entry, prefix, owner, "key", one(1, "string"), enums)
        _add(entry, prefix, owner, "value", one(2, field.kind), enums)
        added.type, added.type_name = _PROTO.TYPE_MESSAGE, f"{prefix}{owner}.{entry.name}"
    elif field.kind in _SCALARS:
        added.type = _SCALARS[field.kind]
    else:
        added.type = _PROTO.TYPE_ENUM if field.kind in enums else _PROTO.TYPE_MESSAGE
        added.type_name = prefix + field.kind
    if field.many or field.keyed:
        added.label = _PROTO.LABEL_REPEATED
    if field.choice:
        if not message.oneof_decl:
            message.oneof_decl.add(name=field.choice)
        added.oneof_index = 0
