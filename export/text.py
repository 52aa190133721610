"""What all families of text models share: their names in Hugging Face's layout, generation rules, graphs and check."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from heedful.export.checkpoint import Checkpoint, read_json
from heedful.export.family import Family, Subject
from heedful.export.generation import search, token
from heedful.export.graphs import Graph, Reading, build_graphs
from heedful.export.greedy import text_graph
from heedful.export.plan import TEXT
from heedful.export.tied import is_tied, with_embedding
from heedful.export.tokenizers import build_tokenizers
from heedful.export.weights import NameTable, load_weights
from heedful.models.seq2seq import Seq2Seq, Seq2SeqConfig
from heedful.runtime.bundle import Bundle
from heedful.runtime.engine.device import choose_device
from heedful.runtime.engine.search import Hypothesis
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.errors import CheckpointError
from heedful.runtime.text.greedy import Greedy
from heedful.runtime.text.model import TextModel

# read by any model, whatever its language, when a bundle is checked
FIXTURE = (
    "The meeting begins at nine, and everyone is asked to be there a few minutes before.",
    "How are you today?",
    "She had never seen the sea, but she had read about it so often that she thought she knew it well.",
    "Prices rose by 3.5% in the second quarter of 2021.",
)
OUTPUT, EMBEDDING = "lm_head.weight", "shared.weight"
# what a frame may name beside tokens: the languages of a request
SOURCE, TARGET = "source", "target"

Part = int | str


@dataclass(frozen=True)
class Frame:
    """Token ids, or SOURCE or TARGET for a language's, around a text: `before` and `after` a source, and those that a
    target `starts` with, of which the last `forced` count as written by the model.
    """

    before: list[Part]
    after: list[Part]
    start: list[Part]
    forced: int = 0


@dataclass(frozen=True)
class TextFamily:
    """A family of text models.

    `kinds` are the model types of config.json that mean it. `configure` reads config.json, told whether the embedding
    is tied to the output; `names` are those of the weights; `frame` is what stands around texts, by config.json and
    generation_config.json; `tokenizer` is its kind (export/tokenizers.py); `languages` the pattern of the tokens that
    name one, whose groups make the code.
    """

    name: str
    task: str
    kinds: tuple[str, ...]
    configure: Callable[[Mapping[str, Any], bool], Seq2SeqConfig]
    names: Callable[[Seq2SeqConfig], NameTable]
    frame: Callable[[Mapping[str, Any], Mapping[str, Any]], Frame]
    tokenizer: Callable[[Mapping[str, Any]], str]
    languages: str | None = None

    @property
    def family(self) -> Family:
        return Family(
            name=self.name,
            task=self.task,
            section="text",
            plan=TEXT,
            recognises=self.recognises,
            load=self.load,
            tokenizers=self.tokenizers,
            describe=self.describe,
            graphs=graphs,
            subject=subject,
        )

    def recognises(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.format == "huggingface" and checkpoint.config.get("model_type") in self.kinds

    def load(self, checkpoint: Checkpoint) -> Seq2Seq:
        tensors = plain_names(checkpoint.tensors, checkpoint.config)
        try:
            config = self.configure(checkpoint.config, is_tied(tensors, OUTPUT, EMBEDDING))
        except KeyError as error:
            raise CheckpointError(f"{checkpoint.source}: config.json lacks {error}") from error
        model = Seq2Seq(config)
        load_weights(model, tensors, self.names(config))
        return model.eval()

    def tokenizers(self, checkpoint: Checkpoint) -> dict[str, Tokenizer]:
        return tokenizer_files(checkpoint, self.tokenizer(checkpoint.config))

    def describe(self, checkpoint: Checkpoint, model: Seq2Seq, tokenizers: dict[str, Tokenizer]) -> dict[str, Any]:
        config = checkpoint.config
        generation = config | checkpoint.generation
        try:
            frame, end = self.frame(config, generation), token(generation, "eos_token_id")
        except KeyError as error:
            raise CheckpointError(f"{checkpoint.source}: config.json lacks {error}") from error
        decoder = model.config.decoder
        return {
            "pair": pair(checkpoint),
            "frame": asdict(frame),
            "languages": find_languages(tokenizers["tokenizer.json"], self.languages),
            "end": end,
            "positions": model.config.encoder.max_positions,
            "prefixes": prefixes(config),
            "search": search(generation, len(frame.start), decoder.max_positions),
            "alignment_heads": alignment_heads(model.config),
        }


def tokenizer_files(checkpoint: Checkpoint, kind: str) -> dict[str, Tokenizer]:
    """The tokenizers of the `kind` (export/tokenizers.py) of `checkpoint`, by the names of their files in a bundle."""
    source, target = build_tokenizers(checkpoint.path, kind)
    return {"tokenizer.json": source} if source is target else {"tokenizer.json": source, "target.json": target}


def plain_names(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors without the `model.` that some checkpoints begin names with, the bias of logits as a vector, and the
    shared embedding under one name.
    """
    plain = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    if "final_logits_bias" in plain:
        plain["final_logits_bias"] = plain["final_logits_bias"].flatten()
    sides = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    plain = with_embedding(plain, config, OUTPUT, sides[1])
    for other in sides:
        if EMBEDDING not in plain and other in plain:
            plain[EMBEDDING] = plain[other]
    return plain


