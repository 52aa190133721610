"""The tokenizers of families, each made into a `tokenizers.Tokenizer` with the ids of its model."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from heedful.export import sentencepiece
from heedful.export.checkpoint import read_json
from heedful.runtime.errors import CheckpointError

_END = "</s>"
_FAIRSEQ = ("<s>", "<pad>", _END, "<unk>")
_BASIC = (*_FAIRSEQ, "<mask>")
# Marian's multilingual models name the target language so.
_LANGUAGE = re.compile(">>.+<<")

# The languages of each family in the order of their ids, which no file of a checkpoint without tokenizer.json states.
_MBART = """
    ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP
    nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN
"""
_MBART_50 = f"""{_MBART}
    af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE
    ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI
"""
_NLLB = """
    ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab arb_Arab ars_Arab
    ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn ban_Latn bel_Cyrl
    bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn
    cjk_Latn ckb_Arab crh_Latn cym_Latn dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn
    est_Latn eus_Latn ewe_Latn fao_Latn pes_Arab fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gla_Latn
    gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn
    ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab
    kas_Deva kat_Geor knc_Arab knc_Latn kaz_Cyrl kbp_Latn kea_Latn khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn
    kon_Latn kor_Hang kmr_Latn lao_Laoo lvs_Latn lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn
    lua_Latn lug_Latn luo_Latn lus_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Latn mkd_Cyrl plt_Latn mlt_Latn
    mni_Beng khk_Cyrl mos_Latn mri_Latn zsm_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva nso_Latn nus_Latn
    nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pol_Latn por_Latn prs_Arab pbt_Arab quy_Latn
    ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng scn_Latn shn_Mymr sin_Sinh slk_Latn slv_Latn smo_Latn
    sna_Latn snd_Arab som_Latn sot_Latn spa_Latn als_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn
    szl_Latn tam_Taml tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi taq_Latn taq_Tfng tpi_Latn tsn_Latn
    tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab uzn_Latn vec_Latn
    vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans zho_Hant zul_Latn
"""
_M2M_100 = """
    af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu
    hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt
    ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu
"""
_WMT_21 = "en ha is ja cs ru zh de"


class Tokenizers(NamedTuple):
    """What cuts the text that a model reads and what joins the text it writes: one and the same in most families."""

    source: Tokenizer
    target: Tokenizer


def build_tokenizers(folder: Path, family: str) -> Tokenizers:
    """The tokenizers of the checkpoint in `folder`, whose ids are those of the embedding of a model of `family`.

    `encode(text, add_special_tokens=False)` gives the ids of the text alone, `decode(ids)` the text. The end, padding
    and unknown, masks and languages are special tokens, found by `token_to_id`. Their names in a text are only text,
    provided that `encode_special_tokens` is set: it is, but must be set again on a tokenizer that was saved and
    loaded.

    Raises `CheckpointError` when the family is unknown, or a file of `folder` is missing, damaged or does not fit.
    """
    if family not in _FAMILIES:
        raise CheckpointError(f"no tokenizer is known for models of {family!r}: use one of {', '.join(_FAMILIES)}")
    tokenizers = _FAMILIES[family](folder)
    for tokenizer in tokenizers:
        if tokenizer.token_to_id(_END) is None:
            raise CheckpointError(f"the tokenizer in {folder} has no {_END}, with which {family} models end a text")
    return tokenizers


@dataclass(frozen=True)
class _Layout:
    """Which token has which id, given a SentencePiece model: those of `head`, its pieces from `skip` on, the `tail`."""

    file: str
    head: tuple[str, ...] = ()
    skip: int = 0
    tail: tuple[str, ...] = ()

    def build(self, folder: Path) -> Tokenizer:
        model = sentencepiece.read(folder / self.file)
        if any(piece.kind is sentencepiece.Kind.NORMAL for piece in model.pieces[: self.skip]):
            raise CheckpointError(
                f"{model.path} has a piece of text among its first {self.skip}: it is of another family"
            )
        names = [*self.head, *model.texts()[self.skip :], *self.tail]
        return sentencepiece.build(model, names, (*self.head, *self.tail))


def _fairseq(languages: str) -> _Layout:
    """Fairseq has four tokens where SentencePiece has `<unk>`, `<s>` and `</s>`."""
    return _Layout("sentencepiece.bpe.model", _FAIRSEQ, 3, (*languages.split(), "<mask>"))


_T5 = _Layout("spiece.model", tail=tuple(f"<extra_id_{i}>" for i in reversed(range(100))))
_PEGASUS = _Layout("spiece.model", ("<pad>", _END, "<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, 103))), 2)


def _ready(layout: _Layout, folder: Path) -> Tokenizers:
    """From tokenizer.json where there is one."""
    if not (folder / "tokenizer.json").is_file():
        return _same(layout.build(folder))
    return _same(_load(folder / "tokenizer.json", (*_BASIC, *layout.head, *layout.tail)))


def _bart(folder: Path) -> Tokenizers:
    if (folder / "tokenizer.json").is_file():
        return _same(_load(folder / "tokenizer.json", _BASIC))
    vocabulary, merges = _present(folder / "vocab.json"), _present(folder / "merges.txt")
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # the library raises no narrower one
        raise CheckpointError(f"{vocabulary} and {merges} do not fit ({error}); download them again") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _same(_special(tokenizer, _BASIC))


def _student(folder: Path) -> Tokenizers:
    """Firefox's models have one vocabulary for both languages, or one for the source and one for the target."""
    files = sorted(folder.glob("*vocab*.spm"))
    roles = [next((role for role in ("src", "trg") if role in file.name), None) for file in files]
    if len(files) == 1:
        return _same(sentencepiece.build(sentencepiece.read(files[0])))
    if roles == ["src", "trg"]:
        source, target = (sentencepiece.build(sentencepiece.read(file)) for file in files)
        return Tokenizers(source, target)
    found = ", ".join(file.name for file in files) or "none"
    raise CheckpointError(
        f"{folder} must have one vocab*.spm, or one srcvocab*.spm and one trgvocab*.spm; it has {found}"
    )


