"""Circuits in the files of other tools: read from them, and written to them."""

from edgeprune.formats.base import AbstractFormat, ExportOptions, Holds, Imported
from edgeprune.formats.circuit_files import FORMATS, format_for, format_named, is_native, read_circuit, write_circuit

__all__ = [
    "FORMATS",
    "AbstractFormat",
    "ExportOptions",
    "Holds",
    "Imported",
    "format_for",
    "format_named",
    "is_native",
    "read_circuit",
    "write_circuit",
]
