"""Talking to the Hub: what is tried again, what a refusal means, and that a trained model gets there once and whole."""

import importlib
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sft_hf.errors import HubError, PushError
from sft_hf.hub import (
    Retries,
    check_write_access,
    explain,
    is_transient,
    push_checkpoint,
    push_folder,
    with_retries,
    without_local_paths,
)

httpx = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])  # which, says the client

ALICE, BOB, READER, NOBODY = "alice-token", "bob-token", "alice-read-token", "no-such-token"
AT_ONCE = Retries(first_wait_seconds=0)


@pytest.fixture(autouse=True)
def waits(hub, monkeypatch) -> list[float]:
    """The users; and the seconds that were waited, without the waiting."""
    hub.add_user("alice", ALICE)
    hub.add_user("alice", READER, can_write=False)
    hub.add_user("bob", BOB)
    seconds: list[float] = []
    monkeypatch.setattr("sft_hf.hub.time.sleep", seconds.append)
    return seconds


@pytest.fixture
def repo_id(repo_name) -> str:
    return f"alice/{repo_name}"


def answered(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    """The exception that a client makes of an answer."""
    response = httpx.Response(status, request=httpx.Request("GET", "http://hub/"))
    return kind(f"{status} from the Hub", response=response)


def wrapped(error: Exception) -> OSError:
    """As transformers and datasets do it."""
    try:
        raise OSError("cannot be loaded") from error
    except OSError as outer:
        return outer


class Calls:
    """A function that raises each of `errors` once, then returns "done"."""

    def __init__(self, *errors: Exception):
        self.errors, self.number = list(errors), 0

    def __call__(self) -> str:
        self.number += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


# Retries


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        *((answered(status), True) for status in (408, 429, 500, 502, 503, 504)),
        *((answered(status), False) for status in (400, 401, 403, 404, 409, 412)),
        (httpx.ConnectError("no route"), True),
        (httpx.ReadTimeout("too slow"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OfflineModeIsEnabled("offline"), False),
        (ValueError("ours"), False),
        (FileNotFoundError("ours"), False),
        (wrapped(answered(503)), True),
        (wrapped(answered(404)), False),
        (wrapped(httpx.ReadTimeout("too slow")), True),
    ],
    ids=repr,
)
def test_the_server_s_and_the_network_s_faults_are_transient(error, transient):
    assert is_transient(error) is transient


def test_offline_nothing_gets_better_by_waiting(monkeypatch):
    monkeypatch.setattr("sft_hf.hub.is_offline_mode", lambda: True)
    assert not is_transient(ConnectionError("Couldn't reach the Hub"))


def test_a_call_is_tried_five_times_and_the_waits_double(waits):
    call = Calls(*[answered(503)] * 4)
    assert with_retries(call, "whoami") == "done"
    assert (call.number, waits) == (5, [2, 4, 8, 16])


def test_after_the_last_try_the_error_is_raised(waits):
    call = Calls(*[answered(503)] * 9)
    with pytest.raises(HfHubHTTPError, match="503"):
        with_retries(call, "whoami", retries=Retries(tries=3, first_wait_seconds=0))
    assert (call.number, waits) == (3, [0, 0])


def test_a_refusal_is_raised_at_once(waits):
    call = Calls(answered(403))
    with pytest.raises(HfHubHTTPError, match="403"):
        with_retries(call, "whoami")
    assert (call.number, waits) == (1, [])


