"""Which kernel runs a call: the registry of rows, what each can run, and the GPU's kernels."""
