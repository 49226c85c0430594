"""datasets' Audio without torchcodec, which that needs even to write down the path of a file (pitfall 20).

    EncodedAudio(decode=False).encode_example("yes/1.flac")    -> {"bytes": None, "path": "yes/1.flac"}
    undecoded(dataset).features["audio"]                       -> EncodedAudio(decode=False)

Clips are decoded by sft_hf.audio.decoding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Audio, Dataset, DatasetBuilder, Features, IterableDataset

AnyDataset = Dataset | IterableDataset


@dataclass
class EncodedAudio(Audio):
    """An Audio column of which each value is a file, as bytes or a path; in a file of datasets it is an Audio like any other."""

    def encode_example(self, value: str | Path | bytes | Mapping[str, Any]) -> dict[str, Any]:
        """`{"bytes": bytes or None, "path": str or None}`; nothing is read."""
        if isinstance(value, (str, Path)):
            return {"bytes": None, "path": str(value)}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": bytes(value), "path": None}
        return {"bytes": value.get("bytes"), "path": value.get("path")}

    def cast_storage(self, storage: pa.Array) -> pa.StructArray:
        """As Audio's, for long strings too."""
        return super().cast_storage(storage.cast(pa.string()) if pa.types.is_large_string(storage.type) else storage)


def undecoded(dataset: AnyDataset) -> AnyDataset:
    """The dataset with its Audio columns as EncodedAudio, so that no row, and no map over a stream, needs torchcodec."""
    if isinstance(dataset, IterableDataset):
        return dataset.cast(_encoded(dataset.features, decode=False)) if dataset.features else dataset
    for name, feature in _encoded(dataset.features, decode=False).items():
        if feature != dataset.features[name]:
            dataset = dataset.cast_column(name, feature)
    return dataset


def without_torchcodec(builder: DatasetBuilder) -> DatasetBuilder:
    """The builder, which lists and encodes the sounds of an audiofolder or a webdataset without it.

    What it prepares, and says of it in the cache, is what datasets would with torchcodec.
    """
    split_generators = builder._split_generators

    def with_encoded_audio(*args: Any, **options: Any) -> list:
        generators = split_generators(*args, **options)
        # Those of a webdataset, or a folder, are known from now on.
        if builder.info.features is not None:
            builder.info.features = _encoded(builder.info.features)
        return generators

    builder._split_generators = with_encoded_audio
    return builder


def _encoded(features: Features, *, decode: bool | None = None) -> Features:
    return Features(
        {
            name: EncodedAudio(feature.sampling_rate, feature.decode if decode is None else decode)
            if isinstance(feature, Audio)
            else feature
            for name, feature in features.items()
        }
    )
