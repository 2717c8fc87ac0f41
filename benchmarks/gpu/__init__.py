"""`python -m benchmarks.gpu`: the benchmark of the product on a GPU, in one command.

It needs only torch, transformers, numpy and safetensors, and no weights: the 8B model's are random.
"""
