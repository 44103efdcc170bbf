"""Column delimiters. A module of its own so that the command line's parser need not import torch."""


def is_delimiter(text: str) -> bool:
    """Whether a text can separate columns: one ASCII character that is not a quote, letter, digit or line end."""
    return len(text) == 1 and text.isascii() and not text.isalnum() and text not in '"\r\n\0'
