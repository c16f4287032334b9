//! One clock for all nodes.
