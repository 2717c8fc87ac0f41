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
    assert "--pin-threads {auto,always,never}" in shown
    assert "--block-size N" in shown
    assert "--heads DIR" in shown
    assert "ADADECODE_MAX_NUM_SEQS), where commas separate several values." in " ".join(
        shown.split()
    )


def test_a_bad_setting_is_one_line_and_status_2(capsys):
    assert main(["serve", "--port", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("adadecode serve: --port: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "serve --max-nun-seqs 3",
            "serve: --max-nun-seqs: unknown flag; did you mean --max-num-seqs?",
        ),
        ("serve --no-prot", "serve: --no-prot: unknown flag; did you mean --port?"),
        ("chat --host=x", "chat: --host: unknown flag"),
        ("chat --port 8001", "chat: --port: unknown flag"),
        ("serve --qqqqqqqq m", "serve: --qqqqqqqq: unknown flag"),
        (
            "serve --kv-cache-dtypes fp8",
            "--kv-cache-dtypes: unknown flag; did you mean --kv-cache-memory?",
        ),
        ("serve --trust-remote", "--trust-remote-code: no setting of this server: code that comes"),
        ("serve m -tp 2", "serve: -tp: no setting of this server: one GPU is used"),
        ("serve --ctx-size=4096", "serve: --ctx-size: no setting of this server: use --max-model"),
        ("serve m --served-model-name a b", "serve: b: one argument too many"),
        ("--portt 1 serve", "argument COMMAND: invalid choice: '1'"),
    ],
)
def test_an_unknown_flag_names_the_nearest_one(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments.split())
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_an_interrupted_command_prints_no_traceback(monkeypatch, capsys):
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.serve.run", interrupt)

    assert main(["serve"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_seen_enough_is_no_error():
    code = (
        "import sys, server.serve\n"
        "def say(args):\n"
        "    print('x' * 100)\n"
        "    return 0\n"
        "server.serve.run = say\n"
        "from server.cli import main\n"
        "sys.stdin.readline()\n"
        "sys.exit(main(['serve']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(b"\n")

    assert (process.returncode, errors) == (141, b"")


def test_serving_imports_no_torch():
    code = "import sys, server.serve; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_application_is_imported_beside_the_worker_not_before_it():
    code = "import sys, server.serve; sys.exit('fastapi' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
