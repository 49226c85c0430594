"""Where examples come from: a Hub dataset, local files, a folder, a stream, or a built-in demo set.

    load_splits(DataArguments(dataset_name="mteb/banking77"))
    -> Source(splits={"train": Dataset, "test": Dataset}, kind="hub", name="mteb/banking77", revision="0fd18e2...")

Whatever the source, its splits come out under the names train, validation and test, and each row carries
`example_id`, its row number in the split it came from, so that a mistake, a prediction or a NaN has an address.
"""

import glob
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import datasets
from datasets.packaged_modules.csv.csv import CsvConfig
from huggingface_hub import HfApi, hf_hub_download, is_offline_mode
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from sft_hf import hub
from sft_hf.arguments import DataArguments
from sft_hf.data.archives import refuse_bomb, without_bombs
from sft_hf.data.builtin import builtin_dataset, builtin_id2label
from sft_hf.data.columns import EXAMPLE_ID
from sft_hf.data.containment import Place, files_of, first_few, linked_out, place_of_folder, place_of_repository
from sft_hf.data.encoded_audio import undecoded, without_torchcodec
from sft_hf.data.folders import SOUNDS, find_media, read_folder
from sft_hf.data.metadata_folders import read_metadata
from sft_hf.data.paired_folders import ID2LABEL_NAME, read_id2label
from sft_hf.data.paths import path_columns, with_absolute_paths
from sft_hf.errors import ArgumentError, DataError

logger = logging.getLogger(__name__)

BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
VALIDATION_NAMES = ("validation", "valid", "val", "dev", "validation_matched")
# pandas would read the texts "NA", "null" and "None" as missing; only an empty cell is.
CSV_OPTIONS = {"keep_default_na": False, "na_values": [""]}
FILE_STEP = 10**9  # between the numbers of the first rows of two files of a stream
AnyDataset = datasets.Dataset | datasets.IterableDataset


@dataclass(frozen=True)
class Source:
    """The splits, and what to record about where they came from."""

    splits: dict[str, AnyDataset]
    kind: str  # hub | files | folder | builtin | memory
    name: str
    config_name: str | None = None
    revision: str | None = None  # the resolved commit of a Hub dataset
    hub_id: str | None = None  # ORG/NAME for the model card; None for what the Hub does not have
    files: dict[str, list[str]] = field(default_factory=dict)
    id2label: dict[int, str] | None = None  # what the source itself says of the ids in its masks
    place: Place | None = None  # where the files lie that its rows may name; None: anywhere, in the user's own tables


def load_splits(data_args: DataArguments, *, token: str | None = None, cache_dir: str | None = None) -> Source:
    """Load the source that the flags name.

    Raises ArgumentError for flags that do not go together, DataError for a missing file, split or configuration and for a
    row that cannot be read, HubError for a repository that is missing, private, gated or refuses the token.
    """
    if data_args.dataset_name and data_args.train_file:
        raise ArgumentError("--dataset_name and --train_file name two sources; give one of them.")
    if data_args.train_file:
        source = _load_files(data_args, cache_dir)
    elif data_args.validation_file or data_args.test_file:
        raise ArgumentError("--validation_file and --test_file need --train_file.")
    elif not data_args.dataset_name:
        raise ArgumentError("No data: give --dataset_name ORG/NAME (or a folder) or --train_file FILE.")
    elif data_args.dataset_name.startswith("builtin:"):
        source = _load_builtin(data_args)
    elif Path(data_args.dataset_name).expanduser().exists():
        source = _load_folder(data_args, cache_dir)
    else:
        source = _load_hub(data_args, token, cache_dir)
    return source


def from_memory(splits: "datasets.DatasetDict | dict[str, AnyDataset]", data_args: DataArguments) -> Source:
    """The datasets that a notebook hands over, under the same rules as any other source."""
    return _named_splits(splits, data_args, kind="memory", name="memory")


def sample(dataset: AnyDataset, number: int | None, *, seed: int, flag: str, buffer_size: int = 1000) -> AnyDataset:
    """A seeded random sample in the original order; a stream gives the first `number` of its shuffled order.

    The first rows would be of one class where a dataset is sorted by label, as many are.
    """
    if number is None:
        return dataset
    if number <= 0:
        raise ArgumentError(f"{flag} {number}: expected a positive number")
    if isinstance(dataset, datasets.IterableDataset):
        sampled = dataset.shuffle(seed=seed, buffer_size=buffer_size).take(number)
        # As a generator, since an epoch that is set would change the shuffle in it too, and so which rows are taken.
        return datasets.IterableDataset.from_generator(
            _rows_of, gen_kwargs={"stream": sampled}, features=dataset.features
        )
    if number >= len(dataset):
        return dataset
    import numpy as np

    chosen = np.sort(np.random.default_rng(seed).choice(len(dataset), size=number, replace=False))
    return dataset.select(chosen)


