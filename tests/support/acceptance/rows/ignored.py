"""Rows 71 to 76: what would be served otherwise than it was asked for, if it were not refused."""

from acceptance import bad_bodies as bad
from acceptance.refusals import refuses
from acceptance.row import Row, row

_BODY = "tests/server/test_body.py::"
_SETTINGS = "tests/server/test_settings.py::"
_BACKEND = "tests/engine/worker/test_backend.py::"

IGNORED: tuple[Row, ...] = (
    row(
        71,
        "a schema beside `json_object` or `text`; other servers' names for a structure, a bound "
        "or an end",
        "400 that names the field; for names of others, also the one to use",
        refuses(*bad.UNHEARD),
        proofs=(f"{_BODY}test_other_servers_names_are_refused_with_ours",),
    ),
    row(
        72,
        "a `$ref` below a nested `$id`; a JSON schema within Lark; EBNF and Lark in one grammar",
        "400 that names the keyword and its place, or the line",
        proofs=(
            "tests/engine/grammar/test_schema.py::"
            "test_what_would_not_be_enforced_is_refused_by_its_place",
            "tests/engine/grammar/test_compiler.py::"
            "test_what_is_neither_or_holds_a_schema_is_refused",
        ),
        marks=("torch",),
    ),
    row(
        73,
        "a setting given twice by a file or by the environment; `ADADECODE_CONFIG` that names no "
        "file; unknown keys",
        "status 2 and one line that names the places, and for unknown keys the nearest known one",
        proofs=(
            f"{_SETTINGS}test_errors_in_files_name_file_and_key",
            f"{_SETTINGS}test_errors_name_the_setting_as_it_was_written",
        ),
    ),
    row(
        74,
        "an API key that is empty or that no client can send; a file without keys",
        "status 2 and one line; an empty key never opens the server",
        proofs=(
            f"{_SETTINGS}test_what_could_not_work_is_refused_at_start_up",
            f"{_SETTINGS}test_a_file_without_keys_is_refused",
            f"{_SETTINGS}test_keys_in_a_file_can_be_sent_or_are_refused",
        ),
    ),
    row(
        75,
        "`--activation-quantization int8` without quantized weights; what only a CPU or only a "
        "GPU can do, on the other",
        "refused at start-up by the flag's name",
        proofs=(
            f"{_BACKEND}test_activations_are_not_rounded_for_weights_that_are_not",
            f"{_BACKEND}test_what_a_gpu_cannot_be_told_is_refused",
            f"{_BACKEND}test_what_torch_cannot_do_on_a_cpu_is_refused",
        ),
        marks=("torch",),
    ),
    row(
        76,
        "flags and keys of vLLM's and llama.cpp's that are no settings here, unknown flags",
        "status 2 and one line with what to do instead, or the nearest flag",
        proofs=(
            "tests/server/test_cli.py::test_an_unknown_flag_names_the_nearest_one",
            f"{_SETTINGS}test_errors_in_files_name_file_and_key",
        ),
    ),
)
