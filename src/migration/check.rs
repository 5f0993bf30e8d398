//! Looks at both sides and plans: everything before the first change.
//!
//! What it opens for reading it closes again; what it is told to clean it removes. It must change nothing else.

use super::{
    Failure, Settings,
    interrupt::{cancelled, unless_cancelled},
    plan::Draft,
    work_order::Route,
};
use crate::{
    endpoint::Address,
    preflight::{
        contents::{self, Contents, Reachable},
        facts::{
            self, Facts,
            ports::{self, Port},
        },
        measure::{self, Way},
        measured::Measured,
        wanted,
    },
    progress::{Moment, Reporter},
    qemu::Process,
    storage::{
        ceiling::Ceiling,
        clean,
        compare::How,
        identity::{By, Comparison, Proof, Verdict},
        layout::Disk,
    },
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, try_join};

/// One look at both sides.
pub(crate) struct Survey<'a> {
    pub(crate) source: &'a Process,
    pub(crate) destination: &'a Process,
    pub(crate) settings: &'a Settings,
    pub(crate) report: &'a Reporter,
    /// Turns true, or closes, when the user cancels.
    pub(crate) cancel: watch::Receiver<bool>,
}

impl Survey<'_> {
    /// Gathers facts from both sides, plans, and reads what must be proved.
    /// `clean` allows leftovers to be removed.
    pub(crate) async fn plan(&self, clean: bool) -> Result<Draft, Failure> {
        let (mut here, mut there) = unless_cancelled(&self.cancel, self.gather()).await??;
        let id = format!("{}-{:08x}", std::process::id(), Moment::now().wall.subsec_nanos());
        let mut settings = self.settings.clone();
        if clean && self.remove_leftovers(&here, &there).await? {
            (here, there) = unless_cancelled(&self.cancel, self.gather()).await??;
        }
        // what is there after it was removed is in the way
        settings.clean &= !clean;
        let ports = unless_cancelled(&self.cancel, self.ports()).await?;
        let mut draft = Draft::new(&here, &there, &ports, &settings, &id);
        if let Some(contents) = self.read(&draft, &here, &there).await? {
            for comparison in &contents.comparisons {
                if comparison.verdict == Verdict::Same {
                    self.report.action("verified", told(comparison));
                }
            }
            draft.add(contents, &settings.force);
            let again = async {
                try_join!(facts::with_disks_now(self.source, &here), facts::with_disks_now(self.destination, &there))
            };
            match unless_cancelled(&self.cancel, again).await? {
                Ok((now_here, now_there)) => {
                    draft.add_changed("source", &wanted::changed(&here, &now_here));
                    draft.add_changed("destination", &wanted::changed(&there, &now_there));
                }
                // a side that is gone by now could not be read either, which is told already
                Err(error) if draft.plan.blockers().next().is_none() => return Err(error.into()),
                Err(_) => {}
            }
        } else if settings.verify_backing != Proof::Off {
            draft.left_unread();
        }
        if let Some(order) = draft.unblocked().filter(|_| settings.predict) {
            let before = Duration::from_millis(self.report.elapsed_ms());
            let measured = self.measure(&order.route, &here).await?;
            self.report.action("measured", measured.told());
            draft.add_measured(measured, &settings, self.source.features(), before);
        }
        Ok(draft)
    }

    async fn gather(&self) -> Result<(Facts, Facts), Failure> {
        Ok(facts::gather_both(self.source, self.destination).await?)
    }

    /// Looks at the ports that the user gave.
    async fn ports(&self) -> Vec<(&'static str, Address, Port)> {
        let given = [
            ("--nbd-address", &self.settings.nbd_address),
            ("--migrate-address", &self.settings.migrate_address),
            ("--source-nbd-address", &self.settings.source_nbd_address),
        ];
        let mut found = Vec::new();
        for (option, address) in given {
            if let Some(address) = address {
                found.extend(ports::look(address).await.map(|port| (option, address.clone(), port)));
            }
        }
        found
    }

    /// Whether there were any. Not while a guest is on its way: they are in use then.
    async fn remove_leftovers(&self, here: &Facts, there: &Facts) -> Result<bool, Failure> {
        let under_way = here.migration.status.as_ref().is_some_and(|status| !status.is_over());
        if under_way || (here.leftovers.is_empty() && there.leftovers.is_empty()) {
            return Ok(false);
        }
        for (process, facts) in [(self.source, here), (self.destination, there)] {
            for left in &facts.leftovers {
                self.report.action("clean", format!("{}: {left} is of an earlier try", facts.name));
            }
            clean::remove(process, &facts.leftovers).await?;
        }
        Ok(true)
    }

    /// Reads what must be the same, and what must be empty; unless that is not wanted, or the sides are not fit for it.
    async fn read(&self, draft: &Draft, here: &Facts, there: &Facts) -> Result<Option<Contents>, Failure> {
        let settings = self.settings;
        if settings.verify_backing == Proof::Off || !draft.is_readable() {
            return Ok(None);
        }
        let (source, destination) = (draft.reading.0.as_ref(), draft.reading.1.as_ref());
        settings.make_runtime_dir([source, destination].into_iter().flatten())?;
        let ceiling = [settings.bandwidth, settings.disk_bandwidth].into_iter().flatten().min();
        let seed = settings.sample_seed.unwrap_or_else(|| {
            let now = Moment::now().wall;
            now.as_secs() << 20 ^ u64::from(now.subsec_nanos())
        });
        let how = How { proof: settings.verify_backing, samples: settings.samples, seed, keep: settings.keep_digests };
        let source = Reachable { process: self.source, facts: here, address: source };
        let destination = Reachable { process: self.destination, facts: there, address: destination };
        let ceiling = Arc::new(Ceiling::new(ceiling));
        let cancelled = cancelled(&self.cancel);
        let read = contents::read(source, destination, &draft.comparison, &how, &ceiling, self.report, cancelled);
        // a future this large is kept off the stack of whoever waits for it
        Box::pin(read).await.map(Some).ok_or(Failure::Cancelled)
    }

    /// Measures what a prediction needs.
    async fn measure(&self, route: &Route, here: &Facts) -> Result<Measured, Failure> {
        let nbd = route.nbd();
        self.settings.make_runtime_dir([nbd])?;
        let bandwidth = match self.settings.bandwidth {
            Some(_) => Way::Ceiling,
            None => Way::Probe(nbd),
        };
        let cancelled = cancelled(&self.cancel);
        let (source, destination) = (self.source, self.destination);
        let disks: Vec<&Disk> = route.pairs.iter().map(|pair| &pair.source).collect();
        let work = measure::measure(source, destination, here, &disks, bandwidth, self.report, cancelled);
        Box::pin(work).await.ok_or(Failure::Cancelled)
    }
}

/// What was proved, for people.
fn told(comparison: &Comparison) -> String {
    let Comparison { source, destination, by, .. } = comparison;
    match by {
        By::SameFile => format!("{source} is the destination's {destination}: one file"),
        By::Metadata { map: Some(map) } => {
            format!("{source} and the destination's {destination} have data in the same places (map {map})")
        }
        By::Metadata { map: None } => format!("{source} and the destination's {destination} have the same sizes"),
        By::Sample { ranges: 0, .. } => {
            format!("{source} and the destination's {destination} are both zero throughout")
        }
        By::Sample { seed, ranges, bytes } => format!(
            "{source} and the destination's {destination} are alike in {ranges} ranges, {bytes} bytes in all (seed {seed})"
        ),
        By::Full { digest, kept, .. } => format!(
            "{source} and the destination's {destination} are the same (digest {}{})",
            digest.as_deref().unwrap_or("unknown"),
            match kept {
                0 => "",
                1 => ", one of them kept",
                _ => ", both kept",
            }
        ),
    }
}
