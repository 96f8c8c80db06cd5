"""OpenAPI on both sides: a capability file out of an OpenAPI document, and an OpenAPI document out of a capability."""

from toolcrib.capability.openapi.exporter import export_openapi
from toolcrib.capability.openapi.importer import Imported, import_openapi

__all__ = ["Imported", "export_openapi", "import_openapi"]
