"""Triton kernels of the ops. runtime.py decides whether they can run; local_inference.py and bilstm.py launch them."""
