"""What Foveate knows of model families. The only room that touches transformers' insides."""
