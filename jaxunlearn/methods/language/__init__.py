"""Methods for language models: each reads texts by the one mask of the answer's tokens."""
