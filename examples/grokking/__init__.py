"""Grokking on a laptop: softmax collapse, and four ways out of it, on three small tasks.

After Prieto et al., "Grokking at the Edge of Numerical Stability", ICLR 2025, arXiv 2501.04697, with this project's own
StableMax, collapse-free cross-entropy, OrthoGrad and CollapseMonitor. `docs/grokking.md` has the results.

    tasks.py         modular addition, modular multiplication, sparse parity
    losses.py        the losses that are compared
    experiments.py   the table of experiments, each one frozen value
    train.py         the network and one run: full batch, one record every few epochs
    results.py       runs on disk, and the questions one asks of them
    bars.py          what has to be seen, and whether it was
    plots.py         the figures of docs/grokking.md
"""