def _rows_of(stream: datasets.IterableDataset) -> Iterator[dict]:
    """In the same order in a dataloader's worker, where iter(stream) has another."""
    for batch in stream.iter(batch_size=1):
        yield {name: values[0] for name, values in batch.items()}


def _load_builtin(data_args: DataArguments) -> Source:
    name = data_args.dataset_name
    key = name.removeprefix("builtin:")
    source = _named_splits(builtin_dataset(key), data_args, kind="builtin", name=name)
    return replace(source, id2label=builtin_id2label(key))


def _load_files(data_args: DataArguments, cache_dir: str | None) -> Source:
    files = {
        split: _expand(patterns, flag=f"--{split}_file")
        for split, patterns in (
            ("train", data_args.train_file),
            ("validation", data_args.validation_file),
            ("test", data_args.test_file),
        )
        if patterns
    }
    splits: dict[str, AnyDataset] = {}
    for split, paths in files.items():
        splits[split] = _read_files(
            paths, split, flag=f"--{split}_file", streaming=data_args.streaming, cache_dir=cache_dir
        )
    return Source(_with_example_ids(splits), kind="files", name=_name_of(Path(files["train"][0])), files=files)


def _name_of(file: Path) -> str:
    """What a card calls a set of files: the first one's name, or its folder's where that says nothing."""
    return file.resolve().parent.name or file.stem if file.stem in ("train", "training", "data") else file.stem


def _expand(patterns: list[str], *, flag: str) -> list[str]:
    paths: list[str] = []
    for pattern in [part for item in patterns for part in ([item] if Path(item).exists() else item.split(","))]:
        expanded = str(Path(pattern).expanduser())
        found = sorted(glob.glob(expanded, recursive=True)) or ([expanded] if Path(expanded).is_file() else [])
        if not found:
            folder = Path(expanded).parent
            there = sorted(path.name for path in folder.glob("*"))[:10] if folder.is_dir() else []
            raise DataError(f"{flag} {pattern}: no such file. In {folder}: {', '.join(there) or 'nothing'}.")
        paths += found
    return paths


def _read_files(paths: list[str], split: str, *, flag: str, streaming: bool, cache_dir: str | None) -> AnyDataset:
    suffixes = {Path(path).suffix.lower() for path in paths}
    if len(suffixes) > 1 or not suffixes <= set(BUILDERS):
        raise DataError(f"{flag}: {', '.join(sorted(suffixes))} given; expected one kind of {', '.join(BUILDERS)}.")
    for path in paths:
        refuse_bomb(path, flag=flag)
    _check_rows(paths, suffixes.pop(), flag)
    read = partial(_read_tables, split=split, flag=flag, streaming=streaming, cache_dir=cache_dir)
    dataset = read(paths)
    columns = path_columns(dataset)
    if not columns:
        return dataset
    folders = [Path(path).parent for path in paths]
    if len(set(folders)) == 1:
        return with_absolute_paths(dataset, columns, folders[0])
    # Every table has the types that all of them have together.
    tables = [read([path]) for path in paths]
    if streaming:
        tables = [table.cast(dataset.features) for table in tables]
    else:
        ends = accumulate(map(len, tables))
        tables = [dataset.select(range(end - len(table), end)) for end, table in zip(ends, tables, strict=True)]
    return datasets.concatenate_datasets(
        [with_absolute_paths(table, columns, folder) for table, folder in zip(tables, folders, strict=True)]
    )


def _read_tables(paths: list[str], *, split: str, flag: str, streaming: bool, cache_dir: str | None) -> AnyDataset:
    suffix = Path(paths[0]).suffix.lower()
    options: dict = {}
    if BUILDERS[suffix] == "csv":
        options = {"sep": "\t" if suffix == ".tsv" else ",", **CSV_OPTIONS}
    try:
        dataset = datasets.load_dataset(
            BUILDERS[suffix],
            data_files={split: paths},
            split=split,
            streaming=streaming,
            cache_dir=cache_dir,
            **options,
        )
        return _with_features(dataset)
    except (datasets.exceptions.DatasetGenerationError, ValueError, TypeError, OSError) as error:
        cause = _root_cause(error)
        if "corresponds to no data" in cause:
            raise DataError(f"{flag} {', '.join(paths)}: no row.") from error
        raise DataError(f"{flag} {', '.join(paths)} cannot be read: {cause}") from error


