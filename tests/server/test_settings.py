import argparse
import logging
import re
from dataclasses import fields
from operator import attrgetter
from pathlib import Path

import pytest

from server.foreign_flags import FOREIGN_FLAGS
from server.settings import ServerSettings
from server.settings_sources import SettingsError, add_arguments, load_settings


def load(
    *flags: str, environment: dict[str, str] | None = None, config: Path | None = None
) -> ServerSettings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    config_flags = ["--config", str(config)] if config else []
    return load_settings(parser.parse_args([*flags, *config_flags]), environment or {})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "server.yaml"
    path.write_text("max-num-seqs: 8\nport: 8001\nblock_size: 32\nhost:\n")
    return path


def test_sources_win_in_order(config):
    settings = load("--block-size", "64", environment={"ADADECODE_PORT": "8002"}, config=config)

    assert (settings.max_num_seqs, settings.port, settings.block_size) == (8, 8002, 64)
    assert settings.host == "127.0.0.1", "an empty key leaves the default"


def test_an_empty_variable_leaves_the_default():
    assert load(environment={"ADADECODE_PORT": ""}) == ServerSettings()


def test_a_slash_at_the_end_of_the_root_path_is_none_of_it():
    assert load("--root-path", "/llm/").root_path == "/llm"


def test_the_file_is_named_by_a_variable_too_but_a_flag_comes_first(config, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("max-num-seqs: 9\n")
    environment = {"ADADECODE_CONFIG": str(config)}

    assert load(environment=environment).max_num_seqs == 8
    assert load(environment=environment, config=other).max_num_seqs == 9
    assert load(environment={"ADADECODE_CONFIG": ""}) == ServerSettings()


def test_defaults_need_no_source():
    assert load() == ServerSettings()


def test_model_is_positional():
    assert load("some/model").model_names == ("some/model",)


def test_served_names_replace_the_model_and_can_be_several():
    settings = load("m", "--served-model-name", "a", "--served-model-name", "b")

    assert settings.model_names == ("a", "b")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("512M", 512 * 2**20), ("2G", 2**31), ("1.5KiB", 1536), ("3MB", 3_000_000), ("77", 77)],
)
def test_sizes_for_people(text, num_bytes):
    assert load("--kv-cache-memory", text).kv_cache_memory == num_bytes


@pytest.mark.parametrize("flags", [["--no-early-exit"], []])
def test_boolean_flags_have_an_opposite(flags):
    assert load(*flags).early_exit is not bool(flags)


