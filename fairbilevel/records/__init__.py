"""Records: the run folder's schema, and readers and writers that leave nothing half written."""

from fairbilevel.records._files import (
    JsonLines,
    RecordError,
    read_arrays,
    read_json,
    read_json_lines,
    write_arrays,
    write_json,
    write_text,
)
from fairbilevel.records._folder import (
    ANALYSIS,
    ANALYSIS_TABLE,
    CERTIFICATE,
    CONFIG,
    METRICS,
    MODEL,
    RESULT,
    ROWS,
    SCHEMA_VERSION,
    check_completed,
    check_run_folder,
    is_run_folder,
    read_result,
)
from fairbilevel.records._tensorboard import TENSORBOARD, TensorBoard

__all__ = [
    "ANALYSIS",
    "ANALYSIS_TABLE",
    "CERTIFICATE",
    "CONFIG",
    "METRICS",
    "MODEL",
    "RESULT",
    "ROWS",
    "SCHEMA_VERSION",
    "TENSORBOARD",
    "JsonLines",
    "RecordError",
    "TensorBoard",
    "check_completed",
    "check_run_folder",
    "is_run_folder",
    "read_arrays",
    "read_json",
    "read_json_lines",
    "read_result",
    "write_arrays",
    "write_json",
    "write_text",
]
