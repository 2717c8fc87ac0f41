"""A tokenizer with a token per character, for the tiny model."""

from pathlib import Path

from tiny_model import VOCAB
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split


def write_character_tokenizer(directory: Path) -> None:
    """Write tokenizer.json and its configuration into a model's directory."""
    from transformers import PreTrainedTokenizerFast

    characters = [chr(code) for code in range(0x20, 0x20 + VOCAB - 2)]
    vocabulary = {text: index for index, text in enumerate(["<end>", "<unknown>", *characters])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = Split(Regex("."), behavior="isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(str(directory))
