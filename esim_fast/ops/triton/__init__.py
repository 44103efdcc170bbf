"""The ops' kernels in Triton: runtime.py says whether they can run; local_inference.py and bilstm.py launch them."""
