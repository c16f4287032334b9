//! The interrupt chips that KVM leaves to userspace: IOAPIC and 8259.
