"""sft-hf: the command line around the recipes. Imports no torch until a run starts.

sft-hf train text_cls --dataset_name ORG/DATASET --model_name_or_path ORG/MODEL --output_dir runs/a
sft-hf train text_cls --num_processes 2 ...        through accelerate launch
sft-hf push runs/a --hub_model_id ME/MODEL
"""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

import sft_hf
from sft_hf.errors import ArgumentError, LaunchError, SftError

PACKAGE = Path(__file__).parent
EXIT_CODES = (
    "Exit codes: 0 done, 1 a failure of ours, 2 something to mend, 3 trained but not pushed, 130/143 interrupted."
)

app = typer.Typer(
    name="sft-hf",
    help=f"Supervised fine-tuning on the Hugging Face stack.\n\n{EXIT_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def shipped(name: str) -> Path:
    """`recipes` or `accelerate_configs`: inside an installed package, beside it in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def recipe_path(name: str) -> Path:
    """A recipe by name, or a recipe of the user's by path."""
    if name.endswith(".py") and Path(name).is_file():
        return Path(name)
    path = shipped("recipes") / f"{name}.py"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in shipped("recipes").glob("*.py")))
        raise ArgumentError(f"There is no recipe {name!r}; there are {there}.")
    return path


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sft_hf {sft_hf.__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of sft-hf itself."""


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Run a recipe; its flags follow its name (`sft-hf train text_cls --help` lists them).",
)
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="text_cls, or the path of a recipe of your own.")] = "--help",
    num_processes: Annotated[
        int | None, typer.Option("--num_processes", "--num-processes", help="More than one: through accelerate launch.")
    ] = None,
    accelerate_config: Annotated[
        str | None,
        typer.Option("--accelerate_config", "--accelerate-config", help="A file, or a name from accelerate_configs."),
    ] = None,
) -> None:
    """In this process for one process, otherwise through `accelerate launch`."""
    if recipe in ("--help", "-h"):
        print(context.get_help())
        print("\nRecipes:", ", ".join(sorted(file.stem for file in shipped("recipes").glob("*.py"))))
        return
    path = recipe_path(recipe)
    sys.argv = [str(path), *context.args]
    from sft_hf.configuration import apply_environment, config_environment

    apply_environment(config_environment(context.args))  # before anything that reads variables when it is imported
    if "LOCAL_RANK" not in os.environ and (accelerate_config or (num_processes or 1) > 1):
        raise typer.Exit(launch(path, context.args, num_processes, accelerate_config))
    runpy.run_path(str(path), run_name="__main__")


def launch(path: Path, arguments: list[str], num_processes: int | None, accelerate_config: str | None) -> int:
    """Run `accelerate launch`, forward signals to the ranks, and return the recipe's own exit code.

    The launcher turns every failure into 1 and leaves its children running on SIGTERM (pitfall 41). So the ranks note
    their code in a file, and signals go to them, not to it.
    """
    from sft_hf.launching import EXIT_CODE_FILE, launcher_flags

    config = _config(accelerate_config)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    is_ours = config.resolve().parent == shipped("accelerate_configs").resolve()
    flags = launcher_flags(config, num_processes=num_processes, is_ours=is_ours)
    with tempfile.TemporaryDirectory() as folder:
        code_file = Path(folder) / "exit_code"
        environment = {**os.environ, EXIT_CODE_FILE: str(code_file)}
        launcher = subprocess.Popen([*command, *flags, str(path), *arguments], env=environment, start_new_session=True)
        forwarded: list[int] = []

        def forward(number: int, _frame) -> None:
            forwarded.append(number)
            _forward(launcher, number)

        previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            launcher_code = launcher.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        noted = code_file.read_text().strip() if code_file.exists() else ""
    if launcher_code != 0 and not noted and not forwarded and "--main_process_ip" in flags:
        raise LaunchError(
            "The launcher ended, and no process of this machine said why; what is above does. A time-out means that the machines "
            f"did not find each other within its 15 minutes: {' '.join(flags)}. Every machine has to run the same command with its "
            "own MACHINE_RANK, and to reach that address and port."
        )
    return _exit_code(launcher_code, noted, forwarded)


def _exit_code(launcher_code: int, noted: str, forwarded: Sequence[int] = ()) -> int:
    """What the ranks noted; else, of ranks that a signal ended before they could, the signal's; else the launcher's."""
    if noted and int(noted) != 0:
        return int(noted)
    if launcher_code != 0 and forwarded:
        return 128 + forwarded[-1]
    return 128 - launcher_code if launcher_code < 0 else launcher_code


def _forward(launcher: subprocess.Popen, number: int) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):  # it may end at any time
        ranks = psutil.Process(launcher.pid).children()
        for process in ranks or [launcher]:
            process.send_signal(number)


def _config(name: str | None) -> Path:
    if name and Path(name).is_file():
        return Path(name)
    if name is None:
        import torch

        name = "multi_gpu" if torch.accelerator.is_available() else "multi_cpu"
    path = shipped("accelerate_configs") / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in shipped("accelerate_configs").glob("*.yaml")))
        raise ArgumentError(
            f"--accelerate_config {name}: no such file, and no configuration of ours; there are {there}."
        )
    return path


def _recipe_of(folder: Path) -> dict:
    import yaml

    recipe = folder / "recipe.yaml"
    return (yaml.safe_load(recipe.read_text()) or {}) if recipe.is_file() else {}


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="The output_dir of a complete run.")],
    hub_model_id: Annotated[
        str | None, typer.Option("--hub_model_id", "--hub-model-id", help="Default: the run's, else the folder's name.")
    ] = None,
    hub_private_repo: Annotated[
        bool, typer.Option("--hub_private_repo", help="Create the repository as private.")
    ] = False,
    hub_token: Annotated[
        str | None, typer.Option("--hub_token", "--token", help="Default: HF_TOKEN or the login.", show_default=False)
    ] = None,
    hub_revision: Annotated[
        str | None, typer.Option("--hub_revision", "--hub-revision", help="A branch; default: the run's, else main.")
    ] = None,
    push_examples: Annotated[bool, typer.Option("--push_examples", help="Also predictions and reports.")] = False,
) -> None:
    """Push a complete run to the Hub, later or again."""
    from sft_hf import hub

    if not (folder / "results.json").is_file():
        raise ArgumentError(f"{folder}: expected the output_dir of a complete run; it has no results.json.")
    recipe = _recipe_of(folder)
    name = hub_model_id or recipe.get("hub_model_id") or folder.resolve().name
    private = hub_private_repo or recipe.get("hub_private_repo")
    repo_id = hub.check_write_access(name, token=hub_token, private=private)
    revision = hub_revision or recipe.get("hub_revision")
    url = hub.push_folder(
        folder, repo_id, token=hub_token, private=private, push_examples=push_examples, revision=revision
    )
    print(url)


def main() -> None:
    """The console script."""
    try:
        app()
    except SftError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
