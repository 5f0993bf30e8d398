//! qferry
