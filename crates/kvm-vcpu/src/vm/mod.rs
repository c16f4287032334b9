//! The KVM machine of one node, its vCPU threads and stand-ins.
