"""What rows may name: the files of their own folder or repository, however a path to another one is written."""

import os
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image
from huggingface_hub.constants import HF_HUB_CACHE

from sft_hf.data.containment import Place, files_of, linked_out, place_of_folder, place_of_repository
from sft_hf.errors import DataError

PETS = Place("--dataset_name pets", ("/data/pets",))


@pytest.mark.parametrize(
    ("path", "is_held"),
    [
        ("/data/pets/cat/1.png", True),
        ("/data/pets/cat/../dog/1.png", True),
        ("/data/pets/..cat/1.png", True),
        ("zip://1.png::/data/pets/archive.zip", True),
        ("zip://../../1.png::/data/pets/archive.zip", True),  # .. has no meaning in an archive
        ("/data/pets/../secret.png", False),
        ("/data/petsecrets/1.png", False),
        ("/etc/passwd", False),
        ("cat/1.png", False),  # begins at the current folder
        ("file:///data/pets/1.png", False),
        ("local:///etc/passwd", False),
        ("http://example.org/1.png", False),
        ("hf://datasets/alice/private/1.png", False),
        ("zip://1.png::/data/other.zip", False),
        ("zip://1.png::http://example.org/pets.zip", False),
        ("file:///etc/passwd::/data/pets/archive.zip", False),  # fsspec opens the first one
        ("zip://1.png::file:///etc/passwd::/data/pets/archive.zip", False),
    ],
)
def test_a_folder_holds_what_is_inside_of_it(path, is_held):
    assert PETS.holds(path) == is_held


@pytest.mark.parametrize(
    ("path", "is_held"),
    [
        ("hf://datasets/alice/pets@5be2/cat/1.png", True),
        ("zip://1.png::hf://datasets/alice/pets@5be2/data.zip", True),
        ("CACHE/datasets--alice--pets/snapshots/5be2/1.png", True),
        ("hf://datasets/alice/pets@5be2/../../bob/private/1.png", False),
        ("hf://datasets/alice/pets-private@5be2/1.png", False),
        ("hf://datasets/bob/private@main/1.png", False),
        ("hf://alice/pets@5be2/model.bin", False),
        ("CACHE/datasets--bob--private/snapshots/5be2/1.png", False),
        ("CACHE/datasets--alice--pets/../../token", False),
        ("/home/me/1.png", False),
    ],
)
def test_a_repository_holds_its_urls_and_what_is_cached_of_it(path, is_held):
    assert place_of_repository("alice/pets").holds(path.replace("CACHE", HF_HUB_CACHE)) == is_held


def test_a_folder_is_known_as_it_was_given_and_without_links(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "pets").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(tmp_path)
    place = place_of_folder(Path("pets"), name="pets")
    assert place.roots == (f"{tmp_path}/pets", os.path.realpath(tmp_path / "disk"))
    assert place.holds("pets/1.png")


def test_the_message_names_the_first_rows_and_what_to_do():
    paths = [(row, "/etc/passwd" if row > 2 else "/data/pets/1.png") for row in range(9)]
    with pytest.raises(DataError) as caught:
        PETS.check(paths, "Column 'image'")
    assert str(caught.value) == (
        "Column 'image': 6 of its values name a file outside of --dataset_name pets (row 3: /etc/passwd, row 4: /etc/passwd, "
        "row 5: /etc/passwd, row 6: /etc/passwd, row 7: /etc/passwd, ...). A folder or a repository is read inside of itself "
        "alone. Put the files there, or, where a table is your own, give it as --train_file."
    )
    PETS.check(paths[:3], "Column 'image'")


def test_embedded_files_are_nobody_s_path():
    """The path of an embedded picture is its name where it came from."""
    rows = [{"bytes": b"\x89PNG", "path": "/nowhere/0.png"}, {"bytes": None, "path": "a.png"}, None]
    dataset = Dataset.from_dict({"image": rows}, features=Features({"image": Image()}))
    assert list(files_of(dataset, "image")) == [(1, "a.png")]
    assert list(files_of(dataset.select([1, 0, 1]), "image")) == [(0, "a.png"), (2, "a.png")]


def test_links_out_of_a_folder_are_found(tmp_path):
    for folder in ("pets/cat", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.png").touch()
    (tmp_path / "pets/cat/2.png").symlink_to(tmp_path / "elsewhere/1.png")
    (tmp_path / "pets/cat/3.png").symlink_to("1.png")
    (tmp_path / "pets/dog").symlink_to(tmp_path / "elsewhere")
    root = os.path.realpath(tmp_path)
    paths = [f"{tmp_path}/pets/{name}" for name in ("cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png")]
    assert linked_out(paths, place_of_folder(tmp_path / "pets", name="pets")) == {
        paths[1]: f"{root}/elsewhere/1.png",
        paths[3]: f"{root}/elsewhere/1.png",
    }