def _check_rows(paths: list[str], suffix: str, flag: str) -> None:
    """Name the line of a json-lines file that is no JSON object; the reader's own message counts in blocks."""
    for path in paths if suffix in (".jsonl", ".ndjson") else ():
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{flag} {path}, line {number}: not valid JSON ({error})") from None
                if not isinstance(value, dict):
                    raise DataError(f"{flag} {path}, line {number}: expected an object, got {type(value).__name__}")


def _load_folder(data_args: DataArguments, cache_dir: str | None) -> Source:
    folder = Path(data_args.dataset_name).expanduser()
    flag = f"--dataset_name {folder}"
    place = place_of_folder(folder, name=flag)
    if folder.is_file():
        raise ArgumentError(f"{flag} is a file; give files by --train_file.")
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        splits = _load_saved(folder, place, flag)
    elif (media := None if data_args.dataset_config_name else find_media(folder)) is None:
        splits = _load_dataset(str(folder), data_args, flag=flag, place=place, cache_dir=cache_dir)
    elif not media.metadata:
        splits = read_folder(media, flag=flag)
    elif media.medium is SOUNDS:
        read_tables = partial(_read_files, split="train", flag="--dataset_name", streaming=False, cache_dir=cache_dir)
        splits = read_metadata(media.folder, media.files, media.metadata, read_tables=read_tables, flag=flag)
    else:
        options = {"cache_dir": cache_dir, "data_dir": str(folder)}
        splits = _load_dataset("imagefolder", data_args, flag=flag, place=place, **options)
    _say_links(splits, place, flag)
    if data_args.streaming:
        splits = {
            name: dataset.to_iterable_dataset() if isinstance(dataset, datasets.Dataset) else dataset
            for name, dataset in splits.items()
        }
    id2label = folder / ID2LABEL_NAME
    return replace(
        _named_splits(splits, data_args, kind="folder", name=folder.name),
        id2label=read_id2label(id2label, source=f"--dataset_name {id2label}") if id2label.is_file() else None,
        place=place,
    )


def _load_saved(folder: Path, place: Place, flag: str) -> dict[str, datasets.Dataset]:
    """The splits of a folder of save_to_disk, which lists their folders and files."""
    try:
        listed = folder / "dataset_dict.json"
        names = json.loads(listed.read_text(encoding="utf-8"))["splits"] if listed.exists() else ["."]
        place.check(enumerate(str(folder / name) for name in names), f"{flag}, dataset_dict.json")
        for name in names:
            files = json.loads((folder / name / "state.json").read_text(encoding="utf-8"))["_data_files"]
            paths = [str(folder / name / file["filename"]) for file in files]
            place.check(enumerate(paths), f"{flag}, {Path(name) / 'state.json'}")
        loaded = datasets.load_from_disk(str(folder))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{flag} is no folder that save_to_disk wrote: {type(error).__name__}: {error}") from error
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _say_links(splits: dict[str, AnyDataset], place: Place, flag: str) -> None:
    """Links are the user's own, or came with the folder: which of its files lie elsewhere is said."""
    paths = [
        path
        for dataset in splits.values()
        if isinstance(dataset, datasets.Dataset)
        for column, feature in dataset.features.items()
        if isinstance(feature, (datasets.Image, datasets.Audio))
        for _, path in files_of(dataset, column)
        if place.holds(path)
    ]
    links = linked_out(paths, place)
    if links:
        named = first_few([f"{path} -> {target}" for path, target in links.items()])
        logger.warning("%s: links lead %d of %d files out of the folder: %s", flag, len(links), len(paths), named)


