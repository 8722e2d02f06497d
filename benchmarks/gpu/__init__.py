"""The GPU rows against cuBLAS, cuDNN, cuSPARSELt, torch's BSR and cuSPARSE, in eight minutes."""
