"""Talking to the Hub: what its errors mean, rights before training, a push that is retried after it.

A run of eight hours must not be lost to one 503: neither create_repo nor a commit is retried by the client
(huggingface_hub 2.4), so they are here. The files that go up are an allow-list; nothing else of a run's folder does.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sft_hf.errors import HubError, PushError

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
EXAMPLE_PATTERNS = ("predictions/*", "reports/*")
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Retries:
    """How often a call is tried in all, and the seconds before the second try; the wait doubles each time."""

    tries: int = 5
    first_wait_seconds: float = 2.0


DEFAULT_RETRIES = Retries()


def with_retries(call: Callable[[], Result], what: str, *, retries: Retries = DEFAULT_RETRIES) -> Result:
    """Call until it answers; a refusal (401, 403, 404, 409 ...) is raised at once, a server's fault is retried."""
    for attempt in range(1, retries.tries + 1):
        try:
            return call()
        except Exception as error:
            # The client raises its own, requests' or httpx's network errors, depending on the call and the version.
            if attempt == retries.tries or not is_transient(error):
                raise
            wait = retries.first_wait_seconds * 2 ** (attempt - 1)
            logger.warning("%s failed (%s); try %d of %d in %g s", what, error, attempt + 1, retries.tries, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def is_transient(error: BaseException) -> bool:
    """Whether trying again can help: the server's fault or the network's, not a refusal."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response is None or error.response.status_code in RETRIED_STATUS
    modules = {cls.__module__.split(".")[0] for cls in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or bool(
        modules & {"requests", "httpx", "httpx2", "httpcore"}
    )


def explain(error: BaseException, *, kind: str, repo_id: str, flag: str) -> HubError:
    """The user's view of what the Hub answered. `kind` is model or dataset, `flag` the one that named `repo_id`."""
    page = f"the page of {repo_id} on the Hub"
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
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(f"{flag} {repo_id}: HF_HUB_OFFLINE is set and this {kind} is not in the cache. Unset it once.")
    return HubError(f"{flag} {repo_id}: the Hub could not be asked ({type(error).__name__}: {error}).")


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

    The pushed `recipe.yaml` is the run's without local paths. Raises PushError, with the command that pushes later,
    when the Hub still fails after the retries: the local folder is whole and stays.
    """
    api = HfApi(token=token)
    patterns = [*PUSHED_PATTERNS, *(EXAMPLE_PATTERNS if push_examples else ())]
    try:
        with_retries(
            lambda: api.create_repo(repo_id, private=private, exist_ok=True), f"create_repo {repo_id}", retries=retries
        )
        commit = with_retries(
            lambda: _commit(api, Path(folder), repo_id, patterns, commit_message, revision),
            f"push to {repo_id}",
            retries=retries,
        )
    except Exception as error:
        raise PushError(
            f"The run is complete in {folder}, but pushing it to {repo_id} failed: {type(error).__name__}: {error}\n"
            f"Push it later with: sft-hf push {folder} --hub_model_id {repo_id}"
        ) from error
    return commit


def _commit(api: HfApi, folder: Path, repo_id: str, patterns: list[str], message: str, revision: str | None) -> str:
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils import filter_repo_objects

    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [name for name in names if not name.startswith("checkpoint-")]
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name)
        for name in filter_repo_objects(names, allow_patterns=patterns)
    ]
    recipe = folder / "recipe.yaml"
    if recipe.is_file():
        operations.append(
            CommitOperationAdd(
                path_in_repo="recipe.yaml", path_or_fileobj=without_local_paths(recipe.read_text()).encode()
            )
        )
    return api.create_commit(repo_id, operations, commit_message=message, revision=revision).commit_url


LOCAL_PATH_KEYS = ("output_dir", "cache_dir", "resume", "class_weights", "deepspeed", "fsdp_config")
LOCAL_SOURCE_KEYS = (
    "dataset_name",
    "model_name_or_path",
    "tokenizer_name",
    "train_file",
    "validation_file",
    "test_file",
)


def without_local_paths(recipe: str) -> str:
    """A recipe.yaml's text for other people: paths of this machine become file names or are left out."""
    import yaml

    values = yaml.safe_load(recipe)
    for key in LOCAL_PATH_KEYS:
        if isinstance(values.get(key), str) and ("/" in values[key] or Path(values[key]).exists()):
            del values[key]
    values.pop("output_dir", None)
    for key in LOCAL_SOURCE_KEYS:
        value = values.get(key)
        if isinstance(value, list):
            values[key] = [Path(item).name for item in value]
        elif isinstance(value, str) and (Path(value).expanduser().exists() or value.startswith(("/", ".", "~"))):
            values[key] = Path(value).name
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
