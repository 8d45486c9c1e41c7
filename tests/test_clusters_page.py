"""docs/clusters.md: its commands and options exist, and the local recipe works."""

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
from clusters import kill, wait_until
from command_line import REPOSITORY
from distributed.cli import dask_scheduler, dask_ssh, dask_worker

import cli
from data_cache.layout import DEFAULT_MASKS
from data_cache.reader import Cache

PAGE = (REPOSITORY / "docs/clusters.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
DASK = {"scheduler": dask_scheduler.main, "worker": dask_worker.main, "ssh": dask_ssh.main}


def commands():
    """(program, arguments) of each line that runs clipteacher or Dask, also through ssh."""
    for line in "\n".join(BLOCKS).splitlines():
        inner = re.match(r'ssh \w+ "(.*)" &$', line)
        words = shlex.split((inner[1] if inner else line).removesuffix("&"), comments=True)
        while words and re.match(r"[A-Z_]+=|srun$|--cpus-per-task=", words[0]):
            words.pop(0)
        if words[:2] == ["python", "cli.py"]:
            yield "cli.py", words[2:]
        elif words and Path(words[0]).name == "dask":
            yield "dask", words[1:]


COMMANDS = list(commands())


def test_page_has_commands_of_all_kinds():
    named = {(program, arguments[0]) for program, arguments in COMMANDS}
    assert named >= {("cli.py", "precompute"), ("cli.py", "cluster"), *(("dask", name) for name in DASK)}
    assert len(COMMANDS) > 15


@pytest.mark.parametrize(("program", "arguments"), COMMANDS, ids=lambda value: value if value is str else None)
def test_commands_of_the_page_parse(program, arguments):
    group = typer.main.get_command(cli.app) if program == "cli.py" else click.Group(commands=DASK)
    name, *rest = arguments
    command = group.commands[name]
    command.make_context(name, list(rest)).close()  # raises for an option or a value that does not exist
    with pytest.raises(Exception, match=r"No such option|unexpected extra argument"):
        command.make_context(name, ["--no-such-option", *rest])


def test_options_named_in_the_text_exist():
    known = {
        option
        for command in typer.main.get_command(cli.app).commands.values()
        for p in command.params
        for option in p.opts
    }
    known |= {option for command in DASK.values() for p in command.params for option in (*p.opts, *p.secondary_opts)}
    for option in re.findall(r"`(--[a-z-]+)", re.sub(r"```sh.*?```", "", PAGE, flags=re.DOTALL)):
        assert option in known, option


def test_slurm_script_parses():
    script = next(block for block in BLOCKS if "#SBATCH" in block)
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.slow
def test_recipe_for_one_machine_works(tmp_path):
    recipe = next(block for block in BLOCKS if "127.0.0.1:8786" in block)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    cache = tmp_path / "scenes.zarr"
    recipe = recipe.replace("8786", port).replace("python cli.py", f"{sys.executable} {REPOSITORY / 'cli.py'}")
    recipe = recipe.replace("dask ", f"{sys.executable} -m dask ") + f"test $? = 0 && touch {tmp_path}/good\n"
    environment = {"PYTHONPATH": str(REPOSITORY), "CLIPTEACHER_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"}
    log = tmp_path / "log"
    with log.open("w") as out:
        shell = subprocess.Popen(
            ["bash", "-c", recipe + "wait\n"], cwd=tmp_path, env=environment, stdout=out, stderr=out
        )
    try:
        wait_until((tmp_path / "good").exists, 120)
    finally:
        kill(shell)
    assert not Cache(cache).pending_shards(DEFAULT_MASKS), log.read_text()
    assert "64 of 64 images cached" in log.read_text()
    assert "2 workers on 1 machine, OMP_NUM_THREADS 1" in log.read_text()
