"""Models of the Hugging Face Hub, downloaded into its own cache: safetensors and text only, never a pickle."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from heedful.runtime.errors import CheckpointError

_ALLOWED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "README.md"]
# Subfolders hold other frameworks' exports; `model.fp32-00001-of-00002.safetensors` and the like are the same weights
# again in another precision.
_IGNORED = ["*/*", "model.?*.safetensors"]

# The first type that matches names the reason: a subclass stands before its base.
_REASONS: list[tuple[type[Exception], str]] = [
    (GatedRepoError, "access to it is gated: ask for access on its page, then log in with `hf auth login`"),
    (RepositoryNotFoundError, "it does not exist or is private: check the name, or log in with `hf auth login`"),
    (RevisionNotFoundError, "it has no such revision: name a branch, a tag or a full commit hash"),
    (HFValidationError, "it is no valid model id: give it as org/name"),
    (LocalEntryNotFoundError, "the Hub cannot be reached and the cache lacks it: check the network, then retry"),
]


def snapshot(repo_id: str, revision: str | None = None) -> Path:
    """The folder of the Hub's cache, named by its commit, that holds the model `repo_id` (`org/name`) at `revision`.

    `revision` is a branch, a tag or a commit; None is the main branch. A complete snapshot in the cache serves offline.

    Raises `CheckpointError` when the model or revision does not exist, is gated, or cannot be reached.
    """
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=_ALLOWED, ignore_patterns=_IGNORED))
    except Exception as error:  # The Hub's HTTP client has errors of its own, which share no base with these.
        reason = next((text for kind, text in _REASONS if isinstance(error, kind)), _first_line(error))
        wanted = repo_id if revision is None else f"{repo_id} at revision {revision}"
        raise CheckpointError(f"cannot get {wanted} from the Hugging Face Hub: {reason}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
