r"""How byte-level BPE models cut text into words before merging, by the name in `tokenizer.ggml.pre`.

A model merges well only inside the words that it was trained on, so the rules are part of the model: they
are the regular expressions of the models' own published tokenizers, and a name that is not here is refused.
The engine behind is Oniguruma. Every rule cuts the pieces that the rule before it left; what matches and
what lies between the matches are both kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tokenizers import Regex
from tokenizers.pre_tokenizers import PreTokenizer, Sequence, Split

from actors.errors import Unsupported


@dataclass(frozen=True, slots=True)
class Rules:
    """One family of pre-tokenizers."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token is that token, whatever the merges would make of it
    add_bos: bool = False  # where the file does not say
    has_bos: bool = True  # False: the family has no token of that role, whatever id the file gives


_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = "|".join((_CONTRACTION, _WORD, r"\p{N}{1,3}", _PUNCTUATION, _SPACES))
_QWEN2 = "|".join((_CONTRACTION, _WORD, r"\p{N}", _PUNCTUATION, _SPACES))
_QWEN35 = "|".join(
    (_CONTRACTION, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\p{N}", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", _SPACES)
)

# Words of capitals and then small letters; letters without case, and marks, count as both.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_1 = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_CASED_2 = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_PATH_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT4O = "|".join(
    (f"{_CASED_1}{_CONTRACTION}?", f"{_CASED_2}{_CONTRACTION}?", r"\p{N}{1,3}", _PATH_PUNCTUATION, _SPACES)
)
_TEKKEN = "|".join((_CASED_1, _CASED_2, r"\p{N}", _PATH_PUNCTUATION, _SPACES))


def _ranges(text: str) -> str:
    """Character class members from code points in hexadecimal: "41-5A B5"."""
    return "".join("-".join(rf"\x{{{point}}}" for point in item.split("-")) for item in text.split())


# Letters with case as deepseek-llm's tokenizer enumerates them: not a Unicode property of any version.
_DEEPSEEK_CASED = _ranges(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A"
    " 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF"
    " 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D"
    " 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4"
    " 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F"
    " 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F"
    " A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3"
    " 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_DEEPSEEK_PUNCTUATION = _ranges("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002")
_DEEPSEEK_CJK = f"[{_ranges('4E00-9FA5 800-4E00 AC00-D7FF')}]+"
_KANA_AND_HAN = f"[{_ranges('4E00-9FA5 3040-309F 30A0-30FF')}]+"
_DEEPSEEK_V3_WORDS = "|".join(
    (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+",
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r" ?[\p{P}\p{S}]+[\r\n]*",
        _SPACES,
    )
)

_DEFAULT = Rules((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_GPT2_RULES = Rules((_GPT2,))
_DIGITS_GPT2 = Rules((r"\p{N}", _GPT2))
_LLAMA3_RULES = Rules((_LLAMA3,), ignore_merges=True, add_bos=True)
_LLAMA3_MERGED = Rules((_LLAMA3,))
_GLM4 = Rules((_LLAMA3,), has_bos=False)
_QWEN2_RULES = Rules((_QWEN2,))
_DEEPSEEK_LLM = Rules(
    (
        r"[\r\n]",
        rf"\s?[{_DEEPSEEK_CASED}]+",
        rf"\s?[{_DEEPSEEK_PUNCTUATION}]+",
        r"\s+$",
        _DEEPSEEK_CJK,
        r"\p{N}+",
    )
)
_DEEPSEEK_CODER = Rules((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}"))
_DEEPSEEK_V3 = Rules((r"\p{N}{1,3}", _KANA_AND_HAN, _DEEPSEEK_V3_WORDS))
_FALCON = Rules((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))

_BY_RULES: tuple[tuple[Rules, str], ...] = (
    (_DEFAULT, "default"),
    (_GPT2_RULES, "gpt-2 phi-2 mpt olmo jais exaone4 a.x-4.0 mellum"),
    (_LLAMA3_RULES, "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral lfm2"),
    (_LLAMA3_MERGED, "dbrx smaug-bpe"),
    (_GLM4, "glm4 chatglm-bpe"),
    (_QWEN2_RULES, "qwen2 deepseek-r1-qwen stablelm2 megrez hunyuan"),
    (Rules((_QWEN35,)), "qwen35"),
    (_DEEPSEEK_LLM, "deepseek-llm"),
    (_DEEPSEEK_CODER, "deepseek-coder"),
    (_DEEPSEEK_V3, "deepseek-v3 hunyuan-dense"),
    (_FALCON, "falcon"),
    (_DIGITS_GPT2, "starcoder refact command-r smollm codeshell exaone minerva-7b"),
    (Rules((_TEKKEN,), ignore_merges=True, add_bos=True), "tekken"),
    (Rules((_GPT4O,)), "gpt-4o llama4"),
)
RULES: Mapping[str, Rules] = MappingProxyType(
    {name: rules for rules, names in _BY_RULES for name in names.split()}
)


def rules_named(name: str) -> Rules:
    """The rules of a pre-tokenizer; Unsupported (a ModelError) for a name that is not known."""
    if (rules := RULES.get(name)) is None:
        raise Unsupported(
            f"tokenizer.ggml.pre names the pre-tokenizer {name!r}, which is not known",
            where="runner.tokenizer",
            mend=f"known are {', '.join(sorted(RULES))}; another one's rules would give other tokens",
        )
    return rules


def build_pre_tokenizer(rules: Rules) -> PreTokenizer:
    """The rules for the engine; it cuts the text, and every character is in one of the words."""
    return Sequence([Split(Regex(pattern), "isolated") for pattern in rules.patterns])
