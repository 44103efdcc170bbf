"""What can separate the columns of a file. The command line's parser needs it, and does not wait for torch."""


def is_delimiter(text: str) -> bool:
    """Whether a text can: one ASCII character that is no quote, letter, digit or line end."""
    return len(text) == 1 and text.isascii() and not text.isalnum() and text not in '"\r\n\0'
