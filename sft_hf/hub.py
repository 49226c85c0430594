"""Talking to the Hub: what its errors mean, rights before training, a push that is retried after it.

A run of eight hours must not be lost to one 503: neither create_repo nor a commit is retried by the client
(huggingface_hub 2.4), so they are here. The files that go up are an allow-list; nothing else of a run's folder does.
"""

import logging
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, is_offline_mode
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from sft_hf.errors import HubError, PushError, SftError

if TYPE_CHECKING:
    from datasets import IterableDataset

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

PUSHED_PATTERNS = (
    "README.md",
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor*.json",
    "video_preprocessor_config.json",
    "results.json",
)
EXAMPLE_FOLDERS = ("predictions", "reports")
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
# The client raises its own, requests' or httpx's network errors, depending on the call and the version.
NETWORK_MODULES = {"requests", "httpx", "httpx2", "httpcore"}


@dataclass(frozen=True)
class Retries:
    """How often a call is tried in all, and the seconds before the second try; the wait doubles each time."""

    tries: int = 5
    first_wait_seconds: float = 2.0


DEFAULT_RETRIES = Retries()
STREAM_RETRIES = Retries(tries=8)  # 7.3 minutes with those of the client, 23 s for each try


def with_retries(call: Callable[[], Result], what: str, *, retries: Retries = DEFAULT_RETRIES) -> Result:
    """Call until it answers; a refusal (401, 403, 404, 409 ...) is raised at once, a server's fault is retried."""
    for attempt in range(1, retries.tries + 1):
        try:
            return call()
        except Exception as error:
            if attempt == retries.tries or not is_transient(error):
                raise
            wait = retries.first_wait_seconds * 2 ** (attempt - 1)
            logger.warning("%s failed (%s); try %d of %d in %g s", what, error, attempt + 1, retries.tries, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def read_stream(rows: "IterableDataset", *, retries: Retries = STREAM_RETRIES) -> Iterator[dict[str, Any]]:
    """One pass over the rows of a stream whose order does not change, which survives a Hub that fails for some minutes.

    What the clients do not wait for is waited for here: they try a broken connection again for 9 minutes and a silent one for
    29, but give up on a 503 after 23 seconds. Then the pass begins anew, behind the rows that were given. Raises HubError.
    """
    given = failures = 0
    while True:
        try:
            # Not iter(rows): in a dataloader's worker that is another order.
            for batch in islice(rows.iter(batch_size=1), given, None):
                given, failures = given + 1, 0
                yield {name: values[0] for name, values in batch.items()}
        except Exception as error:
            failures += 1
            if not is_from_hub(error):
                raise
            if failures == retries.tries or _status_of(error) not in RETRIED_STATUS:
                raise explain_reading(error) from error
            wait = retries.first_wait_seconds * 2 ** (failures - 1)
            logger.warning(
                "a stream broke at row %d: %s Try %d of %d in %g s",
                given,
                explain_reading(error),
                failures + 1,
                retries.tries,
                wait,
            )
            time.sleep(wait)
        else:
            return


def is_transient(error: BaseException) -> bool:
    """Whether trying again can help: the server's fault or the network's, not a refusal and not the offline mode.

    transformers turns a 503 into an OSError, so the causes of an error count too.
    """
    if is_offline_mode():
        return False
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return False
        if isinstance(cause, HfHubHTTPError):
            return cause.response.status_code in RETRIED_STATUS
        if _is_of_network(cause):
            return True
    return False


def is_from_hub(error: BaseException) -> bool:
    """Whether the Hub's answer, or none from it, is behind an error: what `explain` is for."""
    kinds = (HfHubHTTPError, LocalEntryNotFoundError)
    return any(isinstance(cause, kinds) or _is_of_network(cause) for cause in _causes(error))


def _is_of_network(error: BaseException) -> bool:
    modules = {cls.__module__.split(".")[0] for cls in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or bool(modules & NETWORK_MODULES)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def explain(error: BaseException, *, kind: str, repo_id: str, flag: str) -> HubError:
    """The user's view of what the Hub answered. `kind` is model or dataset, `flag` the one that named `repo_id`."""
    page = f"the page of {repo_id} on the Hub"
    causes = list(_causes(error))
    answers = [cause for cause in causes if isinstance(cause, HfHubHTTPError)]
    error = next(iter(answers or filter(_is_of_network, causes)), error)
    if isinstance(error, GatedRepoError):
        return HubError(
            f"{flag} {repo_id}: this {kind} is gated. Ask for access on {page}, then log in with `hf auth login` or set "
            "HF_TOKEN (or --token) to a token of the account that has it."
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{flag} {repo_id}: there is no such revision; {page} lists branches, tags and commits.")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"{flag} {repo_id}: no such {kind} on the Hub, no such folder here, or it is private and the token (HF_TOKEN, "
            "--token or the login) has no right to it. Check the spelling: ORG/NAME."
        )
    if status == 401:
        return HubError(f"{flag} {repo_id}: the Hub refuses the token. Renew it: `hf auth login`, HF_TOKEN or --token.")
    if is_offline_mode() or isinstance(error, OfflineModeIsEnabled):
        return HubError(f"{flag} {repo_id}: HF_HUB_OFFLINE is set and this {kind} is not in the cache. Unset it once.")
    return HubError(f"{flag} {repo_id}: the Hub could not be asked ({type(error).__name__}: {error}).")


@contextmanager
def explained() -> Iterator[None]:
    """Turn an answer of the Hub's, or one that did not come, that nothing nearer explains, into a HubError."""
    try:
        yield
    except SftError:
        raise
    except Exception as error:
        if all(_request_of(cause) is None for cause in _causes(error)):
            raise
        raise explain_reading(error) from error


def explain_reading(error: BaseException) -> HubError:
    """The user's view of a file, or of another answer of the Hub's, that did not come while a run reads; names its address."""
    causes = list(_causes(error))
    answer = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    urls = [str(request.url).partition("?")[0] for cause in causes if (request := _request_of(cause)) is not None]
    if answer is not None:
        said = f"HTTP {answer.response.status_code}"
        said += f", {answer.server_message}" if answer.server_message else ""
    else:
        said = f"no whole answer, {type(causes[-1]).__name__}: {causes[-1]}"
    return HubError(f"{urls[0] if urls else 'The Hub'} cannot be read: {said}.")


def _request_of(error: BaseException) -> Any:
    try:
        return getattr(error, "request", None)
    except RuntimeError:  # what httpx raises of an error that knows of none
        return None


def _status_of(error: BaseException) -> int | None:
    return next((cause.response.status_code for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)


def cached_commit(repo_id: str, revision: str | None, cache_dir: str | None) -> str | None:
    """The commit of a model that the cache has for `revision`, by default for main, else the newest; None without one.

    Runs download by commit, so that all files are of one, and then the cache does not know what main was.
    """
    folder = Path(cache_dir or HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text().strip()
    newest = max((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime, default=None)
    return revision or (newest.name if newest else None)


def check_write_access(
    repo_id: str, *, token: str | None, private: bool | None, retries: Retries = DEFAULT_RETRIES
) -> str:
    """Create the repository, or check the right to write to it, before anything expensive; returns ORG/NAME.

    create_repo(exist_ok=True) also succeeds on a repository of somebody else, so the right is asked for by itself.
    """
    api = HfApi(token=token)
    flag = "--hub_model_id"
    try:
        user = with_retries(api.whoami, "whoami", retries=retries)
        full_id = repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"
        with_retries(
            lambda: api.create_repo(full_id, private=private, exist_ok=True), f"create_repo {full_id}", retries=retries
        )
        with_retries(lambda: api.auth_check(full_id, write=True), f"auth_check {full_id}", retries=retries)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403) and not isinstance(error, (GatedRepoError, RepositoryNotFoundError)):
            raise HubError(
                f"{flag} {repo_id}: the token may not write there (HTTP {status}). Use a token with write access to that "
                "namespace: `hf auth login`, HF_TOKEN or --hub_token."
            ) from error
        raise explain(error, kind="model", repo_id=repo_id, flag=flag) from error
    except Exception as error:
        if "LocalTokenNotFound" in type(error).__name__:
            raise HubError("--push_to_hub: there is no token. `hf auth login`, or set HF_TOKEN.") from error
        if isinstance(error, OfflineModeIsEnabled) or is_transient(error):
            raise explain(error, kind="model", repo_id=repo_id, flag=flag) from error
        raise
    return full_id


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None,
    private: bool | None = None,
    push_examples: bool = False,
    commit_message: str = "Fine-tuned with sft_hf",
    revision: str | None = None,
    retries: Retries = DEFAULT_RETRIES,
) -> str:
    """Upload what the allow-list names of a run's folder, in one commit; returns the commit's URL.

    The repository and the branch `revision` are made if need be; the pushed `recipe.yaml` is the run's without local
    paths. Raises PushError, with the command that pushes later, when the Hub still fails after the retries: the local
    folder is whole and stays.
    """
    api = HfApi(token=token)
    try:
        names = _allowed(Path(folder), push_examples=push_examples)
        with_retries(
            lambda: api.create_repo(repo_id, private=private, exist_ok=True), f"create_repo {repo_id}", retries=retries
        )
        if revision:
            with_retries(
                lambda: api.create_branch(repo_id, branch=revision, exist_ok=True),
                f"branch {revision}",
                retries=retries,
            )
        commit = with_retries(
            lambda: _commit(api, Path(folder), repo_id, names, commit_message, revision),
            f"push to {repo_id}",
            retries=retries,
        )
    except Exception as error:
        raise PushError(
            f"The run is complete in {folder}, but pushing it to {repo_id} failed: {type(error).__name__}: {error}\n"
            f"Push it later with: sft-hf push {shlex.quote(str(folder))} --hub_model_id {repo_id}"
            + (f" --hub_revision {shlex.quote(revision)}" if revision else "")
            + (" --push_examples" if push_examples else "")
        ) from error
    return commit


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    *,
    path_in_repo: str,
    token: str | None,
    revision: str | None = None,
    retries: Retries = DEFAULT_RETRIES,
) -> str:
    """Upload a whole checkpoint, optimizer included, from which another machine can go on; returns the commit's URL.

    Without training_args.bin, a pickle with paths of this machine, which nothing reads to go on. Raises PushError.
    """
    api = HfApi(token=token)
    try:
        return with_retries(
            lambda: (
                api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    path_in_repo=path_in_repo,
                    revision=revision,
                    commit_message=f"{Path(folder).name}, whole",
                    ignore_patterns=["training_args.bin"],
                ).commit_url
            ),
            f"push of {folder} to {repo_id}",
            retries=retries,
        )
    except Exception as error:
        raise PushError(f"Pushing {folder} to {repo_id} failed: {type(error).__name__}: {error}") from error


def _commit(api: HfApi, folder: Path, repo_id: str, names: list[str], message: str, revision: str | None) -> str:
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
    recipe = folder / "recipe.yaml"
    if recipe.is_file():
        shared = without_local_paths(recipe.read_text(encoding="utf-8"))
        operations.append(CommitOperationAdd(path_in_repo="recipe.yaml", path_or_fileobj=shared.encode()))
    return api.create_commit(repo_id, operations, commit_message=message, revision=revision).commit_url


def _allowed(folder: Path, *, push_examples: bool) -> list[str]:
    """The names that go up. A pattern for the top must not reach into a folder, and `*` of fnmatch would: it takes /."""
    top = [path for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in PUSHED_PATTERNS)]
    below = [path for name in EXAMPLE_FOLDERS if push_examples for path in (folder / name).rglob("*")]
    return sorted(path.relative_to(folder).as_posix() for path in (*top, *below) if path.is_file())


LOCAL_PATH_KEYS = (
    "output_dir", "cache_dir", "resume", "deepspeed", "fsdp_config", "accelerator_config", "optim_args",
    "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "lr_scheduler_kwargs", "liger_kernel_config",
)  # fmt: skip
FILE_KEYS = ("train_file", "validation_file", "test_file", "mask_colors", "class_weights", "lm_path")
SOURCE_KEYS = ("dataset_name", "model_name_or_path", "backbone_name_or_path", "tokenizer_name", "metrics")


def without_local_paths(recipe: str) -> str:
    """A recipe.yaml's text for other people: paths of this machine become file names or are left out."""
    import yaml

    values = yaml.safe_load(recipe) or {}
    for key in LOCAL_PATH_KEYS:
        if isinstance(values.get(key), str) and ("/" in values[key] or Path(values[key]).exists()):
            del values[key]
    values.pop("output_dir", None)
    for key in (*FILE_KEYS, *SOURCE_KEYS):
        value = values.get(key)
        names = [
            Path(item).name if key in FILE_KEYS or _is_local(item) else item
            for item in (value if isinstance(value, list) else [value])
            if item is not None
        ]
        if names:
            values[key] = names if isinstance(value, list) else names[0]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _is_local(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or Path(name).expanduser().exists()
