"""The model that is trained: how it is read, what an adapter adds to it, and how its weights are written.

loading     a policy and its tokenizer, of any kind of source    adapters     runs that start from an adapter
reading     files, whole or not at all                           lora         an adapter, trained by peft
weights     trained weights to disk and back                     recompute    gradient checkpointing
"""
