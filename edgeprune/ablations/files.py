"""Files of states that are the same for every example: means and learned constants."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edgeprune.ablations.means import zero
from edgeprune.errors import EdgepruneError
from edgeprune.models.loading import fingerprint
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from edgeprune.paths import whole_file

FORMAT = "edgeprune-states/1"


def save_states(path: str | Path, model: MaskedModel, states: WriterStates, about: Mapping[str, Any]) -> Path:
    """Write states with batch 1 to one safetensors file, whole or not at all.

    Args:
        path: The file.
        model: The model that they belong to; its fingerprint is kept with them.
        states: `[..., 1, 1 or seq, ...]`.
        about: Where they come from, as plain values.

    Raises:
        EdgepruneError: `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise EdgepruneError(f"{path} is a folder; give the states a file name")
    fields = {"embeddings": states.embeddings, "heads": states.heads, "mlps": states.mlps}
    tensors = {name: field.detach().cpu().contiguous() for name, field in fields.items() if field is not None}
    header = {**about, "format": FORMAT, "model_fingerprint": fingerprint(model)}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={"edgeprune": json.dumps(header, default=str)})
    return path


def load_states(path: str | Path, model: MaskedModel) -> WriterStates:
    """Read a file of `save_states`, on the model's device and in its dtype.

    Raises:
        EdgepruneError: The file is missing, damaged, or of another model.
    """
    if not Path(path).is_file():
        raise EdgepruneError(f"no file of states at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["edgeprune"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']}")
        states = WriterStates(embeddings=tensors["embeddings"], heads=tensors["heads"], mlps=tensors.get("mlps"))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise EdgepruneError(f"{path} is not a whole file of format {FORMAT}: {reason}; write it again") from None
    ours, like = fingerprint(model), zero(model)
    if header["model_fingerprint"] != ours:
        raise EdgepruneError(
            f"{path} belongs to a model with fingerprint {header['model_fingerprint']}, this one has {ours}: "
            "make the states for this model"
        )
    return states.map(lambda field: field.to(like.heads))
