"""From a file of sentence pairs to batches of word ids: read, tokenise, look up, batch."""

from .batches import Batch, EncodedPairs, batches, encode_pairs
from .reading import Corpus, DataError, Pair, parse_pairs, read_pairs
from .tokenising import TOKENISERS, Tokeniser, TokenPair, get_tokeniser, tokenise_pairs
from .vectors import load_vectors
from .vocabulary import PADDING, PADDING_ID, UNKNOWN, UNKNOWN_ID, Vocabulary

__all__ = [
    "PADDING",
    "PADDING_ID",
    "TOKENISERS",
    "UNKNOWN",
    "UNKNOWN_ID",
    "Batch",
    "Corpus",
    "DataError",
    "EncodedPairs",
    "Pair",
    "TokenPair",
    "Tokeniser",
    "Vocabulary",
    "batches",
    "encode_pairs",
    "get_tokeniser",
    "load_vectors",
    "parse_pairs",
    "read_pairs",
    "tokenise_pairs",
]
