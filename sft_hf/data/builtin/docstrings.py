"""`builtin:docstrings`: which library a docstring comes from.

    docstrings()["train"][0]
    -> {"text": "Return a copy of the array with each element clipped to ...", "label": 0}

The first paragraphs of the public functions, classes and methods of numpy, pandas, scikit-learn, scipy and torch, with
the libraries' names masked. It depends on the installed versions; they stand in the dataset's description.
"""

import hashlib
import importlib
import inspect
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Value

from sft_hf.data.splits import hold_out
from sft_hf.errors import DataError

# Distribution -> the modules whose public names are read. A list, not a walk: importing unknown modules prints, warns
# and takes long.
MODULES = {
    "numpy": "numpy numpy.ctypeslib numpy.fft numpy.lib.array_utils numpy.lib.format numpy.lib.mixins "
    "numpy.lib.scimath numpy.lib.stride_tricks numpy.linalg numpy.ma numpy.polynomial numpy.polynomial.polynomial "
    "numpy.random numpy.rec numpy.strings numpy.testing",
    "pandas": "pandas pandas.api.extensions pandas.api.indexers pandas.api.interchange pandas.api.types "
    "pandas.api.typing pandas.arrays pandas.errors pandas.io.formats.style pandas.plotting pandas.testing "
    "pandas.tseries.frequencies pandas.tseries.offsets",
    "scikit-learn": "sklearn sklearn.base sklearn.calibration sklearn.cluster sklearn.compose sklearn.covariance "
    "sklearn.cross_decomposition sklearn.datasets sklearn.decomposition sklearn.discriminant_analysis sklearn.dummy "
    "sklearn.ensemble sklearn.feature_extraction sklearn.feature_extraction.image sklearn.feature_extraction.text "
    "sklearn.feature_selection sklearn.gaussian_process sklearn.gaussian_process.kernels sklearn.impute "
    "sklearn.inspection sklearn.isotonic sklearn.kernel_approximation sklearn.kernel_ridge sklearn.linear_model "
    "sklearn.manifold sklearn.metrics sklearn.metrics.pairwise sklearn.mixture sklearn.model_selection "
    "sklearn.multiclass sklearn.multioutput sklearn.naive_bayes sklearn.neighbors sklearn.neural_network "
    "sklearn.pipeline sklearn.preprocessing sklearn.random_projection sklearn.semi_supervised sklearn.svm "
    "sklearn.tree sklearn.utils sklearn.utils.extmath sklearn.utils.validation",
    "scipy": "scipy.cluster.hierarchy scipy.cluster.vq scipy.constants scipy.fft scipy.integrate scipy.interpolate "
    "scipy.io scipy.linalg scipy.ndimage scipy.optimize scipy.signal scipy.signal.windows scipy.sparse "
    "scipy.sparse.csgraph scipy.sparse.linalg scipy.spatial scipy.spatial.distance scipy.spatial.transform "
    "scipy.special scipy.stats scipy.stats.qmc",
    "torch": "torch torch.amp torch.autograd torch.cuda torch.distributions torch.fft torch.func torch.linalg "
    "torch.nn torch.nn.functional torch.nn.init torch.nn.utils torch.optim torch.optim.lr_scheduler torch.profiler "
    "torch.random torch.signal.windows torch.sparse torch.special torch.utils.data",
}
TEXTS_PER_LIBRARY = 600
MIN_CHARACTERS = 20
SEED = 42

MASK = "library"
NAMES = re.compile(
    r"scikit-?learn|scikits?|sklearn|py-?torch|torch|numpy|scipy|pandas"
    r"|(?-i:(?<![A-Za-z0-9_])(?:np|sp|pd)(?![A-Za-z0-9_]))",
    re.IGNORECASE,
)
ROLE = re.compile(r":[a-z:]+:`~?([^`<]*?)(?: <[^`]*>)?`")  # :func:`~numpy.sum` -> numpy.sum
PARAGRAPH_END = re.compile(r"\n[ \t]*\n|\n[^\n]*\n[ \t]*[-=_]{3,}[ \t]*(?=\n)")  # a blank line, or an underlined title
# They say where another docstring is, in one library's set phrase.
POINTER = re.compile(
    r"(?:See |Scalar method identical |Alias (?:for|of) |In-place version of |Create an expression that evaluates )"
)
# A signature, as docstrings of functions written in C begin, or a directive.
NO_PROSE = re.compile(r"[\w.]+\(.*\)(?: ?->.*)?|\.\. .*")


