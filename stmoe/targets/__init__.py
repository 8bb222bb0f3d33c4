"""What a model is to predict, and how far it is from that: a kind of target is a file."""