def test_the_opposite_of_a_boolean_is_a_key_and_a_variable_too(tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("no-early-exit: true\n")

    assert load(config=path).early_exit is False
    assert load(environment={"ADADECODE_NO_EARLY_EXIT": "1"}).early_exit is False


def test_keys_from_the_environment_are_separated_by_commas():
    settings = load(environment={"ADADECODE_API_KEY": "k1, k2"})

    assert [key.get_secret_value() for key in settings.api_key] == ["k1", "k2"]
    assert "k1" not in repr(settings)


def test_a_key_may_have_a_comma_in_a_flag_a_list_and_a_file(tmp_path):
    listed, keys = tmp_path / "server.yaml", tmp_path / "keys"
    listed.write_text("api-key: ['a,b']\n")
    keys.write_text("a,b\n")

    for settings in (
        load("--api-key", "a,b"),
        load(config=listed),
        load("--api-key-file", str(keys)),
    ):
        assert settings.api_keys == ("a,b",)


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--port", "70000"], {}, "--port: input should be less than or equal to 65535"),
        ([], {"ADADECODE_MAX_NUM_SEQS": "many"}, "ADADECODE_MAX_NUM_SEQS: input should be"),
        (["--kv-cache-memory", "2 apples"], {}, "--kv-cache-memory: should be a number of bytes"),
        (["--config", "/nowhere.yaml"], {}, "--config: /nowhere.yaml: No such file"),
        ([], {"ADADECODE_CONFIG": "/a.yaml"}, "ADADECODE_CONFIG: /a.yaml: No such file"),
        (
            [],
            {"ADADECODE_UI": "1", "ADADECODE_NO_UI": "1"},
            "ADADECODE_NO_UI: given twice, also as ADADECODE_UI",
        ),
        ([], {"ADADECODE_NO_EARLY_EXIT": "ture"}, "ADADECODE_NO_EARLY_EXIT: should be true or"),
        ([], {"ADADECODE_API_KEY": " , "}, "ADADECODE_API_KEY: should not be empty"),
    ],
)
def test_errors_name_the_setting_as_it_was_written(flags, environment, message):
    with pytest.raises(SettingsError, match=message):
        load(*flags, environment=environment)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max-num-seq: 3", "max-num-seq: unknown setting; did you mean max-num-seqs?"),
        ("tensor-parallel-size: 2", "size: no setting of this server: one GPU is used"),
        ("dialect: nice", "dialect: unknown setting"),
        ("port: yes please", "port: input should be a valid integer"),
        ("- port", "should be a mapping"),
        ("port: [", "is not valid YAML"),
        ("api-key: ['']", "api-key: should not be empty"),
        ("api-key: ''", "api-key: should not be empty"),
        ("api-key: 123456", "api-key: should be text, in quotes if it looks like a number"),
        ("exit-threshold: off", "exit-threshold: should not be true or false"),
        ("heads: 5", "heads: should be a path"),
        ("threads: yes", "threads: should not be true or false"),
        ("allowed-origins: 5", "allowed-origins: should be a list"),
        ("allowed-origins: {a: b}", "allowed-origins: should be a list"),
        ("port: 1\nui: true\nport: 1", "port: given twice"),
        ("port: 8001\nport:", "port: given twice"),
        ("max-num-seqs: 8\nmax_num_seqs: 9", "max_num_seqs: given twice, also as "),
        ("early-exit: true\nno-early-exit: true", "no-early-exit: given twice, also as "),
    ],
)
def test_errors_in_files_name_file_and_key(tmp_path, content, message):
    path = tmp_path / "server.yaml"
    path.write_text(content)

    with pytest.raises(SettingsError) as error:
        load(config=path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--api-key-file", "/nowhere/keys"], "--api-key-file: /nowhere/keys cannot be read: No"),
        (["--ssl-keyfile", __file__], "TLS needs --ssl-certfile"),
        (["--ssl-ca-certs", __file__], "TLS needs --ssl-certfile"),
        (["--ssl-certfile", __file__, "--ssl-cert-reqs", "2"], "needs --ssl-ca-certs"),
        ([""], "MODEL: should not be empty"),
        (["--host", ""], "--host: should not be empty"),
        (["--allowed-methods", "[GET"], "--allowed-methods: \\[GET is no JSON list"),
        (["--root-path", "llm"], "--root-path: should begin with /"),
        (["--api-key", ""], "--api-key: should not be empty"),
        (["--api-key", "schlüssel"], "--api-key: keys should be printable ASCII"),
        (["--served-model-name", " "], "--served-model-name: should not be empty"),
        (["--kv-cache-memory", "8388608T"], "--kv-cache-memory: should be less than"),
        (["--heads", "/nowhere"], "--heads: /nowhere should be a directory with heads.json in it"),
        (["--learn-heads", "--no-early-exit"], "--learn-heads makes no sense"),
        (["--learn-heads-dir", "/heads"], "--learn-heads-dir needs --learn-heads"),
        (["--learn-heads-share", "0.6"], "--learn-heads-share: input should be less than"),
        (["--allowed-origins", "example.org"], "--allowed-origins: 'example.org' should be like"),
        (["--allowed-origins", "https://example.org/"], "without a path, or \\*"),
        (["--allow-credentials"], "--allow-credentials needs --allowed-origins"),
        (["--otlp-traces-endpoint", "127.0.0.1:4318"], "--otlp-traces-endpoint: should begin with"),
        (["--address-file", "/nowhere/a"], "--address-file: /nowhere/a should be a file in a"),
        (["--address-file", "/"], "--address-file: / should be a file in a directory"),
        (["--access-log", "xml"], "--access-log: input should be 'text', 'json' or 'none'"),
    ],
)
def test_what_could_not_work_is_refused_at_start_up(flags, message):
    with pytest.raises(SettingsError, match=message):
        load(*flags)


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "null", "no-ui:\nport:\n", "{}"])
def test_a_file_may_set_nothing(tmp_path, content):
    path = tmp_path / "server.yaml"
    path.write_text(content)

    assert load(config=path) == ServerSettings()


