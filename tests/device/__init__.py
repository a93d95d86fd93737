"""The package on a stand-in for a GPU, by the rules of CUDA and of MPS: ``make device``."""