def test_a_retry_is_logged_with_the_call_and_the_wait(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    with_retries(Calls(answered(503)), "create_repo alice/pets")
    assert re.search(r"create_repo alice/pets failed \(503 from the Hub\); try 2 of 5 in 2 s", caplog.text)


# What a refusal means


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (answered(403, GatedRepoError), "this model is gated. Ask for access on the page of a/b .* HF_TOKEN"),
        (wrapped(answered(403, GatedRepoError)), "this model is gated"),
        (answered(404, RevisionNotFoundError), "there is no such revision; the page of a/b"),
        (answered(401, RepositoryNotFoundError), "no such model on the Hub, no such folder here, or it is private"),
        (answered(401), "the Hub refuses the token. Renew it: `hf auth login`, HF_TOKEN or --token"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set and this model is not in the cache"),
        (answered(503), r"the Hub could not be asked \(HfHubHTTPError: 503 from the Hub\)"),
        (httpx.ConnectError("no route"), r"the Hub could not be asked \(ConnectError: no route\)"),
        (wrapped(httpx.ReadTimeout("too slow")), r"the Hub could not be asked \(ReadTimeout: too slow\)"),
    ],
    ids=repr,
)
def test_errors_of_the_hub_in_the_user_s_words(error, message):
    told = explain(error, kind="model", repo_id="a/b", flag="--model_name_or_path")
    assert isinstance(told, HubError)
    assert re.match(f"--model_name_or_path a/b: {message}", str(told))


# Rights before training


def test_the_repository_is_created_and_named_in_full(hub, repo_id):
    name = repo_id.split("/")[1]
    assert check_write_access(name, token=ALICE, private=True) == repo_id
    assert HfApi(token=ALICE).model_info(repo_id).private
    assert check_write_access(repo_id, token=ALICE, private=None) == repo_id  # it may be there already
    assert hub.commits("model", repo_id) == ["initial commit"]


@pytest.mark.parametrize("token", [BOB, READER, NOBODY])
@pytest.mark.parametrize("there", [False, True])
def test_a_token_that_may_not_write_is_refused(hub, repo_id, token, there):
    """create_repo(exist_ok=True) is content with somebody else's repository; a run would train and then not push."""
    if there:
        hub.add_repo("model", repo_id, {"README.md": "hers"})
    with pytest.raises(HubError, match=rf"--hub_model_id {repo_id}: the token may not write there \(HTTP 40[13]\)"):
        check_write_access(repo_id, token=token, private=None)
    if there:
        assert hub.files("model", repo_id) == {"README.md": b"hers"}


def test_somebody_else_s_private_repository_is_refused_too(hub, repo_id):
    hub.add_repo("model", repo_id, {"README.md": "hers"}, private=True)
    with pytest.raises(HubError, match=f"--hub_model_id {repo_id}: "):
        check_write_access(repo_id, token=BOB, private=None)


def test_without_a_token_there_is_nothing_to_push_with(repo_id):
    with pytest.raises(HubError, match="--push_to_hub: there is no token. `hf auth login`, or set HF_TOKEN"):
        check_write_access(repo_id, token=None, private=None)


@pytest.mark.parametrize("path", ["/api/whoami-v2", "/api/repos/create", "/auth-check/write"])
def test_the_check_survives_a_failure_and_names_a_lasting_one(hub, repo_id, path):
    method = "POST" if "create" in path else "GET"
    hub.fail(method, path, status=503)
    assert check_write_access(repo_id, token=ALICE, private=None) == repo_id
    hub.fail(method, path, status=503, times=100)
    with pytest.raises(HubError, match=rf"--hub_model_id {repo_id}: the Hub could not be asked .*503"):
        check_write_access(repo_id, token=ALICE, private=None)


# The push

