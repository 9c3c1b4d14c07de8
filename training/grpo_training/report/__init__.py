"""What is left of a run to look at.

metrics   JSON lines and TensorBoard, step by step   summary    the run in a dozen figures
report    all of it together, at the end             plots      the pictures
columns   figures by step, and their means           page       the HTML page
findings  what `grpo-client check` says of the run
"""
