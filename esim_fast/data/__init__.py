"""Turn a file of sentence pairs into batches of word ids: read, tokenize, look up, batch."""

from ..errors import DataError
from ..tokenizing import TOKENIZERS, Tokenizer, get_tokenizer
from .batches import Batch, Batches, EncodedPairs, batches
from .cache import default_cache
from .parsing import Pair
from .preparing import PreparedCorpus, prepare
from .reading import BadRow, CorpusFormat, read_pairs
from .vectors import PretrainedVectors, load_vectors, words_with_vector
from .vocabulary import PADDING, PADDING_ID, UNKNOWN, UNKNOWN_ID, Vocabulary

__all__ = [
    "PADDING",
    "PADDING_ID",
    "TOKENIZERS",
    "UNKNOWN",
    "UNKNOWN_ID",
    "BadRow",
    "Batch",
    "Batches",
    "CorpusFormat",
    "DataError",
    "EncodedPairs",
    "Pair",
    "PreparedCorpus",
    "PretrainedVectors",
    "Tokenizer",
    "Vocabulary",
    "batches",
    "default_cache",
    "get_tokenizer",
    "load_vectors",
    "prepare",
    "read_pairs",
    "words_with_vector",
]
