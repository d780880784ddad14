"""Methods inside the language model: which visual tokens survive to deeper layers. One paper a file."""
