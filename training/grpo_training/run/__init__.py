"""A run, from its first check to its last word.

loop               a whole run                    checkpoint, same_run   stop and go on, bit for bit
step, update       one step: up to the rewards,   evaluation             held-out questions
                   and what follows them          watch                  softmax collapse, at intervals
parts, figures     what a step has, what it says  progress               what the terminal shows
optimizing         optimizer and learning rate    beginning, ending      first checks, last sentences
"""
