"""What callers hand over, read into the values that a request is made of."""
