"""Whether a checkpoint was read whole.

loaded     the loaded model against the loader's report and the tensors on disk
names      which tensors' names count, and why names do not fit
gguf       what a GGUF file holds and transformers leaves out
"""
