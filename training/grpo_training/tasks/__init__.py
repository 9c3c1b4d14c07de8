"""What the policy is asked, and how its answers are judged.

task          questions, prompts and judging together    entries     where questions come from
templates     how an entry becomes text                  rewards     what a judge gave
"""