def test_a_file_without_keys_is_refused(tmp_path):
    (tmp_path / "keys").write_text("# none yet\n\n")

    with pytest.raises(SettingsError, match="holds no key"):
        load("--api-key-file", str(tmp_path / "keys"))


def test_keys_in_a_file_can_be_sent_or_are_refused(tmp_path):
    (tmp_path / "keys").write_text("good\nschlüssel\n", encoding="utf-8")

    with pytest.raises(SettingsError, match="--api-key-file: keys should be printable ASCII"):
        load("--api-key-file", str(tmp_path / "keys"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--allowed-origins", "https://a", "--allowed-origins", "https://b"],
        ["--allowed-origins", '["https://a", "https://b"]'],
        ["--allowed-origins", "https://a,https://b"],
    ],
)
def test_origins_are_given_one_by_one_or_as_vllm_writes_them(flags):
    assert load(*flags).allowed_origins == ("https://a", "https://b")


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "http://localhost:3000", "http://[::1]:80", "chrome-extension://abc", "app://x"],
)
def test_whatever_browsers_send_is_an_origin(origin):
    assert load("--allowed-origins", origin).allowed_origins == (origin,)


@pytest.fixture
def generation_config(tmp_path):
    path = tmp_path / "generation_config.json"
    path.write_text('{"temperature": 0.6, "do_sample": true}')
    return path


@pytest.mark.parametrize(
    ("word", "source"), [("auto", "auto"), ("none", "none"), ("vllm", "none"), (None, "auto")]
)
def test_a_generation_config_is_the_models_or_none(tmp_path, word, source):
    assert load(*(["--generation-config", word] if word else [])).generation_config == source
    (tmp_path / "server.yaml").write_text(f"generation-config: {word or ''}\n")
    assert load(config=tmp_path / "server.yaml").generation_config == source


def test_a_generation_config_can_be_a_directory_or_a_file(generation_config):
    for path in (generation_config, generation_config.parent):
        assert load("--generation-config", str(path)).generation_config == generation_config
        variables = {"ADADECODE_GENERATION_CONFIG": str(path)}
        assert load(environment=variables).generation_config == generation_config


def test_overrides_are_json_or_in_a_file_a_mapping(tmp_path):
    overrides = {"temperature": 0.2, "top_k": 20, "top_p": None}
    text = '{"temperature": 0.2, "top_k": 20, "top_p": null}'
    files = [f"override-generation-config: {text}", f"override_generation_config: '{text}'"]

    assert load().override_generation_config == {}
    assert load("--override-generation-config", text).override_generation_config == overrides
    variables = {"ADADECODE_OVERRIDE_GENERATION_CONFIG": text}
    assert load(environment=variables).override_generation_config == overrides
    for content in files:
        (tmp_path / "server.yaml").write_text(content)
        assert load(config=tmp_path / "server.yaml").override_generation_config == overrides


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temperature=0.2", "should be a JSON object, such as"),
        ("[0.2]", "should be a JSON object, such as"),
        ('{"temprature": 0.2}', "temprature: unknown key; did you mean temperature?"),
        ('{"max_tokens": 9}', "max_tokens: unknown key; did you mean max_new_tokens?"),
        ('{"do_sample": false}', "do_sample: unknown key; known are temperature, top_p, top_k,"),
        ('{"seed": null}', "seed: unknown key; known are temperature"),
        ('{"temperature": 2.5}', "temperature: input should be less than or equal to 2"),
        ('{"temperature": true}', "temperature: input should be a valid number"),
        ('{"top_p": NaN}', "top_p: input should be"),
        ('{"top_p": 0}', "top_p: input should be greater than 0"),
        ('{"top_k": 5.0}', "top_k: input should be a valid integer"),
        ('{"min_p": "0.1"}', "min_p: input should be a valid number"),
        ('{"max_new_tokens": 0}', "max_new_tokens: input should be greater than or equal to 1"),
    ],
)
def test_overrides_that_could_not_work_are_refused_by_their_key(text, message):
    with pytest.raises(SettingsError) as error:
        load("--override-generation-config", text)
    assert str(error.value).startswith(f"--override-generation-config: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "generation_config.json cannot be read: "),
        ("[]", "generation_config.json does not hold a JSON object"),
        ('{"temperature": -1}', "generation_config.json: temperature: input should be greater"),
        (None, "there is no "),
    ],
)
def test_a_generation_config_that_could_not_work_is_refused(generation_config, content, message):
    generation_config.unlink() if content is None else generation_config.write_text(content)

    with pytest.raises(SettingsError, match=r"^--generation-config: ") as error:
        load("--generation-config", str(generation_config.parent))
    assert message in str(error.value)


