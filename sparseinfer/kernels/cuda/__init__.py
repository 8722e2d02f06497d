"""The CUDA C++ kernels, one to a file with its limits and its row.

The library that they call (csrc/cuda, `SPARSEINFER_CUDA=ON`) is optional, and `library.py` loads it
when a kernel is first called.
"""
