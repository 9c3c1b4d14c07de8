"""Other projects' request formats. One translates a file: the foreign request into a `ScoreRequest`, the `ScoreResult` into the
foreign answer. Names with _ in front are what several of them share."""
