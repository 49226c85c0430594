"""From which checkpoint a run goes on; whole runs into one folder are in test_finetuning."""

import pytest

from sft_hf.arguments import FinetuningArguments
from sft_hf.errors import ArgumentError
from sft_hf.run_folder import checkpoint_to_resume, last_checkpoint


def test_a_half_written_checkpoint_is_passed_over(tmp_path, caplog):
    for step, state in ((10, "{}"), (9, "{}"), (20, '{"step"')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-30").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert "checkpoint-30 was not written to its end" in caplog.text


def test_another_number_of_processes_does_not_go_on(tmp_path):
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    arguments = FinetuningArguments(output_dir=str(tmp_path), report_to="none")
    assert checkpoint_to_resume(arguments) == str(checkpoint)
    for rank in range(2):
        (checkpoint / f"rng_state_{rank}.pth").touch()
    with pytest.raises(ArgumentError, match=r"written by 2 process\(es\), now there are 1"):
        checkpoint_to_resume(arguments)
    arguments.resume = "never"
    assert checkpoint_to_resume(arguments) is None
