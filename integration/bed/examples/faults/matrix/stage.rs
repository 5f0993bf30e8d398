//! The guest for one fault after the other, as long as it lives.

use std::path::{Path, PathBuf};

use qferry_bed::{Pair, Result, Side, Spec};

use super::fault::Fault;

/// A pair whose guest is on the source. Each try begins with a fresh destination.
pub(crate) struct Stage {
    version: String,
    qferry: PathBuf,
    pair: Option<Pair>,
    /// Whether nobody has touched the destination yet.
    fresh: bool,
}

impl Stage {
    pub(crate) fn new(qferry: &Path, version: &str) -> Self {
        Self { version: version.to_owned(), qferry: qferry.to_owned(), pair: None, fresh: false }
    }

    /// The program, for the faults that need one.
    pub(crate) fn qferry(&self) -> &Path {
        &self.qferry
    }

    /// A pair for a fault, or for a migration without a fault.
    pub(crate) fn ready(&mut self, fault: Option<Fault>) -> Result<&Pair> {
        let own = fault.is_some_and(Fault::needs_own_source);
        if own {
            self.retire()?;
        }
        let wanted: Vec<_> = fault.and_then(Fault::deviation).into_iter().collect();
        let pair = match self.pair.take() {
            Some(mut pair) => {
                if !self.fresh || pair.spec().destination != wanted {
                    pair.deviate(wanted)?;
                }
                pair
            }
            None => {
                let spec = fault.unwrap_or(Fault::Frozen).spec(&self.version);
                Pair::start(&Spec { destination: wanted, ..spec })?
            }
        };
        // The pair counts as used from now on.
        self.fresh = false;
        Ok(self.pair.insert(pair))
    }

    /// The guest is on the destination, which is the source from now on.
    pub(crate) fn turn(&mut self) -> Result<()> {
        let Some(mut pair) = self.pair.take() else { return Ok(()) };
        pair.turn()?;
        self.fresh = true;
        self.pair = Some(pair);
        Ok(())
    }

    /// Gives up a guest that is dead or cannot be trusted any more. Its acknowledged writes must be on the disks of its
    /// last side.
    pub(crate) fn bury(&mut self, side: Side) -> Result<()> {
        let Some(pair) = self.pair.take() else { return Ok(()) };
        pair.check_disks(side).map(drop)
    }

    /// Ends a healthy guest on the source, and checks its disks.
    pub(crate) fn retire(&mut self) -> Result<()> {
        self.bury(Side::Source)
    }

    /// Ends a guest without any check.
    pub(crate) fn abandon(&mut self) {
        self.pair = None;
    }
}
