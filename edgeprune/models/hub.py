"""Is the model hub within reach? Asked once before anything is fetched, for its client tries six times and says so."""

from collections.abc import Callable
from threading import Thread

SECONDS = 5.0  # for the answer, however many addresses the hub has


def unreachable(name: str, file: str, kind: str = "model", revision: str | None = None) -> str | None:
    """Why a repository cannot be asked for, or None if the hub answers, be it that there is no such repository.

    Args:
        name: Repository, as `gpt2` or `owner/name`.
        file: A file that it probably has; it does no harm if not.
        kind: `"model"` or `"dataset"`.
        revision: Branch, tag or commit.
    """
    return silence(lambda: _ask(name, file, kind, revision), SECONDS)


def silence(ask: Callable[[], str | None], seconds: float) -> str | None:
    """Why a server does not answer, None if it does.

    Args:
        ask: Asks it, and returns the same.
        seconds: For all of it. A connection has its time limit for each address of the host, looking these up has none.
    """
    said: list[str | None] = []
    asking = Thread(target=lambda: said.append(ask()), daemon=True)
    asking.start()
    asking.join(seconds)
    return said[0] if said else f"no answer within {seconds:g} s"


def _ask(name: str, file: str, kind: str, revision: str | None) -> str | None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        get_hf_file_metadata(hf_hub_url(name, file, repo_type=kind, revision=revision), timeout=SECONDS)
    except HfHubHTTPError as error:
        return f"it answers {error.response.status_code}" if error.response.status_code >= 500 else None
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except Exception as error:  # those of whichever HTTP library the client is built on
        return " ".join(str(error).split()) or type(error).__name__
    return None


def cached_folder(name: str, file: str, revision: str | None = None) -> str | None:
    """The folder of the hub's local cache with what was fetched of a model, which may be a part; None if it has none.

    Args:
        name: Repository.
        file: A file that has to be there if the repository has it.
        revision: Branch, tag or commit.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=file)
    except LocalEntryNotFoundError:
        return None
