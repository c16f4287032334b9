//! What a processor says of itself, the same on every node.
