import subprocess
import sys

import pytest

from server.cli import COMMANDS, main


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out.startswith("adadecode ")


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(command.name in shown for command in COMMANDS)


def test_without_a_command_usage_is_shown():
    with pytest.raises(SystemExit) as exit_info:
        main([])
    assert exit_info.value.code == 2


def test_serve_help_names_every_setting(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = capsys.readouterr().out
    for flag in ("MODEL", "--max-num-seqs", "--no-early-exit", "--kv-cache-memory", "--api-key"):
        assert flag in shown


def test_a_bad_setting_is_one_line_and_status_2(capsys):
    assert main(["serve", "--port", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("adadecode serve: --port: ")
    assert error.count("\n") == 1


def test_serving_imports_no_torch():
    code = "import sys, server.serve; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_application_is_imported_beside_the_worker_not_before_it():
    code = "import sys, server.serve; sys.exit('fastapi' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