def find_languages(tokenizer: Tokenizer, pattern: str | None) -> dict[str, int]:
    """Language codes and their tokens."""
    if pattern is None:
        return {}
    found = {
        "".join(filter(None, match.groups())): token
        for name, token in tokenizer.get_vocab().items()
        if (match := re.fullmatch(pattern, name))
    }
    return dict(sorted(found.items()))


def pair(checkpoint: Checkpoint) -> list[str] | None:
    """The source and target language of a model that has no others, as tokenizer_config.json says."""
    settings = read_json(checkpoint.path / "tokenizer_config.json")
    source, target = settings.get("source_lang"), settings.get("target_lang")
    # families with many languages name a default there, opus-mt groups such as ROMANCE
    codes = [code for code in (source, target) if isinstance(code, str) and re.fullmatch("[a-z]{2,3}", code)]
    return codes if len(codes) == 2 and checkpoint.config.get("model_type") == "marian" else None


def prefixes(config: Mapping[str, Any]) -> dict[str, str]:
    """What T5 puts before a text to say what is to be done with it, by name of the task."""
    tasks = config.get("task_specific_params") or {}
    return {name: values["prefix"] for name, values in tasks.items() if values.get("prefix")}


def alignment_heads(config: Seq2SeqConfig) -> list[tuple[int, int]]:
    """All heads of the last layer but one, whose mean follows the source best (Garg et al. 2019, arXiv 1909.02074)."""
    layer = max(config.decoder.layers - 2, 0)
    return [(layer, head) for head in range(config.decoder.layer.heads)]


def graphs(model: Seq2Seq, description: dict[str, Any]) -> list[Graph]:
    """The graphs to trace."""
    source = {"source": torch.zeros(2, 5, dtype=torch.int64), "lengths": torch.full((2,), 5)}
    axes = {"source": {0: "b", 1: "frames"}, "lengths": {0: "b"}}
    alone = [text_graph(model)] if model.config.decoder.layer.recurrent else []
    return [*build_graphs(model, source, axes, reading(model, description)), *alone]


def reading(model: Seq2Seq, description: dict[str, Any]) -> Reading:
    """What the aligner shows."""
    return Reading(description["alignment_heads"], model.config.decoder.vocabulary)


def subject(model: Seq2Seq, bundle: Bundle) -> Subject:
    """The bundle beside its model, on a few sentences."""
    opened = TextModel(Sessions(bundle, choose_device("cpu")))
    framing = opened.framing(*opened.some_languages())
    room = opened.positions - len(framing.source([]))
    sources = [framing.source(opened.tokens.encode(text)[:room]) for text in FIXTURE]
    lengths = [len(source) for source in sources]
    padded = torch.zeros(len(sources), max(lengths), dtype=torch.int64)
    for row, source in enumerate(sources):
        padded[row, : len(source)] = torch.tensor(source)
    with torch.no_grad():
        memory = model.encode(padded, torch.tensor(lengths))
    return Subject(
        model=model,
        opened=opened,
        inputs=sources,
        memory=memory,
        lengths=lengths,
        prompts=[framing.start],
        header=framing.start,
        end=opened.end,
        reading=reading(model, bundle.manifest["text"]),
        alone=_alone(opened, framing.start[0]) if opened.has_greedy else None,
    )


def _alone(opened: TextModel, first: int) -> Callable[[Sequence[int], int], Hypothesis | None]:
    greedy = Greedy(opened)
    return lambda source, steps: greedy.write(source, first, steps, short=False)
