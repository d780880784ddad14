"""Methods that choose which visual tokens enter the language model, picked or merged: one paper a
file.
"""
