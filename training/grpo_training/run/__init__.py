"""A run, from its first check to its last word.

loop               a whole run                    checkpoint, same_run   stop and go on, bit for bit
setup              check, build, load             evaluation             held-out questions
step, update       one step: up to the rewards,   watch                  softmax collapse, at intervals
                   and what follows them          outputs                what is written as it goes
parts, portion     what a step has and learns     progress               what the terminal shows
figures            what a step says               beginning, ending      first checks, last sentences
optimizing         optimizer and learning rate
"""
