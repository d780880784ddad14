"""KV cache policies and codecs: what is stored, evicted, merged, quantised. One paper a file."""
