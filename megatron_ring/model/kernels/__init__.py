"""Element-wise work of the layers, fused: each file has one operation, as a Triton kernel for CUDA and as plain torch for
the CPU, behind one function. Products stay with cuBLAS and `grouped_mm`, attention with cuDNN or flash attention.

Triton is imported by the `*_triton` modules only, which load when the first CUDA tensor comes.
"""
