"""The experiments: a folder per paper, a file per experiment, installed as `stmoe.configs`.

`get_config(arg='')` of a file returns its ConfigDict; `paper.py` of a folder holds the paper's facts.
"""
