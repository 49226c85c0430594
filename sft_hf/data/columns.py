"""Which column of a dataset is the input and which the label, the mask or the transcript.

    find_label_column(Features({"sentence1": Value("string"), "sentence2": Value("string"),
                                "label": ClassLabel(names=["yes", "no"]), "idx": Value("int32")}), given=None)
    -> "label"
    find_text_columns(the same, given=None, exclude=["label"])
    -> ["sentence1", "sentence2"]
    find_audio_column(Features({"file": Value("string"), "audio": Audio(), "text": Value("string"),
                                "speaker_id": Value("int64")}), given=None)
    -> "audio"

A name that datasets usually have decides, then the type; where either leaves a choice, the user is asked:
training on the wrong column gives a number that looks like any other.
"""

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from datasets import Audio, ClassLabel, Image, LargeList, List, Value

from sft_hf.errors import DataError

logger = logging.getLogger(__name__)

TEXT_FLAG = "--text_column_names"
IMAGE_FLAG = "--image_column_name"
AUDIO_FLAG = "--audio_column_name"
TRANSCRIPT_FLAG = "--text_column_name"
EXAMPLE_ID = "example_id"  # the row's number in its split: what every source adds
LABEL_FLAG = "--label_column_name"

TEXT_NAMES = (
    "text",
    "sentence",
    "content",
    "review",
    "tweet",
    "document",
    "body",
    "question",
    "comment",
    "comment_text",
    "message",
    "utterance",
    "query",
    "passage",
    "headline",
    "abstract",
    "review_text",
    "review_body",
    "sms",
)
TEXT_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("question", "passage"),
    ("question", "answer"),
)
LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "target",
    "category",
    "intent",
    "score",
    "sentiment",
    "emotion",
    "topic",
    "rating",
    "stars",
    "toxicity",
    "classes",
    "targets",
    "categories",
    "intents",
    "emotions",
    "topics",
    "y",
)
FILE_NAMES = ("file_name", "filename", "file_path", "filepath", "file", "path")  # of a file of any kind
IMAGE_NAMES = (
    "image",
    "img",
    "picture",
    "photo",
    "pixel_values",
    "bytes",
    "image_bytes",
    "image_path",
    "img_path",
    "image_file",
    "image_file_name",
    "image_filename",
    *FILE_NAMES,
)
MASK_NAMES = (
    "mask",
    "masks",
    "label",
    "labels",
    "annotation",
    "annotations",
    "segmentation",
    "segmentation_mask",
    "segmentation_map",
    "semantic_segmentation",
    "mask_path",
    "mask_file",
    "mask_file_name",
    "label_path",
    "label_file",
    "label_file_name",
    "annotation_path",
    "annotation_file_name",
    "segmentation_path",
)
AUDIO_NAMES = (
    *"audio speech sound clip wav recording bytes audio_bytes".split(),
    *"audio_path audio_file audio_filepath audio_file_name audio_filename".split(),
    *"speech_path sound_path clip_path clip_name wav_path wav_file".split(),
    *FILE_NAMES,
)
TRANSCRIPT_NAMES = ("text", "sentence", "transcription", "transcript")
# Where there is none of those: many datasets have one of these beside it, as another form of the same words.
OTHER_TRANSCRIPT_NAMES = (
    *"normalized_text raw_text original_text utterance".split(),
    *"normalized_transcription raw_transcription transcript_normalized".split(),
)


def find_column(
    features: Mapping[str, Any] | Sequence[str],
    *,
    flag: str,
    given: str | None,
    usual_names: Sequence[str],
    fits: Callable[[Any], bool],
    role: str,
) -> str:
    """The one column that plays `role`: the given one, else the one usual name, else the only one that fits.

    `features` maps names to features; a list of names alone is compared by name. `fits` says whether a
    feature can play the role, `flag` is what the user changes. Raises DataError where the given column is
    missing or does not fit, and where none or several could be meant.
    """
    features = _as_mapping(features)
    if given is not None:
        return _given_column(features, given, flag=flag, fits=fits, role=role)
    fitting = [name for name, feature in features.items() if feature is None or fits(feature)]
    candidates = [name for name in fitting if name.lower() in usual_names]
    by_type = not candidates
    candidates = candidates or fitting
    if len(candidates) != 1:
        raise _unclear(features, candidates, flag=flag, role=role)
    if by_type:
        logger.info("Column '%s' is taken as the %s: the only one of a fitting type.", candidates[0], role)
    return candidates[0]


