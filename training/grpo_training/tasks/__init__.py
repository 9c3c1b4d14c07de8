"""What the policy is asked, and how its answers are judged.

task          problems by step, all of it together   judging     what an answer earns
entries       where questions come from              rewards     what a reward function gave
prompting     how an entry becomes a prompt          templates   the text of a question
"""
