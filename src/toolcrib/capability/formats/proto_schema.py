"""A .proto file to the class of its first message, without protoc.

proto2 and proto3 with nested messages, enums, maps, oneofs, groups and imports: of the well-known types, and of other
files beside it or in the allowed folders. Options, services and extensions do not matter for reading and are skipped.
Editions are refused: what their features change could not be honoured.
"""

from collections.abc import Iterable
from typing import Any, Final, NoReturn

from google.protobuf import (
    any_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from proto_schema_parser import ast
from proto_schema_parser.parser import Parser

from toolcrib.capability.formats.schema_files import read_schema

_MAX_FILES: Final = 64
_WELL_KNOWN: Final = {
    module.DESCRIPTOR.name: module.DESCRIPTOR.serialized_pb
    for module in (any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2)
}
_OPTION_IMPORTS: Final = (
    "google/protobuf/descriptor.proto",
    "google/api/",
    "gogoproto/",
    "buf/validate/",
    "validate/",
)
_SCALARS: Final = {
    name: FieldDescriptorProto.Type.Value(f"TYPE_{name.upper()}")
    for name in (
        *("double", "float", "int32", "int64", "uint32", "uint64", "sint32", "sint64"),
        *("fixed32", "fixed64", "sfixed32", "sfixed64", "bool", "string", "bytes"),
    )
}
_LABELS: Final = {
    None: FieldDescriptorProto.LABEL_OPTIONAL,
    ast.FieldCardinality.OPTIONAL: FieldDescriptorProto.LABEL_OPTIONAL,
    ast.FieldCardinality.REQUIRED: FieldDescriptorProto.LABEL_REQUIRED,
    ast.FieldCardinality.REPEATED: FieldDescriptorProto.LABEL_REPEATED,
}


def first_message(name: str | None, folders: tuple[str, ...]) -> type[Message]:
    """The class of the first message in the file `name`; raises ValueError in words for the author of the file."""
    text = read_schema(name, folders, what="protobuf")
    files = _Files(folders)
    own = (name or "").strip()
    try:
        file = files.add(own, text)
        if not file.message_type:
            raise ValueError("it declares no message")
        full_name = ".".join(part for part in (file.package, file.message_type[0].name) if part)
        return message_factory.GetMessageClass(files.pool.FindMessageTypeByName(full_name))
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as e:
        # The pool answers TypeError for names it cannot resolve, the parser AttributeError for what it half understood.
        reason = str(e)[:300] if isinstance(e, TypeError | ValueError) else "its grammar is not understood"
        raise ValueError(f"the protobuf schema file {name!r} is not valid: {reason}") from None


class _Files:
    """The files of one schema, added to a pool of their own, imports first."""

    def __init__(self, folders: tuple[str, ...]) -> None:
        self.pool = DescriptorPool()
        self._folders = folders
        self._added: set[str] = set()
        self._open: list[str] = []

    def add(self, name: str, text: str) -> FileDescriptorProto:
        """Add a file and all that it imports; raises ValueError."""
        if len(self._open) + len(self._added) >= _MAX_FILES:
            raise ValueError(f"it imports more than {_MAX_FILES} files")
        parsed = Parser(setup_lexer=_listen, setup_parser=_listen).parse(text)
        if parsed.edition:
            raise ValueError("editions are not supported, only proto2 and proto3")
        file = FileDescriptorProto(name=name, syntax=(parsed.syntax or "proto2").strip("\"'"))
        self._open.append(name)
        for element in parsed.file_elements:
            if isinstance(element, ast.Package):
                file.package = element.name
            elif isinstance(element, ast.Import):
                self._import(file, element, name)
            elif isinstance(element, ast.Message):
                _fill(file.message_type.add(name=element.name), element.elements, file.syntax)
            elif isinstance(element, ast.Enum):
                _fill_enum(file.enum_type.add(name=element.name), element)
        self._open.pop()
        self._added.add(name)
        self.pool.Add(file)
        self.pool.FindFileByName(name)  # builds it: names that do not resolve are found here
        return file

    def _import(self, file: FileDescriptorProto, wanted: ast.Import, importer: str) -> None:
        name = wanted.name.strip("\"'")
        if name in self._open:
            raise ValueError(f"the import of {name!r} leads back to itself")
        if name in _WELL_KNOWN:
            if name not in self._added:
                self.pool.AddSerializedFile(_WELL_KNOWN[name])
                self._added.add(name)
        elif name not in self._added:
            text = self._text_of(name, importer)
            if text is None:
                return
            self.add(name, text)
        if wanted.public:
            file.public_dependency.append(len(file.dependency))
        file.dependency.append(name)

    def _text_of(self, name: str, importer: str) -> str | None:
        """The text of an import: relative to one of the folders, or to that of the file that imports it.

        None for a file that is not there and is known to declare options only.
        """
        folder = importer.rpartition("/")[0]
        try:
            return read_schema(name, self._folders, what="protobuf")
        except ValueError:
            if folder and not name.startswith(_OPTION_IMPORTS):
                return read_schema(f"{folder}/{name}", self._folders, what="protobuf")
            if name.startswith(_OPTION_IMPORTS):
                return None
            raise


def _fill(message: DescriptorProto, elements: Iterable[Any], syntax: str) -> None:
    for element in elements:
        if isinstance(element, ast.Message):
            _fill(message.nested_type.add(name=element.name), element.elements, syntax)
        elif isinstance(element, ast.Enum):
            _fill_enum(message.enum_type.add(name=element.name), element)
        elif isinstance(element, ast.OneOf):
            message.oneof_decl.add(name=element.name)
            for choice in element.elements:
                if made := _field(message, choice, syntax):
                    made.oneof_index = len(message.oneof_decl) - 1
        elif isinstance(element, ast.Option):
            if element.name == "message_set_wire_format":
                raise ValueError("message sets are not supported")
        else:
            _field(message, element, syntax)
    _declare_optional(message)


def _declare_optional(message: DescriptorProto) -> None:
    for field in message.field:  # the oneofs of proto3's optional fields come after all others
        if field.proto3_optional:
            field.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{field.name}")


def _field(message: DescriptorProto, element: Any, syntax: str) -> FieldDescriptorProto | None:
    """The field that an element declares, None if it declares none."""
    if isinstance(element, ast.MapField):
        return _map(message, element)
    if isinstance(element, ast.Group):
        _fill(message.nested_type.add(name=element.name), element.elements, syntax)
        made = message.field.add(name=element.name.lower(), type_name=element.name)
        made.type = FieldDescriptorProto.TYPE_GROUP
    elif isinstance(element, ast.Field):
        made = message.field.add(name=element.name)
        _type(made, element.type)
        if syntax == "proto3" and element.cardinality == ast.FieldCardinality.OPTIONAL:
            made.proto3_optional = True
    else:
        return None
    made.number = element.number
    made.label = _LABELS[element.cardinality]
    return made


def _map(message: DescriptorProto, field: ast.MapField) -> FieldDescriptorProto:
    name = "".join(part[:1].upper() + part[1:] for part in field.name.split("_")) + "Entry"
    entry = message.nested_type.add(name=name)
    entry.options.map_entry = True
    for number, (member, kind) in enumerate((("key", field.key_type), ("value", field.value_type)), start=1):
        _type(entry.field.add(name=member, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL), kind)
    made = message.field.add(name=field.name, number=field.number, type_name=name)
    made.label = FieldDescriptorProto.LABEL_REPEATED
    made.type = FieldDescriptorProto.TYPE_MESSAGE
    return made


def _type(field: FieldDescriptorProto, name: str) -> None:
    if name in _SCALARS:
        field.type = _SCALARS[name]
    else:
        field.type_name = name  # the pool resolves it, and with it whether it is a message or an enum


def _fill_enum(made: EnumDescriptorProto, enum: ast.Enum) -> None:
    for element in enum.elements:
        if isinstance(element, ast.EnumValue):
            made.value.add(name=element.name, number=element.number)
        elif isinstance(element, ast.Option) and element.name == "allow_alias":
            made.options.allow_alias = True


def _listen(recognizer: Any) -> None:
    recognizer.removeErrorListeners()  # the default one prints, and the parser goes on with a guess
    recognizer.addErrorListener(_Listener())


class _Listener:
    """ANTLR's listener, by its names: the first error ends the parse."""

    def syntaxError(  # noqa: N802  # ANTLR's name
        self, _recognizer: object, _symbol: object, line: int, column: int, message: str, _cause: object
    ) -> NoReturn:
        raise ValueError(f"line {line} column {column + 1}: {message[:200]}")

    def _not_an_error(self, *_: object) -> None:
        """What the parser reports for those who tune grammars."""

    reportAmbiguity = reportAttemptingFullContext = reportContextSensitivity = _not_an_error  # noqa: N815
