"""Foveate: vision-language models that look only where they need to."""
