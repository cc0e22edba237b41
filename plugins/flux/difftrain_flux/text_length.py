"""The number of T5 tokens of a model's prompts. Light: reads one small file, no torch and no transformers."""

from __future__ import annotations

from collections.abc import Sequence

from difftrain import ModelFlavour, ModelLocation, cached_file, read_json
from difftrain_flux.built_in import TINY_RANDOM
from difftrain_flux.flavours import max_sequence_length

TOKENIZER = "tokenizer_2/tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_2/tokenizer_config.json"


def text_length(location: ModelLocation, flavour: ModelFlavour) -> int:
    """Return the T5 tokens of every prompt: the flavour's number, or fewer if a local model's tokenizer allows fewer.

    Text embeddings, their cache identity and the validation images all call this with the same location, so they
    cannot disagree. The answer must not change between the first look at a model and its loading:

    - a folder has its tokenizer from the start;
    - a hub model has none before the download, so its tokenizer is never read, not even afterwards. The published
      FLUX.1 tokenizers allow 512, at least as many as their flavours say; one that allows fewer would be padded to
      the flavour's number, as the stock pipeline pads it by default;
    - the random checkpoint is built when it is first loaded; its tokenizer allows 512.

    Raises:
        ModelError: If the tokenizer's config is not valid JSON.
    """
    limit = max_sequence_length(flavour)
    if location.path is None or location.name == TINY_RANDOM:
        return limit
    config = location.path / TOKENIZER_CONFIG
    allowed = read_json(config).get("model_max_length") if config.is_file() else None
    # transformers writes 1e30 for "no limit"
    return int(min(limit, allowed)) if isinstance(allowed, int | float) and allowed >= 1 else limit


def long_captions(location: ModelLocation, flavour: ModelFlavour, captions: Sequence[str]) -> list[str] | None:
    """Return the captions that T5 does not read to the end; None if its tokenizer is not on this machine.

    The same as :meth:`~difftrain_flux.text.FluxTextEncoder.cut_captions`, without torch and transformers.
    """
    file = location.path / TOKENIZER if location.path is not None else cached_file(location, TOKENIZER)
    if file is None or not file.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    longest = text_length(location, flavour)
    tokens = tokenizer.encode_batch(list(captions))
    return [caption for caption, own in zip(captions, tokens, strict=True) if len(own.ids) > longest]