def find_text_columns(
    features: Mapping[str, Any] | Sequence[str], *, given: Sequence[str] | None, exclude: Iterable[str]
) -> list[str]:
    """The column of the text, or the two columns of a text pair in their order.

    `exclude` names columns with another role. Raises DataError as `find_column` does, and for two pairs or
    for a pair beside a further usual name.
    """
    features = _as_mapping(features)
    if given:
        return _given_text_columns(features, [given] if isinstance(given, str) else list(given))
    excluded = set(exclude)
    others = {name: feature for name, feature in features.items() if name not in excluded}
    names = {name.lower(): name for name, feature in others.items() if feature is None or is_text(feature)}
    pairs = [pair for pair in TEXT_PAIRS if set(pair) <= names.keys()]
    if not pairs:
        column = find_column(others, flag=TEXT_FLAG, given=None, usual_names=TEXT_NAMES, fits=is_text, role="text")
        return [column]
    usual = {name for name in names if name in TEXT_NAMES} | {name for pair in pairs for name in pair}
    if usual != set(pairs[0]):
        candidates = [original for name, original in names.items() if name in usual]
        raise _unclear(features, candidates, flag=TEXT_FLAG, role="text")
    return [names[name] for name in pairs[0]]


def find_label_column(
    features: Mapping[str, Any] | Sequence[str], *, given: str | None, exclude: Iterable[str] = ()
) -> str:
    """The column of the label: a usual name, else the only ClassLabel (or list of ClassLabel, or boolean).

    A usual name may hold strings, numbers, booleans or lists of them. `exclude` names columns with another
    role. Raises DataError as `find_column` does.
    """
    features = _as_mapping(features)
    if given is not None:
        return _given_column(features, given, flag=LABEL_FLAG, fits=is_label, role="label")
    excluded = set(exclude)
    # Any string or number could be a label; without a usual name, only a type that says so is one.
    candidates = {
        name: feature
        for name, feature in features.items()
        if name not in excluded and (feature is None or _is_usual_label(name, feature))
    }
    if not candidates:
        raise _unclear(features, [], flag=LABEL_FLAG, role="label")
    return find_column(candidates, flag=LABEL_FLAG, given=None, usual_names=LABEL_NAMES, fits=is_label, role="label")


def find_image_column(
    features: Mapping[str, Any] | Sequence[str], *, given: str | None, exclude: Iterable[str] = ()
) -> str:
    """The column of the picture: a usual name, else the only Image; bytes and paths count under a usual name alone.

    What holds pictures goes before strings that may be paths: a table of pictures often names their files too. A usual
    name of masks is no picture's. `exclude` names columns with another role. Raises DataError as `find_column` does.
    """
    names = {"usual_names": IMAGE_NAMES, "names_of_others": MASK_NAMES}
    return _find_encoded(features, flag=IMAGE_FLAG, given=given, exclude=exclude, **names, holds=is_image, role="image")


def find_mask_column(
    features: Mapping[str, Any] | Sequence[str], *, given: str | None, exclude: Iterable[str] = ()
) -> str:
    """The column of the segmentation mask, by the rules of `find_image_column`."""
    names = {"usual_names": MASK_NAMES, "names_of_others": IMAGE_NAMES}
    return _find_encoded(features, flag=LABEL_FLAG, given=given, exclude=exclude, **names, holds=is_image, role="mask")


