"""Trains the small captioner from published weights and captioned photos: train.py DATA OUTPUT.

README.md tells what the stages do. A run that was stopped goes on after the last epoch it finished.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lessons import Lessons
from lite0 import SPLIT, fetch, fold
from regularize import Dropout, add_dropout
from save import save
from settings import Settings, Stage, build
from sight import activations, autocast, features
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from heedful.models.captioner import Captioner


def schedule(step: int, steps: int, stage: Stage) -> float:
    """The share of the stage's rates: a linear warm-up, then half a cosine down to the floor."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    return stage.floor + (1 - stage.floor) * (1 + math.cos(math.pi * step / steps)) / 2


def alike(lengths: Tensor, size: int, window: int = 8) -> list[Tensor]:
    """Batches of photos in random order, those of a batch with captions of much the same length: sorted by lengths
    (photos,) among `window` batches at a time.
    """
    order = torch.randperm(len(lengths)).split(window * size)
    batches = [batch for part in order for batch in part[lengths[part].argsort()].split(size)]
    return [batches[i] for i in torch.randperm(len(batches)).tolist()]


def groups(model: Captioner, stage: Stage, decay: float) -> list[dict[str, Any]]:
    """The parameters a stage trains; the matrices among them decay."""
    network = model.encoder.network
    model.requires_grad_(True)
    network.requires_grad_(False)
    unfrozen = [p for part in (*network.blocks[SPLIT:], network.head) for p in part.parameters()]
    for parameter in unfrozen:
        parameter.requires_grad_(stage.encoder_rate > 0)
    inside = {id(parameter) for parameter in network.parameters()}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    return [
        {"params": [p for p in found if (p.dim() > 1) == matrices], "top": rate, "weight_decay": decay * matrices}
        for found, rate in ((outside, stage.rate), (unfrozen, stage.encoder_rate))
        for matrices in (True, False)
        if rate
    ]


class Course:
    """One stage: the model, its running average, the optimizer, and how far they are."""

    def __init__(self, lessons: Lessons, model: Captioner, stage: Stage, checkpoint: Path) -> None:
        self.lessons, self.model, self.stage, self.checkpoint = lessons, model, stage, checkpoint
        self.settings = lessons.settings
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.settings.average))
        self.optimizer = torch.optim.AdamW(groups(model, stage, self.settings.decay), betas=(0.9, 0.98), fused=True)
        self.steps = math.ceil(len(lessons.train) / self.settings.batch)
        self.state: dict[str, Any] = {"epoch": 0, "best": -1.0, "kept": {}}
        self.parts = {"model": model, "average": self.average, "optimizer": self.optimizer}
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            self.state = saved["state"]
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])

    @property
    def over(self) -> bool:
        return self.state["epoch"] >= self.stage.epochs

    def run(self, source: Tensor, val: Tensor) -> None:
        """Trains until the stage is over."""
        while not self.over:
            loss = self.epoch(source)
            result = {"train": loss} | self.lessons.validate(self.average.module, val)
            self.state["epoch"] += 1
            if result["cider"] > self.state["best"]:
                weights = {name: tensor.clone() for name, tensor in self.average.module.state_dict().items()}
                self.state |= {"best": result["cider"], "kept": weights}
            torch.save(
                {"state": self.state} | {name: part.state_dict() for name, part in self.parts.items()}, self.checkpoint
            )
            numbers = " ".join(f"{name} {number:.3f}" for name, number in result.items())
            print(f"{self.stage.name} {self.state['epoch']}: {numbers}", flush=True)

    def epoch(self, source: Tensor) -> float:
        """Every photo once, in one of its views. source (photos, views, ...) -> the mean loss, or the mean reward."""
        stage, lessons, epoch = self.stage, self.lessons, self.state["epoch"]
        learn = lessons.reward if stage.rewarded else lessons.imitate
        torch.manual_seed(self.settings.seed + epoch)
        lessons.worths = []
        losses = []
        batches = alike(lessons.lengths, self.settings.batch)
        for i, chosen in enumerate(tqdm(batches, f"{stage.name} {epoch + 1}")):
            views = torch.randint(source.shape[1], chosen.shape)
            self.model.train()
            with autocast():
                loss = learn(self.model, source[chosen, views], chosen.tolist())
            self.step(loss, schedule(epoch * self.steps + i, stage.epochs * self.steps, stage))
            losses.append(loss.item())
        found = lessons.worths or losses
        return sum(found) / len(found)

    def step(self, loss: Tensor, share: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["top"] * share
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.average.update_parameters(self.model)


def cached(path: Path, make: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What `make` gives, kept in a file."""
    if not path.exists():
        torch.save(make(), path)
    return torch.load(path, weights_only=True, mmap=True)


def train(data: Path, output: Path, settings: Settings) -> None:
    """All stages, each from the epoch of the last that validates best."""
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    lessons = Lessons(data, settings)
    model = build(settings, len(lessons.words))
    fold(model.encoder.network, fetch(output))
    add_dropout(model, Dropout(settings.dropout, settings.seed))
    splits = ((lessons.train, settings.views), (lessons.val, 1))
    frozen = cached(
        output / "activations.pt",
        lambda: [activations(model.eval(), photos, views, settings) for photos, views in splits],
    )
    for stage in settings.stages:
        course = Course(lessons, model, stage, output / f"{stage.name}.pt")
        if not course.over:
            inputs = frozen
            if not stage.encoder_rate:
                path = output / f"{stage.name}-features.pt"
                inputs = cached(path, lambda: [features(model.eval(), x[:, : settings.plain_views]) for x in frozen])
            course.run(*inputs)
        model.load_state_dict(course.state["kept"])
    search = {
        "num_beams": settings.beams,
        "length_penalty": settings.length_penalty,
        "max_length": settings.max_length + 1,  # the start is counted here
    }
    save(model, lessons.words, search, output / "captioner")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a folder with captions.jsonl and images/")
    parser.add_argument("output", type=Path, help="where checkpoints and the model go")
    arguments = parser.parse_args()
    train(arguments.data, arguments.output, Settings())
