//! A limit on the rate of reads, shared by everything that reads at the same time.

use crate::quantity::Rate;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// Delays requests so that all of them together stay below a rate. Without a rate nothing is delayed.
#[derive(Debug)]
pub struct RateLimit {
    rate: Option<Rate>,
    free: Mutex<Instant>,
}

impl RateLimit {
    /// A limit of this rate; `None` is no limit.
    pub fn new(rate: Option<Rate>) -> Self {
        Self { rate, free: Mutex::new(Instant::now()) }
    }

    /// Waits until a request for this many bytes may be sent.
    pub async fn pass(&self, bytes: u64) {
        let Some(Rate(rate)) = self.rate else { return };
        let took = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let turn = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*free).max(Instant::now());
            *free = turn + took;
            turn
        };
        sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn together_they_stay_below_the_rate() {
        let limit = RateLimit::new(Some(Rate(1000)));
        let began = Instant::now();
        tokio::join!(limit.pass(500), limit.pass(500), limit.pass(1000), limit.pass(1));
        // The last request begins when the time of those before it is over.
        assert_eq!(began.elapsed().as_millis(), 2000);
        RateLimit::new(None).pass(u64::MAX).await;
        assert_eq!(began.elapsed().as_millis(), 2000);
    }
}
