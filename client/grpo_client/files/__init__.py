"""Files of rollouts and of scores, one JSON object a line, and the scoring of one into the other."""