def _load_hub(data_args: DataArguments, token: str | None, cache_dir: str | None) -> Source:
    name, flag = data_args.dataset_name, "--dataset_name"
    sha = _resolve_revision(name, data_args.dataset_revision, token)
    try:
        splits = hub.with_retries(
            lambda: _load_dataset(
                name,
                data_args,
                flag=f"{flag} {name}",
                cache_dir=cache_dir,
                revision=sha or data_args.dataset_revision,
                token=token,
            ),
            f"load_dataset {name}",
        )
    except datasets.exceptions.DatasetNotFoundError as error:
        raise hub.explain(_refusal(name, token) or error, kind="dataset", repo_id=name, flag=flag) from error
    except Exception as error:
        says_enough = isinstance(error, DataError) and not hub.is_transient(error)
        if says_enough or not hub.is_from_hub(error):
            raise
        raise hub.explain(error, kind="dataset", repo_id=name, flag=flag) from error
    source = _named_splits(splits, data_args, kind="hub", name=name)
    has_masks = sum(isinstance(item, datasets.Image) for item in source.splits["train"].features.values()) > 1
    return replace(
        source,
        config_name=data_args.dataset_config_name,
        revision=sha,
        hub_id=name,
        place=place_of_repository(name),
        id2label=_hub_id2label(name, sha or data_args.dataset_revision, token, cache_dir) if has_masks else None,
    )


