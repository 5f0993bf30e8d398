//! Live migrations between real QEMUs, with a guest that keeps a record of what it did.
//!
//! Every test judges by the same things: the guest's own checks of its memory and disks, the images read offline
//! against what the guest was told, that exactly one side runs, that nothing of the engine's is left, and that the
//! destination's image is as sparse as the source's was and still stands on its own backing file.

#![cfg(test)] // tells clippy that this is all test, helpers too

mod bare;
mod blackout;
mod command;
mod convergence;
mod diagnosis;
mod failures;
mod found_early;
mod guest_ends;
mod held;
mod libvirt;
mod machines;
mod moves;
mod postcopy;
mod prepare;
mod proxied;
mod recovery;
mod storage;
mod strangers;
mod support;
mod sweep;
mod watch;
