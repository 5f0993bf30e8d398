//! `calc-dirty-rate` in the model.
//!
//! Pure.

/// The window in which QEMU measures the guest's dirty rate, and the time after which it has read the pages, as the
/// engine asks for it, milliseconds.
const MEASURED: f64 = 500.0;
const READ: f64 = 50.0;

/// QEMU's measurements of the guest's dirty rate: the different pages that are dirtied in a window.
#[derive(Clone, Copy, Default)]
pub(super) struct DirtyRateModel {
    /// The begin of the window that is under way.
    began: Option<f64>,
    /// The bytes dirtied in it.
    dirtied: f64,
    /// The newest result, bytes per second.
    pub(super) rate: Option<u64>,
    /// The number of results so far.
    pub(super) count: u64,
}

impl DirtyRateModel {
    /// Begins a window, if none is under way.
    pub(super) fn begin(&mut self, at: f64) {
        if self.began.is_none() {
            (self.began, self.dirtied) = (Some(at), 0.0);
        }
    }

    /// Dirties so many bytes of this working set.
    pub(super) fn step(&mut self, at: f64, dirtied: f64, working_set: f64) {
        let Some(began) = self.began else { return };
        if at - began <= MEASURED {
            self.dirtied = (self.dirtied + dirtied).min(working_set);
        }
        if at - began >= MEASURED + READ {
            // QEMU tells whole MiB
            let rate = (self.dirtied / MEASURED * 1000.0) as u64 >> 20 << 20;
            (self.began, self.rate, self.count) = (None, Some(rate), self.count + 1);
        }
    }
}
