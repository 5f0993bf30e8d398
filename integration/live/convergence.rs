//! Convergence: measurements before a migration, the ways to send RAM, and guests that are hard to move.

mod counts;
mod guests;
mod measure;
mod overlap;
mod overlap_ends;
mod tuning;
