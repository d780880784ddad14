"""Methods that act inside the vision encoder, between its blocks: one paper a file."""