RECIPE = {
    "train_file": ["/home/me/data/train.csv", "data/more.csv"],
    "dataset_name": None,
    "model_name_or_path": "~/models/bert",
    "backbone_name_or_path": "~/models/resnet",
    "mask_colors": "/home/me/data/colors.json",
    "class_weights": "/home/me/data/weights.json",
    "tokenizer_name": "org/bert",
    "metrics": ["/home/me/metrics/hits.py", "accuracy"],
    "output_dir": "runs/pets",
    "cache_dir": "/scratch/cache",
    "resume": "auto",
    "learning_rate": 1e-4,
}
SHARED = {
    "train_file": ["train.csv", "more.csv"],
    "dataset_name": None,
    "model_name_or_path": "bert",
    "backbone_name_or_path": "resnet",
    "mask_colors": "colors.json",
    "class_weights": "weights.json",
    "tokenizer_name": "org/bert",
    "metrics": ["hits.py", "accuracy"],
    "resume": "auto",
    "learning_rate": 1e-4,
}
PUSHED = {
    "README.md": "---\nlicense: mit\n---\n# Pets\n",
    "config.json": "{}",
    "model.safetensors": "weights",
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "vocab.txt": "woof",
    "results.json": "{}",
}
EXAMPLES = {"predictions/test.jsonl": "{}", "reports/index.html": "<p>"}
PRIVATE = {
    "training_args.bin": "a token",
    "trainer_state.json": "{}",
    "optimizer.pt": "moments",
    "secret.env": "a token",
    "validation_indices.json": "{}",
    "checkpoint-3/model.safetensors": "weights",
    "checkpoint-3/README.md": "old",
    "tokenizer_old/secret.env": "a token",
    "backup/model.safetensors": "weights",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """What a run leaves, and what may lie around in its folder."""
    for name, content in {**PUSHED, **EXAMPLES, **PRIVATE, "recipe.yaml": yaml.safe_dump(RECIPE)}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def push(folder: Path, repo_id: str, **options) -> str:
    return push_folder(folder, repo_id, token=ALICE, retries=AT_ONCE, **options)


@pytest.mark.parametrize("push_examples", [False, True])
def test_only_what_the_list_allows_goes_up_in_one_commit(hub, repo_id, folder, push_examples):
    url = push(folder, repo_id, push_examples=push_examples)
    files = hub.files("model", repo_id)
    allowed = {**PUSHED, **(EXAMPLES if push_examples else {})}
    assert set(files) == {*allowed, "recipe.yaml", ".gitattributes"}
    assert all(files[name].decode() == content for name, content in allowed.items())
    assert hub.commits("model", repo_id) == ["Fine-tuned with sft_hf", "initial commit"]
    assert url.startswith(f"{hub.url}/{repo_id}/commit/")


def test_the_pushed_recipe_has_no_path_of_this_machine(hub, repo_id, folder):
    push(folder, repo_id)
    assert yaml.safe_load(hub.files("model", repo_id)["recipe.yaml"]) == SHARED
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == RECIPE


def test_a_folder_with_the_name_of_a_dataset_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_dump({"dataset_name": "data/pets", "model_name_or_path": "org/bert"})
    assert yaml.safe_load(without_local_paths(recipe))["dataset_name"] == "data/pets"
    (tmp_path / "data" / "pets").mkdir(parents=True)
    assert yaml.safe_load(without_local_paths(recipe))["dataset_name"] == "pets"


def test_private_message_and_branch_are_as_asked(hub, repo_id, folder):
    push(folder, repo_id, private=True, commit_message="epoch 3")
    assert HfApi(token=ALICE).model_info(repo_id).private
    assert hub.commits("model", repo_id)[0] == "epoch 3"
    (folder / "results.json").write_text('{"new": 1}')
    push(folder, repo_id, revision="v2")
    push(folder, repo_id, revision="v2")  # which is there by now
    assert json.loads(hub.files("model", repo_id, "v2")["results.json"]) == {"new": 1}
    assert json.loads(hub.files("model", repo_id)["results.json"]) == {}


def test_an_unchanged_folder_makes_no_second_commit(hub, repo_id, folder):
    push(folder, repo_id)
    push(folder, repo_id)
    assert len(hub.commits("model", repo_id)) == 2


def calls_of(hub, action: Callable[[], object]) -> list[tuple[str, str]]:
    """The different requests that an action makes, as method and pattern, in their order."""
    before = len(hub.requests)
    action()
    calls = [
        (request.method, re.sub("[0-9a-f]{64}", "[0-9a-f]{64}", request.path)) for request in hub.requests[before:]
    ]
    return list(dict.fromkeys(calls))


def one_commit(hub, repo_id: str) -> None:
    assert hub.commits("model", repo_id) == ["Fine-tuned with sft_hf", "initial commit"]
    assert set(hub.files("model", repo_id)) == {*PUSHED, "recipe.yaml", ".gitattributes"}


@pytest.mark.parametrize(
    "failure", [{"status": 503}, {"cut": True}, {"cut": True, "applied": True}], ids=["503", "cut", "answer lost"]
)
def test_pitfall_34_one_failure_at_any_call_of_the_push_is_survived(hub, repo_id, folder, failure):
    """Neither create_repo nor a commit is retried by the client: one 503 would lose the push of a whole run."""
    (folder / "model.safetensors").write_text(f"weights of {repo_id}")
    calls = calls_of(hub, lambda: push(folder, repo_id))
    assert {"repos/create", "validate-yaml", "preupload/main", "objects/batch", "commit/main"} <= {
        "/".join(path.split("/")[-2:]).removeprefix("api/") for _, path in calls
    }
    assert "PUT" in {method for method, _ in calls}
    for number, (method, path) in enumerate(calls):
        # A name of its own, and weights that the Hub has not got yet, so that every call is made again.
        name = f"{repo_id}-{number}"
        (folder / "model.safetensors").write_text(f"weights of {name}")
        pattern = f"^{path.replace(repo_id, name)}$"
        hub.fail(method, pattern, **failure)
        start = len(hub.requests)
        push(folder, name)
        assert any(re.match(pattern, request.path) for request in hub.requests[start:]), f"no call of {path}"
        assert hub.files("model", name)["model.safetensors"].decode() == f"weights of {name}"
        assert hub.commits("model", name) == ["Fine-tuned with sft_hf", "initial commit"], f"{method} {path}"


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/repos/create"), ("POST", "/commit/"), ("PUT", "/lfs/")])
def test_a_lasting_failure_keeps_the_folder_and_says_how_to_push_later(hub, repo_id, folder, method, path):
    (folder / "model.safetensors").write_text(f"weights of {repo_id}")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    hub.fail(method, path, status=503, times=1000)
    with pytest.raises(PushError, match=f"Push it later with: sft-hf push {folder} --hub_model_id {repo_id}$") as error:
        push(folder, repo_id)
    assert error.value.exit_code == 3
    assert f"The run is complete in {folder}, but pushing it to {repo_id} failed" in str(error.value)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    hub.clear_failures()
    push(folder, repo_id)
    one_commit(hub, repo_id)


def test_a_refused_push_is_not_tried_again(hub, repo_id, folder, waits):
    hub.add_repo("model", repo_id, {"README.md": "hers"})
    with pytest.raises(PushError, match="403"):
        push_folder(folder, repo_id, token=BOB)
    assert waits == []
    assert hub.files("model", repo_id) == {"README.md": b"hers"}


def test_a_checkpoint_goes_up_whole_but_for_the_pickle_with_the_arguments(hub, repo_id, folder):
    (folder / "checkpoint-3" / "optimizer.pt").write_text("moments")
    (folder / "checkpoint-3" / "training_args.bin").write_text("a token")
    HfApi(token=ALICE).create_repo(repo_id)
    hub.fail("POST", "/commit/", status=503)
    push_checkpoint(folder / "checkpoint-3", repo_id, path_in_repo="last-checkpoint", token=ALICE, retries=AT_ONCE)
    pushed = {name for name in hub.files("model", repo_id) if name != ".gitattributes"}
    assert pushed == {f"last-checkpoint/{name}" for name in ("model.safetensors", "README.md", "optimizer.pt")}
    assert hub.commits("model", repo_id) == ["checkpoint-3, whole", "initial commit"]


def test_a_checkpoint_that_cannot_be_pushed_is_a_push_error(hub, repo_id, folder):
    HfApi(token=ALICE).create_repo(repo_id)
    hub.fail("POST", "/commit/", status=503, times=100)
    with pytest.raises(PushError, match=f"Pushing {folder / 'checkpoint-3'} to {repo_id} failed: .*503"):
        push_checkpoint(folder / "checkpoint-3", repo_id, path_in_repo="last", token=ALICE, retries=AT_ONCE)
