"""Files of states that are the same for every example: means and learned constants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune.ablations.means import zero
from edgeprune.errors import EdgepruneError
from edgeprune.models.loading import fingerprint
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from edgeprune.sealed import SealedFile

_FILE = SealedFile("edgeprune-states/1", "file of states")


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
    fields = {"embeddings": states.embeddings, "heads": states.heads, "mlps": states.mlps}
    tensors = {name: field for name, field in fields.items() if field is not None}
    return _FILE.write(path, tensors, {**about, "model_fingerprint": fingerprint(model)})


def load_states(path: str | Path, model: MaskedModel) -> WriterStates:
    """Read a file of `save_states`, on the model's device and in its dtype.

    Raises:
        EdgepruneError: The file is missing, altered, without a seal, or of another model.
    """
    header, tensors = _FILE.read(path)
    states = WriterStates(embeddings=tensors["embeddings"], heads=tensors["heads"], mlps=tensors.get("mlps"))
    ours, like = fingerprint(model), zero(model)
    if header["model_fingerprint"] != ours:
        raise EdgepruneError(
            f"{path} belongs to a model with fingerprint {header['model_fingerprint']}, this one has {ours}: "
            "make the states for this model"
        )
    return states.map(lambda field: field.to(like.heads))
