//! Loaders of kernels, and the state in which they start.
