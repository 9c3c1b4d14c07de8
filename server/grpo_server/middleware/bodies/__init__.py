"""A request's body on its way in: how large, how slow and how compressed it may be, and where it lies meanwhile."""
