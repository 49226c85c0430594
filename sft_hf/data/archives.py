"""What compressed files unpack to, before anybody unpacks them: a few kilobytes can be all of a disk, or of the memory.

    refuse_bomb("pets/data.zip", flag="--dataset_name pets")     # DataError: 42374 bytes that unpack to over 1.1 GB
    without_bombs(builder, flag="--dataset_name alice/pets")     # each file is looked at when it is downloaded

A zip file says in its directory what is in it, parquet how many values its pages hold. gzip, bzip2, xz, zstandard and lz4 say nothing,
and are read to their end once; no byte of them is kept.
"""

import os
import zipfile
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetBuilder
from datasets.utils.py_utils import NestedDataStructure

from sft_hf.errors import DataError

# Texts and tables become some 5 to 20 times as large, columns of constants 100 times; a bomb of gzip is 1,030 times as large as its
# file, others are still larger. Below a gigabyte nobody is harmed.
LARGEST_RATIO = 200
HARMLESS = 1 << 30  # bytes
BLOCK = 1 << 20
COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}


def refuse_bomb(path: str, *, flag: str) -> None:
    """DataError for a file that unpacks to over a gigabyte and to over 200 times its size; `flag` is the one that named it."""
    size = os.path.getsize(path)
    limit = max(HARMLESS, LARGEST_RATIO * size)
    if _unpacked_size(path, limit) > limit:
        raise DataError(
            f"{flag}: {os.path.basename(path)}, {size} bytes, unpacks to over {limit / 1e9:.1f} GB, over {limit // max(size, 1)} times "
            "as much, which only a decompression bomb does. Do not use it. If you know what is in it, unpack it yourself and give that."
        )


def without_bombs(builder: DatasetBuilder, *, flag: str) -> DatasetBuilder:
    """The builder, which looks at each file that is here, or was downloaded, before it is unpacked; those of a stream elsewhere are not."""
    split_generators = builder._split_generators

    def with_checked_downloads(dl_manager: Any, *args: Any, **options: Any) -> list:
        download = dl_manager.download

        def checked(url_or_urls: Any) -> Any:
            paths = download(url_or_urls)
            for path in NestedDataStructure(paths).flatten():
                if os.path.isfile(path):
                    refuse_bomb(path, flag=flag)
            return paths

        dl_manager.download = checked
        return split_generators(dl_manager, *args, **options)

    builder._split_generators = with_checked_downloads
    return builder


def _unpacked_size(path: str, limit: int) -> int:
    """Bytes; of a file that does not say them, no more are counted than just over `limit`. 0 for a file that is not packed."""
    with open(path, "rb") as file:
        head = file.read(8)
    try:
        if head.startswith(b"PAR1"):
            return _size_of_parquet(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, pa.ArrowException):
        return 0  # who reads it says what is wrong with it
    compression = next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), None)
    if compression is None or compression not in fsspec.available_compressions():
        return 0  # without its library nobody here reads it
    return _counted(path, compression, limit)


def _size_of_parquet(path: str) -> int:
    """Its pages unpacked, or a byte for each value where that is more: a run of equal ones takes a few bytes in a page."""
    metadata = pq.read_metadata(path)
    pages = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return max(pages, metadata.num_rows * metadata.num_columns)


def _counted(path: str, compression: str, limit: int) -> int:
    size = 0
    try:
        with fsspec.open(path, "rb", compression=compression) as file:
            while size <= limit and (block := file.read(BLOCK)):
                size += len(block)
    except Exception:  # of each library's own types, for a damaged file: who reads it says what is wrong with it
        return size
    return size
