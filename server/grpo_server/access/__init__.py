"""Named keys: who may do what, how much of it, and where that is written. Nothing here knows a route."""
