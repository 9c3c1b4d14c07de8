"""LoRA adapters of a loaded base as references of their own: the base's weights stay as they are, and are held once.

settings   what an adapter's config says, and what of it cannot be held beside a base
reading    its files, without pickle
fitting    its tensors, each put to the layer of the base that it is for
products   a pair of small matrices, and the ways of multiplying with it
adapter    what is held: pairs, and an embedding or a head of its own
applied    a forward of the base in which each row passes its own adapter's products
base       what of a loaded base they need
forward    batches of several adapters: rows side by side by adapter
trial      whether the scores are right, and keep their bits in company
engine     the engine that hosts base and adapter
"""
