"""MicroWan's tokenizer: a unigram model of the world's whole words, then letter pairs, then characters."""

import string

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from latentloom.micro.captions import grammar_words
from latentloom.micro.lexicon import lexicon_words

#: As in UMT5: padding is 0, the end of the text 1, unknown 2.
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
_WORD_SCORE, _PAIR_SCORE, _CHARACTER_SCORE = -2.0, -9.0, -10.0
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def make_tokenizer(max_length: int = 512) -> PreTrainedTokenizerFast:
    """The tokenizer, always the same; at most 1,000 pieces, text is lowercased, `</s>` ends it.

    Args:
        max_length: longest text in tokens, `</s>` included.
    """
    pieces = _pieces()
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=UNK_ID, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="first"), pre_tokenizers.Punctuation()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
        padding_side="right",
    )


def _pieces() -> list[tuple[str, float]]:
    words = dict.fromkeys([*lexicon_words(), *grammar_words()])
    pairs = sorted({word[at : at + 2] for word in words for at in range(len(word) - 1)} - set(words))
    characters = [_SPACE, *string.ascii_lowercase, *string.digits, *".,;:!?'\"()-+"]
    pieces = [(token, 0.0) for token in SPECIAL_TOKENS]
    pieces += [(_SPACE + word, _WORD_SCORE) for word in words]
    pieces += [(pair, _PAIR_SCORE) for pair in pairs]
    pieces += [(character, _CHARACTER_SCORE) for character in characters]
    return pieces