@pytest.mark.parametrize("value", ["''", "3", "[auto]"])
def test_a_generation_config_is_a_word_or_a_path(tmp_path, value):
    (tmp_path / "server.yaml").write_text(f"generation-config: {value}\n")

    with pytest.raises(SettingsError, match="generation-config: should be auto, none, or a dir"):
        load(config=tmp_path / "server.yaml")


def test_other_servers_flags_are_no_settings_and_their_advice_names_ours():
    named = {flag for advice in FOREIGN_FLAGS.values() for flag in re.findall(r"--[a-z-]+", advice)}
    settings = {f"--{name.replace('_', '-')}" for name in ServerSettings.model_fields}

    assert named
    assert named <= settings
    assert not (settings - {"--model"}) & FOREIGN_FLAGS.keys()


def test_foreign_variables_are_only_warned_about(caplog):
    with caplog.at_level(logging.WARNING):
        load(environment={"ADADECODE_SERVICE_HOST": "10.0.0.1", "ADADECODE_CACHE": "/c"})

    assert "ADADECODE_SERVICE_HOST: unknown setting" in caplog.text
    assert "ADADECODE_CACHE" not in caplog.text


def test_the_address_of_a_service_named_adadecode_is_no_port(caplog):
    settings = load(environment={"ADADECODE_PORT": "tcp://10.43.7.9:80"})

    assert settings.port == 8000
    assert "ADADECODE_PORT is the address of a service" in caplog.text


