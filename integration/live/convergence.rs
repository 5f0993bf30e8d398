//! How the controller gets a guest across: what is measured before, how RAM is sent, and guests that are hard to move.

mod guests;
mod measure;
mod tuning;
