"""How the shipped weights are made: clean material in, noise added, a network taught to take it out.

Needs torch, numpy, Pillow and safetensors, and nothing else of ours outside `models`.
"""
