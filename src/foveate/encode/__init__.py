"""The encode stage: what is looked at (pixels), merged in the tower, and let into the language
model (tokens).

`encode.pixels` and `encode.tokens` import no torch; they run on numpy and torch arrays alike.
"""
