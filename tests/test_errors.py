"""The exceptions a user can meet: the tree, and the exit code of each."""

import re
import signal

import pytest

from sft_hf import errors
from sft_hf.errors import Interrupted, PushError, ReloadError, SftError, UserError


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_what_the_user_can_mend_is_2():
    mendable = {"ArgumentError", "DataError", "HubError", "LaunchError", "ModelError", "UserError"}
    mendable |= {"DivergedError", "ResourceError", "StorageError"}
    assert {kind.__name__ for kind in subclasses(UserError)} == mendable
    assert {kind("x").exit_code for kind in subclasses(UserError)} == {2}


def test_the_others_have_codes_of_their_own():
    assert SftError("x").exit_code == 1
    assert ReloadError("x").exit_code == 1
    assert PushError("x").exit_code == 3
    assert not issubclass(PushError, UserError)


def test_an_interruption_has_the_shell_s_code_for_its_signal():
    assert Interrupted(signal.SIGINT, "x").exit_code == 130
    assert Interrupted(signal.SIGTERM, "x").exit_code == 143
    assert str(Interrupted(signal.SIGTERM, "stopped")) == "stopped"
    with pytest.raises(AssertionError):
        Interrupted(signal.SIGUSR1, "x")


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = set(re.findall(r"^[|+\- ]*([A-Z]\w+)", errors.__doc__.split("\n\n")[1], re.MULTILINE))
    assert drawn == {kind.__name__ for kind in subclasses(SftError)}