def _marian(folder: Path) -> Tokenizers:
    """The two SentencePiece models say how text is cut, vocab.json says the ids; some have one for each side.

    Without them a tokenizer.json does both.
    """
    if not (folder / "source.spm").exists() and (folder / "tokenizer.json").is_file():
        return _same(_load(folder / "tokenizer.json", _BASIC))
    shared = folder / "vocab.json"
    own = folder / "target_vocab.json"
    sides = {"source.spm": shared, "target.spm": own if own.is_file() else shared}

    def side(file: str) -> Tokenizer:
        names = _vocabulary(sides[file])
        special = [name for name in names if name in _BASIC or _LANGUAGE.fullmatch(name)]
        return sentencepiece.build(sentencepiece.read(folder / file), names, special)

    return Tokenizers(side("source.spm"), side("target.spm"))


def _m2m_100(folder: Path) -> Tokenizers:
    """The languages come after the pieces; which they are, tokenizer_config.json says."""
    settings = read_json(folder / "tokenizer_config.json")
    languages = _WMT_21 if settings.get("language_codes") == "wmt21" else _M2M_100
    tail = tuple(f"__{language}__" for language in languages.split())
    model = sentencepiece.read(folder / "sentencepiece.bpe.model")
    names = _vocabulary(folder / "vocab.json")
    return _same(sentencepiece.build(model, [*names, *tail], (*_FAIRSEQ, *tail)))


_FAMILIES: dict[str, Callable[[Path], Tokenizers]] = {
    "student": _student,
    "marian": _marian,
    "m2m_100": _m2m_100,
    "nllb": partial(_ready, _fairseq(_NLLB)),
    "mbart": partial(_ready, _fairseq(_MBART)),
    "mbart50": partial(_ready, _fairseq(_MBART_50)),
    "t5": partial(_ready, _T5),
    "pegasus": partial(_ready, _PEGASUS),
    "bart": _bart,
}


def find_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model that writes only, by the files in `folder`: tokenizer.json, else vocab.json with
    merges.txt (GPT-2, RoBERTa), vocab.txt (BERT) or sentencepiece.bpe.model (XLM-RoBERTa).

    Raises `CheckpointError` when there is none, or it is damaged.
    """
    builders: dict[str, Callable[[Path], Tokenizer]] = {
        "tokenizer.json": lambda path: _load(path, _BASIC),
        "vocab.json": lambda path: _special(_bart(folder).source, ("<|endoftext|>",)),
        "vocab.txt": _bert,
        "sentencepiece.bpe.model": lambda path: _special(_fairseq("").build(folder), _BASIC),
    }
    for name, build in builders.items():
        if (folder / name).is_file():
            return build(folder / name)
    raise CheckpointError(f"{folder} has no tokenizer: it needs {' or '.join(builders)}")


def _bert(path: Path) -> Tokenizer:
    settings = read_json(path.parent / "tokenizer_config.json")
    try:
        tokenizer = Tokenizer(models.WordPiece.from_file(str(path), unk_token="[UNK]"))
    except Exception as error:  # the library raises no narrower one
        raise CheckpointError(f"{path} is no vocabulary of BERT's ({error}); download it again") from error
    if tokenizer.token_to_id("[UNK]") is None:
        raise CheckpointError(f"{path} is no vocabulary of BERT's: it has no [UNK]; download it again")
    lower = settings.get("do_lower_case", True)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=settings.get("strip_accents"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _special(tokenizer, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))


def _same(tokenizer: Tokenizer) -> Tokenizers:
    return Tokenizers(tokenizer, tokenizer)


def _load(path: Path, special: Iterable[str]) -> Tokenizer:
    """The tokenizer in `path`, without what it does to the length of a text."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise CheckpointError(f"{path} is not a tokenizer ({error}); download it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _special(tokenizer, special)


def _special(tokenizer: Tokenizer, special: Iterable[str]) -> Tokenizer:
    """`tokenizer` with those of `special` that it has registered as special, and kept out of encoded text."""
    tokenizer.add_special_tokens([name for name in special if tokenizer.token_to_id(name) is not None])
    added = tokenizer.get_added_tokens_decoder().values()
    return sentencepiece.guarded(tokenizer, [token.content for token in added if token.special])


def _present(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(f"{path} is not there; download it, or a tokenizer.json")
    return path


def _vocabulary(path: Path) -> list[str]:
    """The tokens of a vocab.json in the order of their ids."""
    ids = read_json(_present(path))
    names = {i: name for name, i in ids.items() if isinstance(i, int)}
    if names.keys() != set(range(len(ids))):
        raise CheckpointError(f"{path} does not number its tokens 0, 1, 2 and so on; download it again")
    return [names[i] for i in range(len(ids))]
