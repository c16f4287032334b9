//! The platform devices that kernels expect.