def docstrings() -> DatasetDict:
    """Text classification: about 600 texts of each of five libraries, none twice, as train, validation and test.

    Raises DataError where one of the libraries is not installed.
    """
    texts = {library: _texts(library) for library in MODULES}
    libraries = Counter(key for library in texts for key in texts[library])
    rows = []
    for label, library in enumerate(MODULES):
        # The same words in two libraries have no right answer.
        own = [text for key, text in texts[library].items() if libraries[key] == 1]
        rows += [(text, label) for text in sorted(own, key=_digest)[:TEXTS_PER_LIBRARY]]
    rows.sort(key=lambda row: _digest(row[0]))
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(MODULES))})
    description = "First paragraphs of docstrings of " + ", ".join(map(_versioned, MODULES))
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"text": [rows[row][0] for row in chosen], "label": [rows[row][1] for row in chosen]},
                features=features,
                info=DatasetInfo(description=description, features=features),
            )
            for split, chosen in _split([label for _, label in rows]).items()
        }
    )


def first_paragraph(docstring: str) -> str:
    """The first paragraph of prose on one line, without markup and with the libraries' names masked."""
    for paragraph in PARAGRAPH_END.split(docstring.strip(), maxsplit=3)[:3]:
        text = " ".join(paragraph.split())
        if text and not NO_PROSE.fullmatch(text):
            return NAMES.sub(MASK, ROLE.sub(r"\1", text).replace("`", "").replace("::", ":"))
    return ""


def _split(labels: list[int]) -> dict[str, np.ndarray]:
    """Row numbers of 80, 10 and 10 percent, stratified."""
    outer = hold_out(num_rows=len(labels), fraction=0.2, seed=SEED, stratify=labels)
    inner = hold_out(
        num_rows=len(outer.validation), fraction=0.5, seed=SEED, stratify=[labels[row] for row in outer.validation]
    )
    return {
        "train": outer.train,
        "validation": outer.validation[inner.train],
        "test": outer.validation[inner.validation],
    }


def _texts(library: str) -> dict[str, str]:
    """The texts of a library, one for each key: what is left of it without case and closing punctuation."""
    docstrings = set()
    # Some modules warn on import, some attributes when they are read.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in MODULES[library].split():
            for documented in _documented(_import(name, library)):
                docstring = _read(documented, "__doc__")
                docstrings.update([docstring] if isinstance(docstring, str) else [])
    texts = {first_paragraph(docstring) for docstring in docstrings}
    kept = [text for text in texts if len(text) >= MIN_CHARACTERS and not POINTER.match(text)]
    return {text.rstrip(" .:").casefold(): text for text in sorted(kept)}


def _versioned(library: str) -> str:
    return f"{library} {importlib.import_module(MODULES[library].partition('.')[0].split()[0]).__version__}"


def _import(name: str, library: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        if "." in name:  # a sub-package of another version
            return None
        raise DataError(
            f"--dataset_name builtin:docstrings reads the docstrings of {', '.join(MODULES)}; {library} is not "
            f"installed (pip install {library})."
        ) from None


def _documented(module: ModuleType | None) -> Iterator[Any]:
    """The public functions and classes of a module that are the library's own, and the classes' own public methods."""
    for member in _public(module, _read(module, "__all__") or dir(module)):
        if inspect.isclass(member):
            yield member
            # A plain value would answer with the docstring of its type.
            yield from (member for member in _public(member, vars(member)) if hasattr(type(member), "__get__"))
        elif inspect.isroutine(member) or isinstance(member, np.ufunc):
            yield member


def _public(owner: Any, names: Iterable[str]) -> Iterator[Any]:
    root = (_read(owner, "__module__") or _read(owner, "__name__") or "").partition(".")[0]
    for name in sorted(names):
        member = _read(owner, name)
        origin = _read(member, "__module__")
        if not name.startswith("_") and (not isinstance(origin, str) or origin.partition(".")[0] == root):
            yield member


def _read(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name, None)
    except Exception:  # an attribute may compute, and fail in its own way
        return None


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
