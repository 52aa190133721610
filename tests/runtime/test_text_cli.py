"""`heedful translate` and `heedful summarize` as a person and a pipeline use them."""

import io
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any, NamedTuple

import pytest
import transformers
from tokenizers import ByteLevelBPETokenizer

from heedful.models.filterbank import mel_filterbank
from heedful.runtime import cli

HEEDFUL = Path(sys.executable).with_name("heedful")
TRANSLATED = {"I love you.": "Eu te amo.", "Yes.": "Sim.", "": "", "  \t": "  \t"}


class Done(NamedTuple):
    status: int
    out: str
    err: str


Heedful = Callable[..., Done]


@pytest.fixture
def heedful(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Heedful:
    """Runs the command in this process, which is faster than to start one for each."""

    def run(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["heedful", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = (each.decode() for each in capsysbinary.readouterr())
        # as the interpreter has it: a message goes to standard error
        code = ended.value.code
        return Done(1, out, f"{err}{code}\n") if isinstance(code, str) else Done(int(code or 0), out, err)

    return run


@pytest.fixture(scope="module")
def student(translate_bundle: Callable[[str], Path]) -> Path:
    return translate_bundle("int8")


@pytest.fixture
def translate(heedful: Heedful, student: Path) -> Heedful:
    return lambda *arguments, **stdin: heedful("translate", "--model", student, *arguments, **stdin)


LINES = {
    "lines": b"I love you.\nYes.\n",
    "empty lines": b"\n\nI love you.\n\n\nYes.\n\n",
    "CRLF": b"I love you.\r\n\r\nYes.\r\n",
    "no end": b"I love you.\nYes.",
    "byte order mark": b"\xef\xbb\xbfI love you.\nYes.\n",
    "blank lines": b"Yes.\n  \t\nI love you.\n",
    "nothing": b"",
    "one empty line": b"\n",
}


@pytest.mark.network
@pytest.mark.parametrize("data", LINES.values(), ids=LINES)
def test_line_by_line(translate: Heedful, tmp_path: Path, data: bytes) -> None:
    """Line N of the output is line N of the input, each with its end, whatever ends it had."""
    expected = "".join(f"{TRANSLATED[line]}\n" for line in data.decode("utf-8-sig").splitlines())
    assert translate(stdin=data) == (0, expected, "")
    (tmp_path / "in.txt").write_bytes(data)
    assert translate("--file", tmp_path / "in.txt") == (0, expected, "")


@pytest.mark.network
def test_only_line_feeds_part_lines(translate: Heedful) -> None:
    done = translate(stdin="Yes.\u2028Yes.\x0bYes.\x85\rYes.\nYes.\n".encode())
    assert done.out.count("\n") == 2
    assert done.out.endswith("\nSim.\n")


@pytest.mark.network
def test_texts_as_arguments(translate: Heedful) -> None:
    assert translate("I love you.", "Yes.") == (0, "Eu te amo.\nSim.\n", "")
    assert translate("I love you.\n\nYes.") == (0, "Eu te amo.\n\nSim.\n", "")
    assert translate("--beams", 4, "--from", "en", "--to", "pt", "I love you.") == (0, "Eu te amo.\n", "")


@pytest.mark.network
def test_output_is_there_once_it_is_whole(translate: Heedful, tmp_path: Path) -> None:
    target = tmp_path / "new" / "out.txt"
    assert translate("--output", target, "Yes.") == (0, "", "")
    assert target.read_bytes() == b"Sim.\n"
    bad = b"I love you.\n\xff\n"
    for options in ((), ("--stream",)):
        assert translate("--output", target, *options, stdin=bad).status == 1
        assert translate("--output", tmp_path / "never.txt", *options, stdin=bad).status == 1
    assert target.read_bytes() == b"Sim.\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "out.txt"]


@pytest.mark.network
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--file", "missing.txt"), "missing.txt cannot be read: No such file"),
        (("--file", "."), ". cannot be read: Is a directory"),
        (("--file", "latin1.txt"), "latin1.txt: line 1 is not UTF-8 (byte 0xe3 at offset 1)"),
        (("--file", "latin1.txt", "Yes."), "texts and --file exclude one another"),
        (("--from", "de", "Yes."), "translates from en to pt, not from 'de'"),
        (("--to", "fr", "Yes."), "translates from en to pt, not to 'fr'"),
        (("--beams", "0", "Yes."), "beams must be a whole number from 1"),
        (("--output", "latin1.txt/out.txt", "Yes."), "out.txt cannot be written"),
        (("--prompt", "so " * 1000, "Yes."), "leaves no room"),
        (("--model", "no-such-bundle", "Yes."), "no bundle 'no-such-bundle'"),
    ],
)
def test_bad_input_is_one_clear_line(
    translate: Heedful, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin1.txt").write_bytes("S\u00e3o\n".encode("latin1"))
    done = translate(*arguments)
    assert (done.status, done.out) == (1, "")
    assert message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.network
def test_lines_before_one_that_cannot_be_read_are_translated(translate: Heedful) -> None:
    done = translate(stdin="Yes.\nS\u00e3o\n".encode("latin1"))
    assert (done.status, done.out) == (1, "Sim.\n")
    assert "line 2 is not UTF-8 (byte 0xe3 at offset 6)" in done.err


@pytest.mark.parametrize("command", ["translate", "summarize"])
def test_a_bundle_for_speech_is_refused(heedful: Heedful, seeded_bundle: Path, command: str) -> None:
    done = heedful(command, "--model", seeded_bundle, "Yes.")
    assert (done.status, done.out) == (1, "")
    assert re.fullmatch(r"heedful: error: \S+seeded does not write text .* `heedful list` .*\n", done.err)


@pytest.mark.network
def test_a_bundle_for_text_is_refused_for_speech(heedful: Heedful, student: Path, tmp_path: Path) -> None:
    (tmp_path / "sound.wav").touch()
    done = heedful("transcribe", "--model", student, tmp_path / "sound.wav")
    assert (done.status, done.out) == (1, "")
    assert re.fullmatch(rf"heedful: error: .*{student.name}.*transcribe.*\n", done.err)


@pytest.mark.network
def test_links_are_between_words_of_the_line(translate: Heedful) -> None:
    """Counted from the beginning of the line, through all its sentences."""
    lines = ["How are you today?", "", "I love you.  How are you today?", "Prices rose by 3.5% in 2021."]
    done = translate("--alignment", stdin="\n".join(lines).encode())
    assert done.status == 0
    found = [line.split("\t") for line in done.out.splitlines()]
    plain = translate(stdin="\n".join(lines).encode())
    assert [text for text, _ in found] == plain.out.splitlines()
    pairs = [[tuple(map(int, link.split("-"))) for link in links.split()] for _, links in found]
    for line, (text, _), links in zip(lines, found, pairs, strict=True):
        assert all(i < len(line.split()) and j < len(text.split()) for i, j in links)
        assert {j for _, j in links} == set(range(len(text.split())))
    assert set(pairs[0]) == {(0, 0), (2, 1), (1, 2), (3, 3)}
    assert pairs[1] == []
    assert {(i + 3, j + 3) for i, j in pairs[0]} < set(pairs[2])


@contextmanager
def piped(*arguments: object) -> Iterator[tuple["subprocess.Popen[bytes]", IO[bytes], IO[bytes]]]:
    """The command started, its input and its output; ended if it keeps silent for a minute."""
    command = [str(each) for each in (HEEDFUL, *arguments)]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        patience = threading.Timer(60, process.kill)
        patience.start()
        try:
            assert process.stdin
            assert process.stdout
            yield process, process.stdin, process.stdout
        finally:
            patience.cancel()


@pytest.mark.network
def test_a_stream_answers_every_line_before_the_next_comes(student: Path) -> None:
    with piped("translate", "--stream", "--model", student) as (process, to, back):
        for line, expected in [*TRANSLATED.items()] * 2:
            to.write(f"{line}\n".encode())
            to.flush()
            assert back.readline().decode() == f"{expected}\n"
        assert process.communicate() == (b"", b"")
    assert process.returncode == 0


@pytest.mark.network
def test_a_reader_who_has_seen_enough_is_no_error(student: Path) -> None:
    with piped("translate", "--stream", "--model", student) as (process, to, back):
        to.write(b"Yes.\n")
        to.flush()
        assert back.readline() == b"Sim.\n"
        back.close()
        to.write(b"Yes.\n" * 3)
        to.close()
        assert process.stderr
        assert process.stderr.read() == b""
    assert process.returncode == 0


STORY = "The old keeper counted the ships: three, four. None of them stopped, and he wrote it down."
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART of random weights that reads 126 tokens of text at once and writes letters."""
    mel_filterbank(201, 80, 16_000)  # transformers imports torchaudio, which loads without CUDA only after this
    import torch

    folder = tmp_path_factory.mktemp("checkpoints") / "bart"
    folder.mkdir()
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([STORY], vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    tokenizer.save_model(str(folder))
    sizes: dict[str, Any] = {
        f"{side}_{name}": size
        for side in ("encoder", "decoder")
        for name, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    config = transformers.BartConfig(
        vocab_size=tokenizer.get_vocab_size(), d_model=16, max_position_embeddings=128, init_std=0.5, **sizes
    )
    torch.manual_seed(0)
    model = transformers.BartForConditionalGeneration(config)
    tokens = range(len(SPECIAL), tokenizer.get_vocab_size())
    rules: Any = model.generation_config
    rules.suppress_tokens = [token for token in tokens if not tokenizer.decode([token]).strip().isalpha()]
    rules.num_beams, rules.max_length, rules.min_length = 2, 16, 8
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def summaries(bart: Path) -> Callable[[str], str]:
    """What transformers makes of a text."""
    model: Any = transformers.BartForConditionalGeneration.from_pretrained(bart)
    tokenizer = transformers.BartTokenizer.from_pretrained(bart)

    def summary(text: str) -> str:
        found = model.generate(**tokenizer(text, return_tensors="pt"))
        return str(tokenizer.decode(found[0], skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return summary


@pytest.fixture(scope="module")
def summarizer(bart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("bundles") / "bart"
    done = subprocess.run([HEEDFUL, "export", bart, bundle], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return bundle


@pytest.fixture
def summarize(heedful: Heedful, summarizer: Path) -> Heedful:
    return lambda *arguments, **stdin: heedful("summarize", "--model", summarizer, *arguments, **stdin)


def test_texts_are_summarized_one_line_for_each(
    summarize: Heedful, summaries: Callable[[str], str], tmp_path: Path
) -> None:
    """From arguments, files and standard input, which are one text each whatever lines they have."""
    texts = [STORY, "None of them stopped."]
    expected = "".join(f"{summaries(text)}\n" for text in texts)
    assert len({*expected.splitlines(), ""}) == 3
    assert summarize(*texts) == (0, expected, "")
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    assert summarize("--file", files[0], "--file", files[1]) == (0, expected, "")
    assert summarize(stdin=STORY.encode()).out == expected.splitlines(keepends=True)[0]
    out = tmp_path / "out.txt"
    assert summarize("--output", out, "--file", files[1], STORY) == (0, "", "")
    assert out.read_text() == expected


def test_a_text_of_many_lines_and_parts_is_one_line(summarize: Heedful, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(f"{STORY}\n\n" * 20)
    done = summarize("--file", tmp_path / "long.txt")
    assert (done.status, done.err, done.out.count("\n")) == (0, "", 1)
    assert len(done.out) > 40


def test_a_prompt_comes_before_every_text(summarize: Heedful, summaries: Callable[[str], str]) -> None:
    assert summarize("--prompt", "He wrote: ", "four.").out == f"{summaries('He wrote: four.')}\n"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--file", "missing.txt"), 1, "missing.txt cannot be read"),
        (("--file", "latin1.txt"), 1, "latin1.txt: line 1 is not UTF-8"),
        (("--beams", "0", "four"), 1, "beams"),
        (("--from", "en", "four"), 2, "--from"),
    ],
)
def test_what_cannot_be_summarized_is_said(
    summarize: Heedful, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], status: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("latin1.txt").write_bytes(b"\xe3\n")
    done = summarize(*arguments)
    assert (done.status, done.out) == (status, "")
    assert message in done.err


def test_a_summary_needs_a_model(heedful: Heedful) -> None:
    done = heedful("summarize", "four")
    assert (done.status, done.out) == (2, "")
    assert "--model" in done.err
