"""The unmodified clients against the Hub of the tests: what they send must arrive, refusals must be theirs."""

import itertools
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

ALICE, BOB, READER, NOBODY = "alice-token", "bob-token", "alice-read-token", "no-such-token"
CSV = "text,label\nwoof,dog\nmeow,cat\n"


@pytest.fixture(autouse=True)
def _users(hub: HubServer) -> None:
    hub.add_user("alice", ALICE)
    hub.add_user("alice", READER, can_write=False)
    hub.add_user("bob", BOB)


@pytest.fixture
def api() -> HfApi:
    return HfApi(token=ALICE)


@pytest.fixture
def repo_id(repo_name: str) -> str:
    return f"alice/{repo_name}"


def status_of(error: pytest.ExceptionInfo) -> int:
    return error.value.response.status_code


def ranges_asked(hub: HubServer, path_end: str) -> list[str | None]:
    """The Range header of every download of a file, None for one of the whole file."""
    downloads = [request for request in hub.requests if request.method == "GET" and request.path.endswith(path_end)]
    return [request.headers.get("Range") for request in downloads]


# Models


def test_model_and_tokenizer_are_pushed_and_pulled(hub, repo_id):
    size = {"vocab_size": 3, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = BertModel(BertConfig(**size, intermediate_size=8, max_position_embeddings=8))
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "woof": 1, "meow": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    model.push_to_hub(repo_id, token=ALICE, private=True)
    PreTrainedTokenizerFast(tokenizer_object=backend).push_to_hub(repo_id, token=ALICE)

    pulled = AutoModel.from_pretrained(repo_id, token=ALICE)
    assert all(torch.equal(pulled.state_dict()[name], value) for name, value in model.state_dict().items())
    assert AutoConfig.from_pretrained(repo_id, token=ALICE).hidden_size == 8
    assert AutoTokenizer.from_pretrained(repo_id, token=ALICE)("woof meow hiss").input_ids == [1, 2, 0]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= hub.files("model", repo_id).keys()
    assert hub.commits("model", repo_id) == ["Upload tokenizer", "Upload model", "initial commit"]
    assert any(request.method == "PUT" and request.path.startswith("/lfs/") for request in hub.requests)
    with pytest.raises(OSError, match="is not a local folder and is not a valid model identifier"):
        AutoConfig.from_pretrained(repo_id.replace("alice", "bob"), token=BOB)


def test_folder_is_uploaded_and_downloaded(hub, api, repo_id, tmp_path):
    local = tmp_path / "local"
    (local / "runs").mkdir(parents=True)
    content = {"model.safetensors": bytes(range(256)) * 40, "runs/log.txt": b"1\n2\n", "empty.txt": b""}
    for path, data in content.items():
        (local / path).write_bytes(data)
    api.create_repo(repo_id)
    first = api.upload_folder(repo_id=repo_id, folder_path=local, commit_message="first")
    assert api.upload_folder(repo_id=repo_id, folder_path=local).oid == first.oid, "nothing changed: no commit"

    def download(revision: str | None = None) -> dict[str, bytes]:
        folder = Path(snapshot_download(repo_id, token=ALICE, revision=revision))
        return {path: (folder / path).read_bytes() for path in api.list_repo_files(repo_id, revision=revision)}

    before = download()
    assert before == hub.files("model", repo_id)
    assert before.items() >= content.items()
    api.create_tag(repo_id, tag="v1")
    api.delete_folder("runs", repo_id, commit_message="second")
    assert before.keys() - download().keys() == {"runs/log.txt"}
    assert download(first.oid) == download("v1") == before
    assert hub.commits("model", repo_id) == ["second", "first", "initial commit"]

    api.delete_repo(repo_id)
    assert not api.repo_exists(repo_id)


def test_commit_on_a_stale_parent_is_refused(hub, api, repo_id):
    stale = hub.add_repo("model", repo_id, {"a.txt": "1"})
    hub.add_repo("model", repo_id, {"a.txt": "2"})
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(path_or_fileobj=b"3", path_in_repo="a.txt", repo_id=repo_id, parent_commit=stale)
    assert status_of(error) == 412
    assert hub.files("model", repo_id) == {"a.txt": b"2"}
    assert hub.files("model", repo_id, stale) == {"a.txt": b"1"}


def test_model_card_is_validated_and_its_metadata_shown(api, repo_id):
    api.create_repo(repo_id)
    ModelCard("---\npipeline_tag: text-classification\ntags: [tiny]\n---\n# Pets\n").push_to_hub(repo_id, token=ALICE)
    info = api.model_info(repo_id)
    assert (info.pipeline_tag, info.tags, info.card_data.tags) == ("text-classification", ["tiny"], ["tiny"])
    for line in ("datasets: [/home/me/pets]", "base_model: ./out", "language: English"):
        with pytest.raises(ValueError, match="is not valid"):
            ModelCard(f"---\n{line}\n---\n").push_to_hub(repo_id, token=ALICE)


# Datasets


def test_dataset_is_loaded_by_configuration_split_and_revision(hub, repo_id):
    pets = {"config_name": "pets", "data_files": "pets/*.csv"}
    farm = {"config_name": "farm", "data_files": [{"split": "test", "path": "farm.csv"}]}
    readme = f"---\n{yaml.safe_dump({'configs': [pets, farm]})}---\n"
    files = {"README.md": readme, "pets/train.csv": CSV, "farm.csv": "text,label\nmoo,cow\n"}
    first = hub.add_repo("dataset", repo_id, files)
    hub.add_repo("dataset", repo_id, {**files, "pets/train.csv": CSV + "oink,pig\n"})
    assert load_dataset(repo_id, "pets", split="train")["label"][:] == ["dog", "cat", "pig"]
    assert load_dataset(repo_id, "pets", split="train", revision=first)["label"][:] == ["dog", "cat"]
    assert load_dataset(repo_id, "farm")["test"][0] == {"text": "moo", "label": "cow"}
    with pytest.raises(DatasetNotFoundError, match="Revision 'v2' doesn't exist"):
        load_dataset(repo_id, "pets", revision="v2")


def test_dataset_of_json_lines_is_loaded(hub, repo_id):
    hub.add_repo("dataset", repo_id, {"data/validation.jsonl": '{"text": "moo"}\n'}, private=True)
    assert load_dataset(repo_id, token=ALICE)["validation"][0] == {"text": "moo"}


def test_dataset_is_streamed_in_ranges(hub, repo_id, tmp_path):
    hub.add_repo("dataset", f"{repo_id}-csv", {"train.csv": CSV})
    assert [row["label"] for row in load_dataset(f"{repo_id}-csv", split="train", streaming=True)] == [
        "dog",
        "cat",
    ]

    Dataset.from_dict({"number": list(range(100))}).to_parquet(tmp_path / "test.parquet")
    hub.add_repo("dataset", repo_id, tmp_path)
    streamed = load_dataset(repo_id, split="test", streaming=True)
    assert [row["number"] for row in itertools.islice(streamed, 3)] == [0, 1, 2]
    sha = HfApi().dataset_info(repo_id).sha
    assert all(ranges_asked(hub, f"{repo_id}/resolve/{sha}/test.parquet"))


def test_dataset_is_pushed(hub, repo_id):
    dataset = Dataset.from_dict({"text": ["woof", "meow"], "label": [0, 1]})
    dataset.push_to_hub(repo_id, split="train", token=ALICE, private=True)
    assert load_dataset(repo_id, split="train", token=ALICE).to_dict() == dataset.to_dict()
    assert "data/train-00000-of-00001.parquet" in hub.files("dataset", repo_id)


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [("0-1", 206, b"01"), ("3-", 206, b"34"), ("4-99", 206, b"4"), ("5-", 416, None), ("x", 200, b"01234")],
)
def test_file_is_served_in_parts(hub, repo_id, asked, status, body):
    hub.add_repo("model", repo_id, {"a.txt": "01234"})
    connection = HTTPConnection("127.0.0.1", hub.port)
    connection.request("GET", f"/{repo_id}/resolve/main/a.txt", headers={"Range": f"bytes={asked}"})
    answer = connection.getresponse()
    assert answer.status == status
    assert body is None or answer.read() == body
    connection.close()


