//! The `qferry` command.
fn main() {}
