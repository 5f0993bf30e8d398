//! The workload that runs as init inside the test guest.
fn main() {}