def test_blanks_around_a_key_are_none_of_it(tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("api-key: [' k1 ', k2]")

    assert load(config=path).api_keys == load("--api-key", "k1 ", "--api-key", "k2").api_keys


@pytest.mark.parametrize("text", ["{{ messages }}", "{% for m in messages %}{% endfor %}"])
def test_a_chat_template_is_a_file_or_jinja(tmp_path, text):
    path = tmp_path / "chat.jinja"
    path.write_text(text)

    for given in (text, str(path)):
        config = load("--chat-template", given).engine_config(Path("/model"), None)
        assert config.chat.template == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b" \n", "is empty"),
        (b"\xff{{", "is not UTF-8 text"),
    ],
)
def test_chat_templates_that_cannot_be_read_are_refused(tmp_path, content, message):
    path = tmp_path / "chat.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as error:
        load("--chat-template", str(path))
    assert str(error.value) == f"--chat-template: {path} {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("enable_thinking", """should be a JSON object, such as '{"enable_thinking": false}'"""),
        ("[]", """should be a JSON object, such as '{"enable_thinking": false}'"""),
        ('{"tools": []}', "tools is the server's own to set"),
        ('{"depth": NaN}', "input should be a finite number"),
    ],
)
def test_template_variables_that_could_not_work_are_refused(text, message):
    with pytest.raises(SettingsError) as error:
        load("--default-chat-template-kwargs", text)
    assert str(error.value) == f"--default-chat-template-kwargs: {message}"


def test_template_variables_of_yaml_are_those_of_json(tmp_path):
    (tmp_path / "server.yaml").write_text("default-chat-template-kwargs: {day: 2026-11-27}")
    with pytest.raises(SettingsError, match="input was not a valid JSON value"):
        load(config=tmp_path / "server.yaml")


CHOICES = [  # flags, and the choice of the engine that they make
    ("--device cpu", "model.device", "cpu"),
    ("--dtype float32", "model.dtype", "float32"),
    ("--quantization none", "model.quantization", "none"),
    ("--activation-quantization int8", "model.activation_quantization", "int8"),
    ("--max-model-len 9", "model.max_model_len", 9),
    ("--threads 3", "model.num_threads", 3),
    ("--pin-threads never", "model.pin_threads", "never"),
    ("--backend torch", "model.backend", "torch"),
    ("--no-exact", "model.exact", False),
    ("--enforce-eager", "model.enforce_eager", True),
    ("--block-size 8", "cache.block_size", 8),
    ("--kv-cache-memory 1K", "cache.kv_cache_memory_bytes", 1024),
    ("--gpu-memory-utilization 0.5", "cache.gpu_memory_utilization", 0.5),
    ("--max-num-seqs 7", "scheduler.max_num_seqs", 7),
    ("--max-num-batched-tokens 7", "scheduler.max_num_batched_tokens", 7),
    ("--max-num-queued-reqs 7", "scheduler.max_num_queued_requests", 7),
    ("--max-num-queued-tokens 7", "scheduler.max_num_queued_tokens", 7),
    ("--scheduling-policy priority", "scheduler.policy", "priority"),
    ("--no-enable-prefix-caching", "scheduler.prefix_caching", False),
    ("--step-timeout 7", "supervision.step_timeout_s", 7.0),
    ("--heartbeat-timeout 7", "supervision.heartbeat_timeout_s", 7.0),
    ("--structure-timeout 7", "structure.timeout_s", 7.0),
    ("--chat-template {{messages}}", "chat.template", "{{messages}}"),
    (
        """--default-chat-template-kwargs {"enable_thinking":false}""",
        "chat.variables",
        {"enable_thinking": False},
    ),
    ("--no-early-exit", "exits.enabled", False),
    ("--no-lookup-drafts", "exits.lookup", False),
    ("--no-second-candidates", "exits.alternates", False),
    ("--exit-threshold 0.5", "exits.threshold", 0.5),
    ("--target-itl-ms 50", "exits.target_itl_s", 0.05),
    ("--max-draft-tokens 7", "exits.max_draft_tokens", 7),
    ("--learn-heads", "exits.learn", True),
    ("--learn-heads --learn-heads-share 0.2", "exits.learn_share", 0.2),
    ("--learn-heads --learn-heads-dir /learned", "exits.learn_directory", Path("/learned")),
]


@pytest.mark.parametrize(("flags", "choice", "value"), CHOICES)
def test_engine_config_carries_every_choice(flags, choice, value):
    def chosen(*given: str) -> object:
        return attrgetter(choice)(load(*given).engine_config(Path("/model"), None))

    assert chosen(*flags.split()) == value
    assert chosen() != value


def test_the_engine_has_no_choice_without_a_flag():
    config = load().engine_config(Path("/model"), Path("/heads"))
    named = {
        f"{part.name}.{choice.name}"
        for part in fields(config)
        if part.name != "worker"  # always a process
        for choice in fields(getattr(config, part.name))
    }

    assert (config.model.directory, config.exits.heads) == (Path("/model"), Path("/heads"))
    # What is resolved, and what only later workers are told.
    others = {"model.directory", "exits.heads", "cache.num_blocks"}
    assert {choice for _, choice, _ in CHOICES} | others == named


def test_without_early_exit_no_heads_are_loaded():
    config = load("--no-early-exit").engine_config(Path("/model"), Path("/heads"))

    assert not config.exits.enabled
    assert config.exits.heads is None
