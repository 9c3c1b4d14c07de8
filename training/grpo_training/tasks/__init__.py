"""What the policy is asked, and how its answers are judged.

task                problems by step, all of it together   judging              what an answer earns
entries, tables     where questions come from              rewards              what becomes of what a function gave
source, rows        what a source and a row must hold      functions, calling   reward functions and how they are called
prompting           how an entry becomes a prompt          processes, worker    a function in processes of its own
templates           the text of a question                 resolving, outcomes  by name; what became of a call
"""
