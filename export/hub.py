"""Models of the Hugging Face Hub, downloaded into its own cache: weights in plain formats and text, never a pickle."""

from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download
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
# CTranslate2's, which is read without running anything; a pickle of that name is refused when it is opened
_CTRANSLATE2 = "model.bin"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""How the names of files end that may be pickles."""

_OTHER_WEIGHTS = (*PICKLES, ".h5", ".msgpack", ".onnx", ".gguf")

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

    Raises `CheckpointError` when the model or revision does not exist, is gated, cannot be reached, or has no weights
    in a format that is read.
    """
    try:
        folder = _download(repo_id, revision, _ALLOWED)
        if any(folder.glob("*.safetensors")) or (folder / _CTRANSLATE2).is_file():
            return folder
        files = list_repo_files(repo_id, revision=folder.name)
        if _CTRANSLATE2 in files:
            return _download(repo_id, folder.name, [*_ALLOWED, _CTRANSLATE2])
    except Exception as error:  # The Hub's HTTP client has errors of its own, which share no base with these.
        reason = next((text for kind, text in _REASONS if isinstance(error, kind)), _first_line(error))
        wanted = repo_id if revision is None else f"{repo_id} at revision {revision}"
        raise CheckpointError(f"cannot get {wanted} from the Hugging Face Hub: {reason}") from error
    raise CheckpointError(f"{repo_id} has no model.safetensors{_instead(repo_id, files)}")


def _download(repo_id: str, revision: str | None, allowed: list[str]) -> Path:
    return Path(snapshot_download(repo_id, revision=revision, allow_patterns=allowed, ignore_patterns=_IGNORED))


def _instead(repo_id: str, files: list[str]) -> str:
    """What there is instead, and what to do about it."""
    others = sorted(name for name in files if name.endswith(_OTHER_WEIGHTS) and "/" not in name)
    if not others:
        return " and no other weights: name another model"
    return (
        f", only {', '.join(others)}, which is not read: a pickle, for one, can run code. Convert it once with "
        f'`CLASS.from_pretrained("{repo_id}").save_pretrained(FOLDER)` and the same of its tokenizer, CLASS being the '
        "class of transformers that config.json names, then export FOLDER; where a pull request of the repository has "
        "the converted weights, name that as the revision: refs/pr/N"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