# Rights


@pytest.mark.parametrize("token", [False, BOB])
def test_private_and_missing_repositories_do_not_exist(hub, repo_id, token):
    hub.add_repo("model", repo_id, {"a.txt": "1"}, private=True)
    hub.add_repo("dataset", repo_id, {"train.csv": CSV}, private=True)
    for name in (repo_id, f"{repo_id}-missing"):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(name, "a.txt", token=token)
        with pytest.raises(RepositoryNotFoundError) as error:
            HfApi().model_info(name, token=token)
        assert status_of(error) == (404 if token else 401)
        with pytest.raises(DatasetNotFoundError, match="doesn't exist on the Hub or cannot be accessed"):
            load_dataset(name, token=token)


@pytest.mark.parametrize(("token", "status"), [(False, 401), (BOB, 403)])
def test_gated_repository_shows_its_page_but_no_files(hub, repo_id, token, status):
    hub.add_repo("model", repo_id, {"config.json": "{}"}, gated=True)
    hub.add_repo("dataset", repo_id, {"train.csv": CSV}, gated=True)
    assert HfApi().model_info(repo_id, token=token).gated == "auto"
    for refused in (
        lambda: hf_hub_download(repo_id, "config.json", token=token),
        lambda: HfApi().auth_check(repo_id, token=token),
    ):
        with pytest.raises(GatedRepoError) as error:
            refused()
        assert status_of(error) == status
    with pytest.raises(OSError, match="gated repo"):
        AutoConfig.from_pretrained(repo_id, token=token)
    with pytest.raises(DatasetNotFoundError, match="is a gated dataset"):
        load_dataset(repo_id, token=token)
    HfApi().auth_check(repo_id, token=ALICE)


