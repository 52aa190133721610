"""Writes a captioner of a size that people use, with seeded weights and made-up words, in Hugging Face's layout.

    python benchmarks/rivals/captioners.py NAME FOLDER

NAME is blip-base, of the sizes of Salesforce/blip-image-captioning-base, or vit-gpt2, of those of
nlpconnect/vit-gpt2-image-captioning. Time does not depend on what the weights are, only on how long captions get, and
that a benchmark fixes. Every word is one token. Runs in transformers' environment.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from opus import words
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn

BERT = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 30_522: "[DEC]", 30_523: "[ENC]"}
GPT2 = {50_256: "<|endoftext|>"}
# Plain random layers forget what they read and repeat a word for ever. With these a layer adds little to what it reads,
# words and their places weigh as much as the picture, and the last layer turns them into another word.
GAINS = (
    (r".*decoder\..*\.11\.(output\.dense|mlp\.c_proj)\.weight", 8.0),
    (r".*crossattention\.output\.dense\.weight", 0.5),
    (r".*text_decoder\..*output\.dense\.weight", 0.2),
    # not normalised, embeddings are small beside what layers give
    (r".*crossattention\.c_proj\.weight", 0.03),
    (r".*c_proj\.weight", 0.02),
    (r".*decoder\..*(query|key|c_attn|q_attn)\.weight", 1.5),
    (r".*(word_embeddings|position_embeddings|wte|wpe)\.weight", 3.0),
)


def blip() -> tuple[hf.PreTrainedModel, hf.BaseImageProcessor]:
    """BLIP's base model for captions."""
    ends = {"bos_token_id": 30_522, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 102}
    text = {"vocab_size": 30_524, "num_attention_heads": 12, "max_position_embeddings": 512, **ends}
    config = hf.BlipConfig(text_config=text, vision_config={"image_size": 384, "patch_size": 16})
    return hf.BlipForConditionalGeneration(config), hf.BlipImageProcessor()


def vit_gpt2() -> tuple[hf.PreTrainedModel, hf.BaseImageProcessor]:
    """ViT and the small GPT-2."""
    crossed = {"is_decoder": True, "add_cross_attention": True}
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(hf.ViTConfig(), hf.GPT2Config(**crossed))
    model = hf.VisionEncoderDecoderModel(config)
    for settings in model.config, model.generation_config:
        settings.decoder_start_token_id = settings.eos_token_id = settings.pad_token_id = 50_256
    return model, hf.ViTImageProcessor()


MODELS: dict[str, tuple[Callable[[], tuple[hf.PreTrainedModel, hf.BaseImageProcessor]], dict[int, str]]] = {
    "blip-base": (blip, BERT),
    "vit-gpt2": (vit_gpt2, GPT2),
}


def inputs_of(module: nn.Module, weight: Tensor) -> int:
    """Of how many numbers each number that `module` gives is made; for an embedding its width."""
    return weight.shape[0] if isinstance(module, hf.pytorch_utils.Conv1D) else weight[0].numel()


@torch.no_grad()
def fill(model: nn.Module, seed: int = 0) -> None:
    """Weights that keep activations near unit variance."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        gain = next((gain for pattern, gain in GAINS if re.fullmatch(pattern, name)), 1.0)
        if parameter.ndim == 1:
            parameter.normal_(float(not name.endswith("bias")), 0.02)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding | hf.pytorch_utils.Conv1D):
            parameter.normal_(0, gain * inputs_of(module, parameter) ** -0.5)
        else:  # positions, and what stands for the whole picture
            parameter.normal_(0, 0.1)


def tokenizer(special: dict[int, str], size: int) -> Tokenizer:
    """Made-up words between the `special` tokens."""
    made_up = iter(words())
    pieces = [special.get(i) or next(made_up) for i in range(size)]
    unknown = special.get(100, pieces[-1])
    made = Tokenizer(WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=unknown))
    made.pre_tokenizer = Whitespace()
    made.add_special_tokens(list(special.values()))
    return made


def write(name: str, folder: Path) -> None:
    """Write the model `name` to `folder`."""
    build, special = MODELS[name]
    model, processor = build()
    fill(model)
    for each in (model, processor):
        each.save_pretrained(folder)
    # in full, as published: without what is the default captions would lack their ends
    model.config.to_json_file(folder / "config.json", use_diff=False)
    decoder = model.text_decoder if name == "blip-base" else model.decoder
    tokenizer(special, decoder.config.vocab_size).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write(arguments.name, arguments.folder)