def find_audio_column(
    features: Mapping[str, Any] | Sequence[str], *, given: str | None, exclude: Iterable[str] = ()
) -> str:
    """The column of the clip, by the rules of `find_image_column` with Audio in the place of Image."""
    names = {"usual_names": AUDIO_NAMES, "names_of_others": ()}
    return _find_encoded(features, flag=AUDIO_FLAG, given=given, exclude=exclude, **names, holds=is_audio, role="audio")


def find_transcript_column(
    features: Mapping[str, Any] | Sequence[str], *, given: str | None, exclude: Iterable[str] = ()
) -> str:
    """The column of what is said in a clip: strings under a usual name, and under no other one.

    A dataset of speech has strings for speakers, accents and files too, of which none is a transcript for being the only
    one. `exclude` names columns with another role. Raises DataError as `find_column` does.
    """
    features = _as_mapping(features)
    if given is not None:
        return _given_column(features, given, flag=TRANSCRIPT_FLAG, fits=is_text, role="transcript")
    excluded = set(exclude)
    others = {name: feature for name, feature in features.items() if name not in excluded}
    texts = {name: feature for name, feature in others.items() if feature is None or is_text(feature)}
    for usual_names in (TRANSCRIPT_NAMES, OTHER_TRANSCRIPT_NAMES):
        candidates = [name for name in texts if name.lower() in usual_names]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise _unclear(others, candidates, flag=TRANSCRIPT_FLAG, role="transcript")
    raise _unclear(others, [], flag=TRANSCRIPT_FLAG, role="transcript")


def require_column(column_names: Sequence[str] | None, name: str, *, split: str, flag: str) -> None:
    """DataError where a split lacks a column that the training split has."""
    there = column_names or []
    if name not in there:
        raise DataError(f"The {split} split has no column {name!r}; it has {', '.join(there)}. Choose with {flag}.")


def feature_kind(feature: Any) -> str:
    """What one value of a feature is: class, string, boolean, integer, float, null, list or other."""
    if isinstance(feature, ClassLabel):
        return "class"
    if item_feature(feature) is not None:
        return "list"
    if not isinstance(feature, Value):
        return "other"
    for kind, is_kind in _KINDS:
        if is_kind(feature.pa_type):
            return kind
    return "other"


def item_feature(feature: Any) -> Any:
    """The feature of a list's items, None where the feature is no list; `List` has no dtype (pitfall 5)."""
    if isinstance(feature, (List, LargeList)):
        return feature.feature
    return feature[0] if isinstance(feature, list) and feature else None


def describe_feature(feature: Any) -> str:
    """A feature in a few words, for a message."""
    if isinstance(feature, ClassLabel):
        return f"ClassLabel of {feature.num_classes}"
    item = item_feature(feature)
    if item is not None:
        return f"list of {describe_feature(item)}"
    if isinstance(feature, dict):
        return f"struct of {', '.join(feature)}"
    if isinstance(feature, Audio):
        return "Audio"  # also where it is EncodedAudio
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def is_text(feature: Any) -> bool:
    """Whether a feature holds strings."""
    return feature_kind(feature) == "string"


def is_label(feature: Any) -> bool:
    """Whether a feature can be a label: a class, a string, a number, a boolean, or a list of one of them."""
    kind = feature_kind(feature)
    if kind == "list":
        return feature_kind(item_feature(feature)) not in ("list", "other")
    return kind != "other"


def is_image(feature: Any) -> bool:
    """Whether a feature holds encoded pictures: an Image, binary, or a struct of bytes and path."""
    return isinstance(feature, Image) or _is_file(feature) or _is_binary(feature)


def is_audio(feature: Any) -> bool:
    """Whether a feature holds encoded clips: an Audio, binary, or a struct of bytes and path."""
    return isinstance(feature, Audio) or _is_file(feature) or _is_binary(feature)


def _is_file(feature: Any) -> bool:
    return isinstance(feature, dict) and {"bytes", "path"} <= feature.keys()


