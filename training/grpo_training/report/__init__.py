"""What is left of a run to look at.

metrics     JSON lines and TensorBoard, step by step
plots       the report: pictures, a page, a summary
"""
