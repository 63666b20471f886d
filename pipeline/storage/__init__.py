"""Files at any fsspec location: a file exists wholly or not at all."""

from pipeline.storage.files import (
    create_bytes,
    create_json,
    exists,
    open_file,
    read_bytes,
    read_json,
    remove,
    write_bytes,
    write_json,
    writing_to,
)
from pipeline.storage.folders import (
    check_writable,
    download_folder,
    find_files,
    list_files,
    new_folders,
    remove_empty,
    remove_folder,
    upload_folder,
)
from pipeline.storage.locations import absolute, filesystem, in_job_package, in_memory, is_local, join, why_missing

__all__ = [
    "absolute",
    "check_writable",
    "create_bytes",
    "create_json",
    "download_folder",
    "exists",
    "filesystem",
    "find_files",
    "in_job_package",
    "in_memory",
    "is_local",
    "join",
    "list_files",
    "new_folders",
    "open_file",
    "read_bytes",
    "read_json",
    "remove",
    "remove_empty",
    "remove_folder",
    "upload_folder",
    "why_missing",
    "write_bytes",
    "write_json",
    "writing_to",
]