def test_missing_file_and_revision(hub, repo_id):
    hub.add_repo("model", repo_id, {"a.txt": "1"})
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(repo_id, "b.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(repo_id, "a.txt", revision="v2")


def test_unknown_token_is_refused_everywhere(hub, repo_id):
    hub.add_repo("model", repo_id, {"a.txt": "1"})
    api = HfApi(token=NOBODY)
    for refused in (
        api.whoami,
        lambda: api.auth_check(repo_id),
        lambda: api.create_repo(f"{repo_id}-new", exist_ok=True),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            refused()
        assert status_of(error) == 401
        assert not isinstance(error.value, RepositoryNotFoundError)


def test_only_the_owner_writes_and_only_with_a_write_token(hub, api, repo_id):
    hub.add_repo("model", repo_id, {"a.txt": "1"})
    assert api.whoami()["name"] == "alice"
    api.auth_check(repo_id, write=True)
    for token in (READER, BOB):
        other = HfApi(token=token)
        other.auth_check(repo_id)
        for refused in (
            lambda other=other: other.auth_check(repo_id, write=True),
            lambda other=other: other.create_repo(f"{repo_id}-new"),
            lambda other=other: other.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo_id),
            lambda other=other: other.delete_repo(repo_id),
        ):
            with pytest.raises(HfHubHTTPError) as error:
                refused()
            assert status_of(error) == 403
    assert hub.files("model", repo_id) == {"a.txt": b"1"}


def test_existing_repository_is_created_only_with_exist_ok(api, repo_id):
    url = api.create_repo(repo_id, repo_type="dataset")
    assert (url.repo_id, url.repo_type) == (repo_id, "dataset")
    assert api.create_repo(repo_id, repo_type="dataset", exist_ok=True) == url
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(repo_id, repo_type="dataset")
    assert status_of(error) == 409


# Failures on demand


def upload(api: HfApi, repo_id: str):
    operations = [CommitOperationAdd("a.txt", b"1")]
    return api.create_commit(repo_id, operations, commit_message="add")


@pytest.mark.parametrize("action", ["create", "commit"])
def test_one_failure_is_an_error_for_the_client(hub, api, repo_id, action):
    if action == "commit":
        api.create_repo(repo_id)
    act = {"create": lambda: api.create_repo(repo_id), "commit": lambda: upload(api, repo_id)}[action]
    hub.fail("POST", f"/api/repos/create|{repo_id}/commit", status=503)
    hub.fail("POST", f"/api/repos/create|{repo_id}/commit", cut=True)
    with pytest.raises(HfHubHTTPError) as error:
        act()
    assert status_of(error) == 503
    with pytest.raises(Exception, match="Server disconnected without sending a response"):
        act()
    act()


def test_lost_answer_of_a_commit_that_was_made(hub, api, repo_id):
    api.create_repo(repo_id)
    hub.fail("POST", f"{repo_id}/commit", cut=True, applied=True)
    with pytest.raises(Exception, match="Server disconnected without sending a response"):
        upload(api, repo_id)
    assert hub.commits("model", repo_id) == ["add", "initial commit"]


def test_cut_download_is_resumed(hub, repo_id):
    data = bytes(range(256)) * 4096 * 21  # the client writes chunks of 10 MiB: the first must fit in one half
    hub.add_repo("model", repo_id, {"a.bin": data})
    hub.fail("GET", rf"{repo_id}/.*\.bin", cut=True)
    assert Path(hf_hub_download(repo_id, "a.bin")).read_bytes() == data
    assert ranges_asked(hub, f"{repo_id}/resolve/main/a.bin") == [None, f"bytes={10 * 1024**2}-"]


def test_the_nth_request_fails_or_its_answer_stops_in_the_middle(hub, repo_id):
    hub.add_repo("model", repo_id, {"a.txt": "01234567"})
    hub.fail("GET", f"{repo_id}/.*a.txt", after=1, status=503)
    hub.fail("GET", f"{repo_id}/.*a.txt", after=1, stall_seconds=0.2)
    connection, answers = HTTPConnection("127.0.0.1", hub.port), []
    for _ in range(4):
        started = time.perf_counter()
        connection.request("GET", f"/{repo_id}/resolve/main/a.txt")
        answer = connection.getresponse()
        body = answer.read()
        answers.append((answer.status, body if answer.status == 200 else b"", time.perf_counter() - started >= 0.2))
    assert answers == [
        (200, b"01234567", False),
        (503, b"", False),
        (200, b"01234567", True),
        (200, b"01234567", False),
    ]
    connection.close()


def test_cleared_failures_do_not_happen(hub, api):
    hub.fail("GET", "whoami", status=503, times=5)
    hub.clear_failures()
    assert api.whoami()["name"] == "alice"


def test_server_stops_and_starts_again_at_the_same_address():
    with HubServer() as server:
        connection, url = HTTPConnection("127.0.0.1", server.port), server.url

        def status() -> int:
            connection.request("GET", "/api/whoami-v2")
            answer = connection.getresponse()
            answer.read()
            return answer.status

        assert status() == 401
        server.stop()
        with pytest.raises(OSError, match=r"closed|reset|pipe"):
            status()
        connection.close()
        server.start()
        assert server.url == url
        assert status() == 401
        connection.close()
