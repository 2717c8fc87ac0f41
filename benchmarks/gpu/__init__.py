"""`python -m benchmarks.gpu`: what the product does on a GPU, in one command.

Needs torch, transformers, numpy and safetensors only, and no weights: the big model's are random.
"""
