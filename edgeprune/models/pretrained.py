"""Models and tokenizers that transformers reads: from a folder or the hub, all of it or one line, and never with code.

Its own words for what goes wrong are tables, questions and advice, and its exceptions those of six libraries.
"""

import contextlib
import json
import os
import pickle
import textwrap
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from edgeprune.errors import EdgepruneError, NoTokenizerError, UnsupportedFamilyError
from edgeprune.models.family import find_family
from edgeprune.models.hub import cached_folder, unreachable
from edgeprune.models.quiet import quiet
from edgeprune.models.weights import check_complete, check_plain

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

WEIGHTS = ["*.safetensors", "*.safetensors.index.json", "*.json"]
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")


def read_model(name: str, path: str, options: dict[str, Any]) -> Any:
    """The Hugging Face model at `path`, which the user knows as `name`, with every weight from its files.

    Args:
        name: For messages.
        path: Folder, or name on the hub.
        options: Any of `dtype`, `gguf_file`, `revision`, `attn_implementation` of `from_pretrained`; None is left out.

    Raises:
        UnsupportedFamilyError: No adapter for the architecture, or for weights as they are packed.
        EdgepruneError: There is no model, or a file of it is damaged.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    gguf_file, options = options.get("gguf_file"), {key: value for key, value in options.items() if value is not None}
    source = _Source(name, path, gguf_file or "config.json", options.pop("revision", None))
    if gguf_file is None:
        source.check_config(options.get("attn_implementation"))
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)  # or it stays packed, where kernels are installed
    with source.one_line("cannot load model"):
        options |= source.options | {"output_loading_info": True, "ignore_mismatched_sizes": True}  # looked at below
        loaded: Any = AutoModelForCausalLM.from_pretrained(source.path, **options)
    hf, found = loaded
    hf.config.name_or_path = path
    check_plain(hf)  # first, for such models have other weights than they should
    check_complete(hf, found, name)
    return hf


def read_config(name: str, path: str, revision: str | None = None) -> "PreTrainedConfig":
    """The Hugging Face config of the model at `path`, which the user knows as `name`; nothing of its weights.

    Raises:
        UnsupportedFamilyError: No adapter for the architecture.
        EdgepruneError: There is no model, or its config is damaged.
    """
    from transformers import AutoConfig

    source = _Source(name, path, "config.json", revision)
    values = source.config()
    find_family(values["model_type"], values)
    with source.one_line("cannot read the config of"):
        return AutoConfig.from_pretrained(source.path, **source.options)


def read_empty(name: str, path: str, options: dict[str, Any]) -> tuple[Any, Path]:
    """The same model with weights on the meta device, where they take no memory, and the folder of their files.

    Arguments and errors are those of `read_model`; `gguf_file` is not known.
    """
    from huggingface_hub import snapshot_download
    from transformers import AutoConfig, AutoModelForCausalLM

    source = _Source(name, path, "config.json", options["revision"])
    source.check_config(options["attn_implementation"])
    with source.one_line("cannot load model"):
        config: Any = AutoConfig.from_pretrained(source.path, **source.options)
        dtype = options["dtype"]
        if dtype == "auto":
            dtype = config.dtype or torch.float32
        empty = register_module_parameter_registration_hook(cast("Any", _on_meta))
        try:
            hf: Any = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=options["attn_implementation"], trust_remote_code=False
            )
        finally:
            empty.remove()
        if not source.is_folder:
            source.path = snapshot_download(source.path, revision=options["revision"], allow_patterns=WEIGHTS)
    hf.config.name_or_path = path
    return hf, Path(source.path)


def _on_meta(module: nn.Module, name: str, weight: nn.Parameter | None) -> nn.Parameter | None:
    """In the place of a weight, one without memory; None: keep what is given."""
    if weight is None or weight.is_meta:  # tied weights are registered twice
        return None
    return nn.Parameter(weight.detach().to("meta"), requires_grad=False)


def _check_unpacked(name: str, config: dict[str, Any]) -> None:
    """Refuse MXFP4, which transformers unpacks on some machines, to a dtype of its own, and not on others."""
    packing = config.get("quantization_config")
    if isinstance(packing, dict) and packing.get("quant_method") == "mxfp4":
        raise UnsupportedFamilyError(
            f"{name!r} has weights quantised to MXFP4; give a copy in bfloat16, or load it unpacked, with "
            "AutoModelForCausalLM.from_pretrained(NAME, dtype='bfloat16', quantization_config="
            "Mxfp4Config(dequantize=True)), and give load_model what that returns"
        )


def read_tokenizer(name: str, path: str, revision: str | None) -> Any:
    """The tokenizer at `path`, which the user knows as `name`.

    Raises:
        NoTokenizerError: The model comes without one.
        EdgepruneError: There is no such folder or name, or a file is damaged.
    """
    from transformers import AutoTokenizer

    source = _Source(name, path, "tokenizer_config.json", revision)
    if source.is_folder and not any(next(Path(source.path).glob(files), None) for files in VOCABULARIES):
        raise _no_vocabulary(name)
    with source.one_line("no tokenizer at"):
        tokenizer = AutoTokenizer.from_pretrained(source.path, **source.options)
    if len(tokenizer) <= len(tokenizer.get_added_vocab()):  # so some classes are without their files
        raise _no_vocabulary(name)
    return tokenizer


def _no_vocabulary(name: str) -> NoTokenizerError:
    return NoTokenizerError(
        f"no tokenizer at {name!r}: it has no files with a vocabulary, such as tokenizer.json; save one there, or name "
        "another with data.tokenizer"
    )


@final
class _Source:
    """Where transformers is to look: a folder (of the hub's local cache, where that cannot be reached), or the hub."""

    def __init__(self, name: str, path: str, file: str, revision: str | None) -> None:
        self.name, self.path = name, path
        self.is_quantised = False  # so its config says
        self.unreachable: str | None = None  # why the hub is
        self.is_folder = os.path.isdir(path)  # noqa: PTH112 -- Path raises for a name that is too long
        self.options: dict[str, Any] = {"trust_remote_code": False}  # or it asks, in a terminal
        if not self.is_folder:
            self._ask_hub(file, revision)

    def _ask_hub(self, file: str, revision: str | None) -> None:
        self._check_name()
        why = unreachable(self.path, file, revision=revision)
        if why is None:
            self.options |= {} if revision is None else {"revision": revision}
            return
        self.unreachable = f"the model hub cannot be reached ({why.rstrip('.')})"
        # As a folder, since what would look into the cache by the name still tries to reach the hub for some files.
        folder = cached_folder(self.path, file, revision)
        if folder is None:
            raise EdgepruneError(f"{self.name!r} is no folder here and not in the local cache, and {self._remedy()}")
        self.path, self.is_folder = folder, True

    def _check_name(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        if os.path.exists(self.path):  # noqa: PTH110
            raise EdgepruneError(
                f"{self.name!r} is a file; give the folder that it lies in (and a GGUF file in it as gguf_file)"
            )
        try:
            validate_repo_id(self.path)
        except HFValidationError:
            raise EdgepruneError(
                f"there is no folder {self.name[:80]!r}, and no model on a hub can have this name; check the spelling"
            ) from None

    def config(self) -> dict[str, Any]:
        """What `config.json` says, with a `model_type`; nothing is loaded or run for that."""
        from transformers import PreTrainedConfig

        with self.one_line("cannot load model"):
            if self.is_folder and (Path(self.path) / "adapter_config.json").is_file():
                raise EdgepruneError(
                    f"{self.name!r} holds an adapter of PEFT; load it with its base model, merge them with "
                    "model.merge_and_unload(), and save what that returns with save_pretrained"
                )
            hub = {key: value for key, value in self.options.items() if key != "trust_remote_code"}
            config: Any = PreTrainedConfig.get_config_dict(self.path, **hub)[0]
            known = config.get("model_type") if isinstance(config, dict) else None
            self.is_quantised = isinstance(config, dict) and "quantization_config" in config
            if not isinstance(known, str):
                raise ValueError("there is no config.json that names a model_type")
        return config

    def check_config(self, attention: str | None) -> None:
        """Refuse what no adapter covers, an attention implementation (if one is named) and packed weights."""
        config = self.config()
        family = find_family(config["model_type"], config)
        if attention is not None:
            family.check_attention(attention)
        _check_unpacked(self.name, config)

    @contextlib.contextmanager
    def one_line(self, what: str) -> Generator[None]:
        """Without the library's own messages; every exception becomes one line that begins with `what`."""
        try:
            with quiet():
                yield
        except EdgepruneError:
            raise
        except Exception as error:  # of safetensors, tokenizers, torch, pickle, the HTTP library, ...
            raise EdgepruneError(f"{what} {self.name!r}: {self._reason(error)}; {self._remedy(error)}") from None

    def _reason(self, error: Exception) -> str:
        text = " ".join(str(error).split())
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:  # torch advises to run what is in it
            return "a .bin file of it holds something else than tensors, and is not run"
        if not isinstance(error, (OSError, ValueError, ImportError)):
            text = f"{type(error).__name__}: {text}"
        return textwrap.shorten(text, 200, placeholder=" ...").rstrip(".: ")

    def _remedy(self, error: Exception | None = None) -> str:
        if self.unreachable is not None:
            return f"{self.unreachable}; give a local folder, or fetch it where there is a network"
        if self.is_quantised:
            return "quantised weights cannot be split by head, so give a copy that is not quantised"
        if isinstance(error, ImportError):
            return "install what is missing, or choose otherwise"
        if not self.is_folder:
            return "check the spelling, or give a local folder"
        damaged = [file.name for file in sorted(Path(self.path).glob("*")) if not _opens(file)]
        if damaged:
            return f"{damaged[0]} is damaged: get it again"
        return "is a file missing, damaged or unreadable? get the folder again, as save_pretrained wrote it"


def _opens(file: Path) -> bool:
    """Whether a file of weights or JSON is whole; others count as such, as do those that may not be read."""
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                pass
        elif file.suffix == ".json":
            json.loads(file.read_bytes())
    except (ValueError, SafetensorError):
        return False
    except OSError:
        pass
    return True
