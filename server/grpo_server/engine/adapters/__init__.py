"""LoRA adapters of a loaded base as references of their own: the base's weights stay as they are, and are held once.

settings   what an adapter's config says, and what of it cannot be held beside a base
reading    its files, without pickle
fitting    its tensors, each put to the layer of the base that it is for
adapter    what is held: pairs of small matrices, and an embedding or a head of its own
applied    a forward of the base in which each row passes its own adapter's products
forward    batches of several adapters: rows side by side by adapter
trial      whether the scores are right, and keep their bits in company
engine     the engine that hosts base and adapter
"""