def _hub_id2label(name: str, revision: str | None, token: str | None, cache_dir: str | None) -> dict[int, str] | None:
    """What the repository's id2label.json says, None without one; without the Hub, what the cache has of it."""
    if is_offline_mode():
        # It was downloaded by commit, and the cache does not know of which branch that was.
        repository = Path(cache_dir or HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset")
        cached = repository.glob(f"snapshots/*/{ID2LABEL_NAME}")
        path = max(cached, key=lambda file: file.stat().st_mtime, default=None)
    else:
        path = _download_id2label(name, revision, token, cache_dir)
    return read_id2label(path, source=f"--dataset_name {name}, {ID2LABEL_NAME}") if path else None


def _download_id2label(name: str, revision: str | None, token: str | None, cache_dir: str | None) -> Path | None:
    download = partial(
        hf_hub_download, name, ID2LABEL_NAME, repo_type="dataset", revision=revision, token=token, cache_dir=cache_dir
    )
    try:
        return Path(hub.with_retries(download, f"{ID2LABEL_NAME} of {name}"))
    except RemoteEntryNotFoundError:
        return None
    except Exception as error:
        if hub.is_from_hub(error):
            raise hub.explain(error, kind="dataset", repo_id=name, flag="--dataset_name") from error
        raise


def _refusal(name: str, token: str | None) -> BaseException | None:
    """Why the Hub gives no file of a dataset whose page it shows; datasets raises its own error `from None`."""
    try:
        HfApi(token=token).auth_check(name, repo_type="dataset")
    except Exception as error:
        return error
    return None


def _resolve_revision(name: str, revision: str | None, token: str | None) -> str | None:
    """The commit that `revision` means now; None without the Hub, where the cache decides."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    try:
        return hub.with_retries(lambda: HfApi(token=token).dataset_info(name, revision=revision).sha, f"dataset {name}")
    except OfflineModeIsEnabled:
        return None
    except HFValidationError as error:
        raise DataError(f"--dataset_name {name}: no such file or folder, and no name of the Hub: {error}") from None
    except Exception as error:
        if hub.is_from_hub(error):
            raise hub.explain(error, kind="dataset", repo_id=name, flag="--dataset_name") from error
        raise


def _load_dataset(
    name: str, data_args: DataArguments, *, flag: str, place: Place | None = None, **options
) -> "datasets.DatasetDict":
    """The splits of a repository, or of a folder, whose card names files in `place` alone."""
    try:
        builder = without_torchcodec(_builder(name, data_args.dataset_config_name, **options))
        if place is not None:
            files = [file for files in (builder.config.data_files or {}).values() for file in files]
            place.check(enumerate(files), f"{flag}, data_files of README.md")
        builder = without_bombs(builder, flag=flag)
        if data_args.streaming:
            return builder.as_streaming_dataset()
        builder.download_and_prepare()
        return builder.as_dataset()
    except datasets.exceptions.DatasetNotFoundError:
        raise
    except ValueError as error:
        message = _root_cause(error).partition("\nExample of usage")[0].replace("\n", " ")
        hint = " Choose one with --dataset_config_name." if "onfig" in message else ""
        raise DataError(f"{flag}: {message}{hint}") from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise DataError(
            f"{flag} is a script, which datasets does not run any more. The Hub may have it as parquet: "
            "--dataset_revision refs/convert/parquet."
        ) from error
    except (datasets.exceptions.DatasetsError, FileNotFoundError) as error:
        raise DataError(f"{flag} cannot be read: {_root_cause(error)}") from error


def _builder(name: str, config: str | None, **options) -> datasets.DatasetBuilder:
    """The builder of a dataset; one of csv files gets CSV_OPTIONS where its card does not say what is missing."""
    if datasets.config.HF_HUB_OFFLINE and not Path(name).exists() and "data_dir" not in options:
        try:
            return datasets.load_dataset_builder(name, config, **options, **CSV_OPTIONS)
        except ValueError:  # the cache has none that was made with these options, so none of csv files
            return datasets.load_dataset_builder(name, config, **options)
    builder = datasets.load_dataset_builder(name, config, **options)
    settings = builder.config
    if isinstance(settings, CsvConfig) and settings.keep_default_na and settings.na_values is None:
        return datasets.load_dataset_builder(name, config, **options, **CSV_OPTIONS)
    return builder


def _named_splits(splits, data_args: DataArguments, *, kind: str, name: str) -> Source:
    """Rename the splits that the flags, or the usual names, choose to train, validation and test."""
    chosen = {"train": data_args.train_split_name, "validation": data_args.validation_split_name}
    chosen["test"] = data_args.test_split_name
    if chosen["validation"] is None:
        chosen["validation"] = next((split for split in VALIDATION_NAMES if split in splits), None)
    if chosen["test"] is None and "test" in splits:
        chosen["test"] = "test"
    if chosen["test"] is not None and chosen["test"] == chosen["validation"]:
        chosen["test"] = None
    named = {}
    for role, split in chosen.items():
        if split is None:
            continue
        if split not in splits:
            raise DataError(
                f"{name} has no split {split!r}; it has {', '.join(splits) or 'none'}. Choose with --{role}_split_name."
            )
        named[role] = splits[split]
    if chosen["validation"] == chosen["train"] or chosen["test"] == chosen["train"]:
        raise ArgumentError(f"--train_split_name {chosen['train']} is also the split to validate or test on.")
    return Source(_with_example_ids(named, in_memory=kind == "memory"), kind=kind, name=name)


def _with_example_ids(splits: dict[str, AnyDataset], *, in_memory: bool = False) -> dict[str, AnyDataset]:
    """With the row numbers; of a stream to train on, whose files are shuffled too, each file has numbers of its own."""
    # What a stream of the user's own is made of, by take() or interleave, can be other rows when it is taken apart.
    return {
        split: _with_example_id(dataset, by_file=split == "train" and not in_memory)
        for split, dataset in splits.items()
    }


def _with_example_id(dataset: AnyDataset, *, by_file: bool) -> AnyDataset:
    columns = dataset.column_names or []
    if EXAMPLE_ID in columns:
        logger.info("the column %s of the dataset is replaced by the row number", EXAMPLE_ID)
        dataset = dataset.remove_columns(EXAMPLE_ID)
    if isinstance(dataset, datasets.IterableDataset):
        # A map would decode every picture and sound, and encode it again as another file without a name.
        dataset = undecoded(_with_features(dataset).decode(False))
        features = datasets.Features({**dataset.features, EXAMPLE_ID: datasets.Value("int64")})
        number = partial(datasets.IterableDataset.map, with_indices=True, features=features)
        if not by_file:
            return number(dataset, _NumberRows()).skip(0)  # after a skip no shuffle changes the order of the files
        # Each file by itself: a shuffle reads them in another order, and then each would be counted from 0.
        files = [dataset.shard(dataset.num_shards, index) for index in range(dataset.num_shards)]
        return datasets.concatenate_datasets([number(file, _NumberRows(index)) for index, file in enumerate(files)])
    return undecoded(dataset).add_column(EXAMPLE_ID, list(range(len(dataset))))


def _with_features(dataset: AnyDataset) -> AnyDataset:
    """A stream that knows its features; csv and json say them only with the first rows."""
    return dataset._resolve_features() if dataset.features is None else dataset


@dataclass(frozen=True)
class _NumberRows:
    """A picklable numbering of the rows of one file of a stream: row 17 of the file 3 is 3000000017."""

    file: int = 0

    def __call__(self, example: dict, index: int) -> dict:
        return {**example, EXAMPLE_ID: self.file * FILE_STEP + index}


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
        error = error.__cause__ or error.__context__
    return str(error).strip() or type(error).__name__
