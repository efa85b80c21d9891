"""The command as a whole: fast help, every file a command, errors in one sentence."""

import ast
import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import cli
from subnets.errors import InputError, UnavailableError

HEAVY = ("torch", "openvino", "numpy", "rich", "msgspec", "safetensors", "psutil", "starlette")


def test_help_imports_nothing_heavy(root):
    program = (
        "import sys, cli\n"
        "sys.argv = ['gearshift', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout.rstrip().endswith("LOADED []"), ran.stdout
    for name in cli.COMMANDS:
        assert f"\n  {name} " in ran.stdout


def test_every_command_file_is_listed_and_every_listed_file_exists(root):
    def defines_command(path):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        return any(isinstance(node, ast.FunctionDef) and node.name == "command" for node in tree.body)

    files = {f"cli.{path.stem}" for path in (root / "cli").glob("[a-z]*.py") if defines_command(path)}
    assert {module for module, _ in cli.COMMANDS.values()} == files
    assert all(module == f"cli.{name}" for name, (module, _) in cli.COMMANDS.items())


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name):
    def helps(words):
        result = CliRunner().invoke(cli.gearshift, [*words, "--help"], prog_name="gearshift", catch_exceptions=False)
        assert result.exit_code == 0 and result.output.startswith(f"Usage: gearshift {' '.join(words)}")
        yield result.output
        command = cli.gearshift
        for word in words:
            command = command.get_command(click.Context(cli.gearshift), word)
        if isinstance(command, click.Group):
            for sub in command.list_commands(click.Context(command)):
                yield from helps([*words, sub])

    # An example is a line that starts with the command itself; the usage line does not.
    lines = [line.strip() for text in helps([name]) for line in text.splitlines()]
    assert any(line.startswith(f"gearshift {name}") for line in lines)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_one_line_help_ends_with_a_full_stop(name):
    assert cli.COMMANDS[name][1].endswith(".") and len(cli.COMMANDS[name][1]) < 60


class TestErrors:
    def test_an_unknown_command_gets_the_nearest_name(self, refused):
        assert refused("simulat", "x") == "No such command 'simulat'. Did you mean 'simulate'?"
        assert refused("xyzzy") == "No such command 'xyzzy'."

    def test_an_unknown_option_is_refused(self, refused):
        assert "--colour" in refused("bundle", "show", "b", "--colour", "red")

    def test_no_bundle_is_one_sentence(self, refused, tmp_path):
        said = refused("bundle", "show", tmp_path)
        assert said == f"{tmp_path}: not a bundle (it has no bundle.json); make one with 'gearshift sample'"

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (InputError("the key is wrong"), "the key is wrong"),
            (UnavailableError("this needs pillow"), "this needs pillow"),
            (ModuleNotFoundError("No module named 'torch'", name="torch"), "pip install 'gearshift[train]'"),
            (PermissionError(13, "Permission denied", "/root/x"), "/root/x: Permission denied"),
        ],
    )
    def test_errors_of_ours_and_of_the_system_are_one_sentence(self, refused, monkeypatch, error, said):
        def fail(*arguments, **options):
            raise error

        monkeypatch.setattr(cli.gearshift, "invoke", fail)
        assert said in refused("policies")

    def test_what_is_a_bug_keeps_its_traceback(self, monkeypatch):
        def fail(*arguments, **options):
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(cli.gearshift, "invoke", fail)
        monkeypatch.setattr(sys, "argv", ["gearshift", "policies"])
        with pytest.raises(ZeroDivisionError):
            cli.main()

    def test_an_interrupt_ends_with_130(self, gearshift, monkeypatch):
        def stop(*arguments, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr(cli.gearshift, "invoke", stop)
        result = gearshift("policies")
        assert (result.code, result.err.strip()) == (130, "Aborted.")

    def test_a_commands_own_exit_code_is_the_process_exit_code(self, gearshift, monkeypatch):
        def stop(*arguments, **options):
            raise click.exceptions.Exit(1)

        monkeypatch.setattr(cli.gearshift, "invoke", stop)
        assert gearshift("policies").code == 1


def test_success_is_zero(gearshift):
    assert gearshift("policies", "--json", "-").code == 0


class TestOutput:
    def test_json_goes_to_a_file_or_alone_to_stdout(self, gearshift, bundle, tmp_path):
        printed = gearshift("bundle", "show", bundle, "--json", "-")
        assert printed.code == 0
        said = json.loads(printed.out)
        assert [entry["name"] for entry in said["subnets"]] == ["s30", "s100"]
        both = gearshift("bundle", "show", bundle, "--json", tmp_path / "deep" / "b.json")
        assert json.loads((tmp_path / "deep" / "b.json").read_text()) == said and "s100" in both.out

    def test_a_place_that_cannot_be_written_is_named(self, refused, bundle, tmp_path):
        (tmp_path / "file").write_text("")
        said = refused("bundle", "show", bundle, "--json", tmp_path / "file" / "b.json")
        assert "file/b.json: cannot be written" in said and "--json" in said