def _is_binary(feature: Any) -> bool:
    types = pa.types
    return isinstance(feature, Value) and (types.is_binary(feature.pa_type) or types.is_large_binary(feature.pa_type))


def _find_encoded(
    features: Mapping[str, Any] | Sequence[str],
    *,
    flag: str,
    given: str | None,
    exclude: Iterable[str],
    usual_names: Sequence[str],
    names_of_others: Sequence[str],
    holds: Callable[[Any], bool],
    role: str,
) -> str:
    def may_hold(feature: Any) -> bool:
        return holds(feature) or is_text(feature)

    features = _as_mapping(features)
    if given is not None:
        return _given_column(features, given, flag=flag, fits=may_hold, role=role)
    excluded = set(exclude)
    others = {name: feature for name, feature in features.items() if name not in excluded}
    usual = {name: feature for name, feature in others.items() if name.lower() in usual_names}
    choices = (
        {name: feature for name, feature in usual.items() if feature is None or holds(feature)},
        {
            name: feature
            for name, feature in others.items()
            if holds(feature) and not _is_binary(feature) and name.lower() not in names_of_others
        },
        {name: feature for name, feature in usual.items() if is_text(feature)},
    )
    candidates = next((choice for choice in choices if choice), {})
    if not candidates:
        raise _unclear(others, [], flag=flag, role=role)
    return find_column(candidates, flag=flag, given=None, usual_names=usual_names, fits=may_hold, role=role)


def _is_usual_label(name: str, feature: Any) -> bool:
    item = item_feature(feature)
    is_class = feature_kind(feature if item is None else item) == "class"
    return is_class or feature_kind(feature) == "boolean" or (name.lower() in LABEL_NAMES and is_label(feature))


def _is_string(pa_type: pa.DataType) -> bool:
    types = pa.types
    return types.is_string(pa_type) or types.is_large_string(pa_type) or types.is_string_view(pa_type)


def _is_float(pa_type: pa.DataType) -> bool:
    return pa.types.is_floating(pa_type) or pa.types.is_decimal(pa_type)


_KINDS = (
    ("string", _is_string),
    ("boolean", pa.types.is_boolean),
    ("integer", pa.types.is_integer),
    ("float", _is_float),
    ("null", pa.types.is_null),
)


def _as_mapping(features: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    return dict(features) if isinstance(features, Mapping) else dict.fromkeys(features)


def _given_text_columns(features: dict[str, Any], given: list[str]) -> list[str]:
    if len(set(given)) < len(given):
        raise DataError(f"{TEXT_FLAG} {','.join(given)} names a column twice.")
    return [_given_column(features, name, flag=TEXT_FLAG, fits=is_text, role="text") for name in given]


def _given_column(features: dict[str, Any], given: str, *, flag: str, fits: Callable[[Any], bool], role: str) -> str:
    if given not in features:
        lowered = {name.lower(): name for name in features}
        near = difflib.get_close_matches(given.lower(), lowered, n=1)
        hint = f" Did you mean '{lowered[near[0]]}'?" if near else ""
        raise DataError(f"{flag} {given}: no such column.{hint} Columns there: {_listed(features)}.")
    feature = features[given]
    if feature is not None and not fits(feature):
        raise DataError(
            f"{flag} {given}: a column of type {describe_feature(feature)} cannot be the {role}. "
            f"Columns there: {_listed(features)}."
        )
    return given


def _unclear(features: dict[str, Any], candidates: list[str], *, flag: str, role: str) -> DataError:
    if candidates:
        listed = _listed({name: features[name] for name in candidates})
        problem = f"Several columns could be the {role}: {listed}"
    else:
        problem = f"No column looks like the {role}. Columns there: {_listed(features)}"
    return DataError(f"{problem}. Say which one with {flag}.")


def _listed(features: dict[str, Any]) -> str:
    return (
        ", ".join(
            f"'{name}'" if feature is None else f"'{name}' ({describe_feature(feature)})"
            for name, feature in features.items()
        )
        or "none"
    )
