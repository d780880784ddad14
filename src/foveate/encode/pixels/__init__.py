"""Methods that decide what is looked at at all: resolution, tiles, frames. Numpy alone."""
